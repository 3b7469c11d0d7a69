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
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.main import create_app
from app.models import (
    AssignmentState,
    Candidate,
    ComparisonPair,
    CriticStanding,
    DeliveryState,
    Erasure,
    Evaluation,
    Import,
    ModelVersion,
    Project,
    PromptImage,
    ReturnedVerdict,
    Review,
    Role,
    Scope,
    Split,
    Token,
    User,
    Verdict,
    VerdictKind,
    WebhookDelivery,
)
from app.services.accounts import users
from app.services.integrations import webhooks
from app.services.kernel.actors import SYSTEM
from app.services.quality import gold, reviews
from app.services.rounds import comparisons, rounds, snapshots
from tests import factories
from tests.app.services.feedback import judge

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
DESCRIPTION = create_app().openapi()
# Calls that succeed only with the objects in `known`, with their bodies.
GOOD = (
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
    ("POST", "/api/v1/projects/{slug}/pairs/{pair_id}/preference", {"side": "left"}),
    ("GET", "/api/v1/webhooks/{webhook_id}/deliveries", None),
    ("POST", "/api/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/replay", None),
)
SPEC = schemathesis.openapi.from_dict(DESCRIPTION)
OPERATIONS = {(one.method.upper(), one.path): one for one in (found.ok() for found in SPEC.get_all_operations())}


@pytest.fixture
def asker(session: Session) -> User:
    """The admin who sends the requests."""
    return factories.make_user(session, role=Role.admin)


@pytest.fixture
def known(session: Session, project: Project, asker: User) -> dict[str, str]:
    """A project with one of everything, and the path parameters that name these objects."""
    critic = factories.make_critic(session, project)
    prompt = judge(session, project, critic)
    open_set = factories.make_candidate_set(session, project)
    claim = factories.make_assignment(session, open_set, critic)
    flagged = factories.make_candidate_set(session, project)
    flag = factories.make_verdict(
        session,
        factories.make_assignment(session, flagged, critic, state=AssignmentState.released),
        kind=VerdictKind.flagged,
    )
    reviews.open_review(session, flag.id, reviews.ReviewKind.flag)
    snapshot = snapshots.freeze(session, SYSTEM, project)
    started = rounds.start(session, SYSTEM, project)
    made = factories.add(session, Import(project_id=project.id, filename="x.jsonl", file_key="0" * 64))
    hook, _ = webhooks.add_webhook(session, SYSTEM, url="https://8.8.8.8/", events=["verdict"], project=project)
    token, _ = users.create_token(session, SYSTEM, user_id=critic.user_id, scope=Scope.read)
    image = session.scalars(select(PromptImage.sha256).where(PromptImage.prompt_id == prompt.id)).one()
    others = {**make_comparison(session, project), **personal_items(session, project, asker, flag)}
    factories.add(session, CriticStanding(project_id=project.id, critic_id=critic.user_id, answered=3, score=0.5))
    delivery = factories.add(
        session, WebhookDelivery(webhook_id=hook.id, event="verdict", payload={}, state=DeliveryState.failed)
    )
    session.commit()
    return {
        **others,
        "delivery_id": str(delivery.id),
        "slug": project.slug,
        "sha256": image,
        "prompt_id": str(prompt.id),
        "import_id": str(made.id),
        "assignment_id": str(claim.id),
        "verdict_id": str(session.scalars(select(Verdict.id).where(Verdict.prompt_id == prompt.id)).one()),
        "review_id": str(session.scalars(select(Review.id)).one()),
        "round_id": str(started.id),
        "version_id": str(session.scalars(select(ModelVersion.id)).first()),
        "snapshot_id": str(snapshot.id),
        "user_id": str(critic.user_id),
        "critic_id": str(critic.user_id),
        "token_id": str(session.scalars(select(Token.id).where(Token.id == token.id)).one()),
        "webhook_id": str(hook.id),
        "candidate": str(session.scalars(select(Candidate.id)).first()),
        "erasure_id": str(factories.add(session, Erasure(kind="image", subject="0" * 64)).id),
    }


def make_comparison(session: Session, project: Project) -> dict[str, str]:
    """A comparison of the active version with another one, and an unjudged pair of it."""
    old = session.get_one(ModelVersion, project.active_version_id)
    new = factories.make_version(session, project, number=7, parent=old)
    prompts = [str(factories.make_prompt(session, project, split=Split.val).id) for _ in range(2)]
    for version, word in ((old, "old"), (new, "new")):
        part = {"rationales": [[f"{word} 1"], [f"{word} 2"]], "rouge_l": [0.5] * 2}
        scores = {"prompts": prompts, "gold": {"greedy": part, "sampled": part}}
        factories.add(session, Evaluation(version_id=version.id, prompts_hash="p", settings_hash="s", scores=scores))
    made = comparisons.start(session, SYSTEM, project, old=old, new=new, pairs=2, each=1, gate=False)
    pair = session.scalars(select(ComparisonPair.id).where(ComparisonPair.comparison_id == made.id)).first()
    return {"comparison_id": str(made.id), "pair_id": str(pair)}


def personal_items(session: Session, project: Project, asker: User, verdict: Verdict) -> dict[str, str]:
    """A practice prompt, and a verdict that was sent back to `asker`."""
    item = gold.GoldIn(
        prompt=str(factories.make_prompt(session, project).id),
        candidates=[gold.GoldCandidate(text="it fits", fits=True), gold.GoldCandidate(text="it does not", fits=False)],
        practice=True,
    )
    made = gold.add_gold(session, SYSTEM, project, item)
    review = session.scalars(select(Review.id)).one()
    row = ReturnedVerdict(
        project_id=project.id, review_id=review, verdict_id=verdict.id, critic_id=asker.id, note="Sure?"
    )
    return {"gold_id": str(made["id"]), "returned_id": str(factories.add(session, row).id)}


@pytest.fixture
def schema(app: FastAPI) -> Any:
    """The description as the server returns it, which the requests follow."""
    return schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)


@pytest.fixture
def headers(session: Session, asker: User, known: dict[str, str]) -> dict[str, str]:
    """The headers of an admin's requests, once all objects exist."""
    assert known
    _, token = users.create_token(session, SYSTEM, user_id=asker.id, scope=Scope.admin)
    session.commit()
    return {"Authorization": f"Bearer {token}"}


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
