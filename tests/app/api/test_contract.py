"""The OpenAPI description is true: whatever is sent, the answer is one that it names, in the shape it names.

schemathesis makes up requests by the description, good ones and bad ones; some name things that are there.
"""

from __future__ import annotations

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
    Erasure,
    Import,
    ModelVersion,
    Project,
    PromptImage,
    Review,
    Role,
    Scope,
    SnapshotKind,
    Token,
    Verdict,
    VerdictKind,
)
from app.services import reviews, rounds, snapshots, users, webhooks
from app.services.actors import SYSTEM
from tests import factories
from tests.app.services.feedback import judge

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SOME = (  # of each kind of call one or two, for each run of the tests
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
SPEC = schemathesis.openapi.from_dict(DESCRIPTION)
OPERATIONS = {(one.method.upper(), one.path): one for one in (found.ok() for found in SPEC.get_all_operations())}


@pytest.fixture
def known(session: Session, project: Project) -> dict[str, str]:
    """A project with one of everything, and what paths call these things."""
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
    reviews.ask(session, flag.id, reviews.ReviewKind.flag)
    snapshot = snapshots.take(session, SYSTEM, project, kind=SnapshotKind.frozen)
    started = rounds.start(session, SYSTEM, project)
    made = factories.add(session, Import(project_id=project.id, filename="x.jsonl", file_key="0" * 64))
    hook, _ = webhooks.add_webhook(session, SYSTEM, url="https://8.8.8.8/", events=["verdict"], project=project)
    token, _ = users.create_token(session, SYSTEM, user_id=critic.user_id, scope=Scope.read)
    image = session.scalars(select(PromptImage.sha256).where(PromptImage.prompt_id == prompt.id)).one()
    session.commit()
    return {
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


@pytest.fixture
def ask(app: FastAPI, session: Session, known: dict[str, str]) -> Callable[..., None]:
    """Sends made-up requests of one kind as an admin and checks their answers."""
    admin = factories.make_user(session, role=Role.admin)
    _, token = users.create_token(session, SYSTEM, user_id=admin.id, scope=Scope.admin)
    session.commit()
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)
    headers = {"Authorization": f"Bearer {token}"}

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
def test_some(ask: Callable[..., None], method: str, path: str) -> None:
    ask(method, path, 8)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=lambda value: value)
def test_all(ask: Callable[..., None], method: str, path: str) -> None:
    ask(method, path, 100)


class TestExamples:
    """Each call has an example of what is sent and of what comes back, and they are of the shapes that it names."""

    @pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=lambda value: value)
    def test_of_a_call(self, method: str, path: str) -> None:
        call = DESCRIPTION["paths"][path][method.lower()]
        contents = [call.get("requestBody", {})]
        contents += [answer for status, answer in call["responses"].items() if status.startswith("2")]
        for holder in contents:
            content = holder.get("content", {}).get("application/json")
            if content is not None:
                schema = {**content["schema"], "components": DESCRIPTION["components"]}
                jsonschema.Draft202012Validator(schema).validate(content["example"])
        for parameter in call.get("parameters", ()):
            assert parameter["in"] != "path" or parameter["example"]
