"""The OpenAPI description is true: every response, whatever the request, is one that it describes.

schemathesis generates valid and invalid requests from the description; some refer to existing objects.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import update
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.api.schemas import PromptChange
from app.models import Project, Verdict
from app.services.prompts.prompts import CHANGEABLE
from tests import factories
from tests.app.api.description import DESCRIPTION

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SOME = (  # one or two of each kind of call, for every test run
    ("GET", "/api/v1/projects"),
    ("POST", "/api/v1/projects"),
    ("PATCH", "/api/v1/projects/{slug}"),
    ("GET", "/api/v1/projects/{slug}/prompts"),
    ("POST", "/api/v1/projects/{slug}/prompts"),
    ("POST", "/api/v1/projects/{slug}/assignments"),
    ("POST", "/api/v1/assignments/{assignment_id}/verdict"),
    ("GET", "/api/v1/projects/{slug}/verdicts"),
    ("GET", "/api/v1/projects/{slug}/dataset"),
    ("POST", "/api/v1/projects/{slug}/snapshots"),
    ("GET", "/api/v1/rounds/{round_id}"),
    ("POST", "/api/v1/users/{user_id}/tokens"),
    ("POST", "/api/v1/webhooks"),
    ("GET", "/api/v1/imports/{import_id}"),
)
# Calls that succeed only with the objects in `known`, with their bodies.
GOOD: tuple[tuple[str, str, dict[str, Any] | None], ...] = (
    ("GET", "/api/v1/projects/{slug}/gold", None),
    ("DELETE", "/api/v1/gold/{gold_id}", None),
    ("GET", "/api/v1/projects/{slug}/practice", None),
    ("POST", "/api/v1/projects/{slug}/practice/{gold_id}", {"picks": []}),
    ("GET", "/api/v1/projects/{slug}/standings", None),
    ("GET", "/api/v1/projects/{slug}/returned", None),
    ("POST", "/api/v1/returned/{returned_id}/stand", None),
    ("GET", "/api/v1/projects/{slug}/comparisons", None),
    ("GET", "/api/v1/comparisons/{comparison_id}", None),
    ("GET", "/api/v1/comparisons/{comparison_id}/pairs", None),
    ("POST", "/api/v1/comparisons/{comparison_id}/close", None),
    ("GET", "/api/v1/projects/{slug}/pairs/next", None),
    ("GET", "/api/v1/projects/{slug}/pairs/last", None),
    ("POST", "/api/v1/projects/{slug}/pairs/{pair_id}/preference", {"side": "left"}),
    ("GET", "/api/v1/webhooks/{webhook_id}/deliveries", None),
    ("POST", "/api/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/replay", None),
)
SPEC = schemathesis.openapi.from_dict(DESCRIPTION)
FOUND = list(SPEC.get_all_operations())
OPERATIONS = {(one.method.upper(), one.path): one for one in (found.ok() for found in FOUND if isinstance(found, Ok))}
assert len(OPERATIONS) == len(FOUND)


@pytest.fixture
def schema(app: FastAPI) -> Any:
    """The description as the server returns it, which the requests follow."""
    return schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)


@pytest.fixture
def check_operation(schema: Any, known: dict[str, str], headers: dict[str, str]) -> Callable[..., None]:
    """Sends generated requests of one kind as an admin, and checks their responses."""

    def run(method: str, path: str, examples: int) -> None:
        operation = schema[path][method]

        @settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(), there=st.booleans())
        def send(case: Any, there: bool) -> None:
            if there:
                case.path_parameters = {name: known.get(name, value) for name, value in case.path_parameters.items()}
            case.call_and_validate(headers=headers, checks=CHECKS)

        send()

    return run


@pytest.mark.parametrize(("method", "path"), SOME, ids=lambda value: value)
def test_a_few_made_up_requests(check_operation: Callable[..., None], method: str, path: str) -> None:
    check_operation(method, path, 8)


def test_path_parameters_exist(known: dict[str, str]) -> None:
    assert {name for _, path in OPERATIONS for name in re.findall(r"{(\w+)}", path)} <= known.keys()


@pytest.mark.parametrize(("method", "path", "body"), GOOD, ids=lambda value: value if isinstance(value, str) else "")
def test_valid_requests(
    schema: Any, known: dict[str, str], headers: dict[str, str], method: str, path: str, body: dict[str, Any] | None
) -> None:
    names = re.findall(r"{(\w+)}", path)
    sent = {} if body is None else {"body": body, "media_type": "application/json"}
    case = schema[path][method].Case(path_parameters={name: known[name] for name in names}, **sent)
    answer = case.call_and_validate(headers=headers, checks=CHECKS)
    assert 200 <= answer.status_code < 300
    if answer.status_code == 200 and "items" in answer.json():
        assert answer.json()["items"]


class TestJudgingShapes:
    """The answers about prompts, claims and verdicts have the described fields, all of them and no others."""

    @pytest.fixture
    def answer(self, client: TestClient, known: dict[str, str], headers: dict[str, str]) -> Callable[..., Any]:
        def send(method: str, path: str, body: Any = None, status: int = 200, **names: str) -> Any:
            got = client.request(
                method, path.format(**{**known, **names}), json=body, headers=headers, follow_redirects=False
            )
            assert got.status_code == status, got.text
            described = DESCRIPTION["paths"][path][method.lower()]["responses"][str(status)]["content"]
            schema = closed({**described["application/json"]["schema"], "components": DESCRIPTION["components"]})
            jsonschema.Draft202012Validator(schema).validate(got.json())
            return got.json()

        return send

    def test_prompts(self, answer: Callable[..., Any], known: dict[str, str]) -> None:
        one = {"images": [known["sha256"]], "question": "Why?", "external_id": "own-1", "candidates": ["a", "b"]}
        path = "/api/v1/projects/{slug}/prompts"
        made = answer("POST", path, one, 201)
        assert answer("POST", path, one)["id"] == made["id"]
        several = answer("POST", path, {"items": [{**one, "external_id": "own-2"}, {"question": "?"}]}, 201)
        assert several["created"] == len(several["errors"]) == 1
        assert made["id"] in [item["id"] for item in answer("GET", path)["items"]]
        assert answer("GET", "/api/v1/prompts/{prompt_id}", prompt_id=made["id"])["candidate_sets"]
        assert answer("PATCH", "/api/v1/prompts/{prompt_id}", {"priority": 3}, prompt_id=made["id"])["priority"] == 3

    def test_claims_and_verdicts(self, answer: Callable[..., Any], session: Session, project: Project) -> None:
        factories.make_candidate_set(session, project, priority=9)
        session.commit()
        claim = answer("POST", "/api/v1/projects/{slug}/assignments", status=201)
        own = {"assignment_id": claim["id"]}
        assert answer("GET", "/api/v1/assignments/{assignment_id}", **own)["prompt"] == claim["prompt"]
        assert answer("POST", "/api/v1/assignments/{assignment_id}/heartbeat", **own)["state"] == "open"
        picked = {"kind": "picked", "picks": [claim["candidates"][0]["id"]], "tags": {}, "seconds": 2.5}
        given = answer("POST", "/api/v1/assignments/{assignment_id}/verdict", picked, 201, **own)
        assert given["picks"] == picked["picks"]
        path = "/api/v1/verdicts/{verdict_id}"
        changed = answer("PUT", path, {"kind": "none_fit", "comment": "Neither."}, verdict_id=given["id"])
        assert changed["supersedes"] == given["id"]
        assert answer("GET", path, verdict_id=given["id"])["current"] is False
        # The feed shows only what is committed, which this test never does.
        page = answer("GET", "/api/v1/projects/{slug}/verdicts")
        described = DESCRIPTION["components"]["schemas"]["ListOut_VerdictOut_"]["properties"]["items"]["items"]
        assert page["items"] == []
        assert described == {"$ref": "#/components/schemas/VerdictOut"}

    def test_an_erased_verdict(self, answer: Callable[..., Any], session: Session, known: dict[str, str]) -> None:
        session.execute(update(Verdict).where(Verdict.id == int(known["verdict_id"])).values(deleted=True))
        session.commit()
        erased = answer("GET", "/api/v1/verdicts/{verdict_id}")
        assert (erased["state"], erased["kind"], erased["critic"]) == ("deleted", None, None)

    @pytest.mark.parametrize(
        ("method", "path", "shapes"),
        [
            ("POST", "/api/v1/projects/{slug}/prompts", {"PromptIn", "PromptsIn"}),
            ("PATCH", "/api/v1/prompts/{prompt_id}", {"PromptChange"}),
            ("POST", "/api/v1/assignments/{assignment_id}/verdict", {"VerdictIn"}),
            ("PUT", "/api/v1/verdicts/{verdict_id}", {"VerdictIn"}),
        ],
    )
    def test_bodies_are_named_shapes(self, method: str, path: str, shapes: set[str]) -> None:
        content = DESCRIPTION["paths"][path][method.lower()]["requestBody"]["content"]["application/json"]
        named = content["schema"].get("anyOf", [content["schema"]])
        assert {one["$ref"].rpartition("/")[2] for one in named} == shapes
        for name in shapes:
            assert DESCRIPTION["components"]["schemas"][name]["properties"]
            assert DESCRIPTION["components"]["schemas"][name]["examples"]

    def test_what_may_change_is_described(self) -> None:
        assert set(PromptChange.model_fields) == set(CHANGEABLE)


def closed(schema: Any) -> Any:
    """The same schema, in which no object may have properties that it does not name."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(value) for name, value in schema.items()}
    return (
        {**inner, "additionalProperties": False} if schema.get("type") == "object" and "properties" in schema else inner
    )


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=lambda value: value)
def test_many_made_up_requests(check_operation: Callable[..., None], method: str, path: str) -> None:
    check_operation(method, path, 100)


class TestExamples:
    """Each call has an example of its request and its response, in the described shapes."""

    @pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=lambda value: value)
    def test_every_call_has_examples(self, method: str, path: str) -> None:
        call = DESCRIPTION["paths"][path][method.lower()]
        contents = [call.get("requestBody", {})]
        contents += [answer for status, answer in call["responses"].items() if status.startswith("2")]
        for holder in contents:
            content = holder.get("content", {}).get("application/json")
            if content is not None:
                schema = {**content["schema"], "components": DESCRIPTION["components"]}
                jsonschema.Draft202012Validator(schema).validate(content["example"])
        for parameter in call.get("parameters", ()):
            if parameter["in"] == "path":
                assert parameter["example"]
