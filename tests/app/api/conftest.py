"""A client of the REST interface whose requests share the test's session, and a project with one of everything."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.http.dependencies import get_session
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
    ReviewKind,
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
from tests.engines import make_engine
from tests.judging import SessionPool


@pytest.fixture
def app(shared_app: FastAPI, session: Session) -> Iterator[FastAPI]:
    """The application on the test's session. A request commits to its savepoint, or rolls back to the last one."""

    def test_session() -> Iterator[Session]:
        session.commit()
        try:
            yield session
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            session.expire_all()

    shared_app.dependency_overrides[get_session] = test_session
    shared_app.state.sessions = contextlib.contextmanager(test_session)
    shared_app.state.judging = SessionPool(session)
    yield shared_app
    shared_app.dependency_overrides.clear()


As = Callable[..., TestClient]


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    """A client without a token."""
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def as_user(app: FastAPI, session: Session) -> As:
    """Makes a client that sends a token of this person."""

    def make(user: User, scope: Scope = Scope.admin, **options: Any) -> TestClient:
        _, token = users.create_token(session, SYSTEM, user_id=user.id, scope=scope, **options)
        return TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {token}"})

    return make


@pytest.fixture
def project(session: Session) -> Project:
    """A project in which no round starts by itself."""
    return factories.make_project(session, round_every=1000)


@pytest.fixture
def admin(session: Session, as_user: As) -> TestClient:
    """An admin."""
    return as_user(factories.make_user(session, role=Role.admin))


@pytest.fixture
def critic(session: Session, project: Project, as_user: As) -> TestClient:
    """A critic of `project`, with a token that may write."""
    return as_user(factories.make_member(session, project, Role.critic), Scope.write)


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
    reviews.open_review(session, flag.id, ReviewKind.flag)
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
    engine = make_engine(session)
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
        "engine_id": str(engine.id),
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
def headers(session: Session, asker: User, known: dict[str, str]) -> dict[str, str]:
    """The headers of an admin's requests, once all objects exist."""
    assert known
    _, token = users.create_token(session, SYSTEM, user_id=asker.id, scope=Scope.admin)
    session.commit()
    return {"Authorization": f"Bearer {token}"}
