"""Change tokens: equal while nothing that is shown changes, different after each kind of change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import delete, func, update
from sqlalchemy.orm import Session

from app.models import (
    AssignmentState,
    CandidateSet,
    CandidateSetState,
    CriticJob,
    Import,
    PromptState,
    Role,
    RoundEvent,
    RoundState,
    User,
    Verdict,
    WebSession,
)
from app.services.accounts import passwords, sessions
from app.services.judging import change
from app.services.kernel import workers
from app.services.kernel.actors import SYSTEM
from app.services.kernel.verdict_schema import VerdictIn
from app.services.projects import projects
from app.services.read_models import change_tokens
from tests import factories, judging
from tests.conftest import CommittedDatabase


class World:
    """A project with one of everything, and the session of a person who looks at it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.project = factories.make_project(session, overlap=2, round_every=1000)
        self.user = factories.make_user(session, role=Role.admin)
        self.cookie_hash = passwords.hash_secret(sessions.open_web_session(session, self.user)[0])
        self.critic = factories.make_critic(session, self.project)
        self.offered = factories.make_candidate_set(session, self.project, slots=2)
        self.given = factories.make_verdict(
            session, factories.make_assignment(session, self.offered, factories.make_critic(session, self.project))
        )
        self.round = factories.make_round(session, self.project, state=RoundState.training)
        beat(session)
        session.flush()

    def mark(self) -> str | None:
        self.session.flush()
        return change_tokens.project_token(self.session, self.project.slug, self.cookie_hash)


def beat(session: Session, doing: str = "waits", memory_mb: int = 100) -> None:
    workers.beat_worker(session, "hall:1", queues="model", device="cpu", doing=doing, memory_mb=memory_mb)


@pytest.fixture
def world(session: Session) -> World:
    return World(session)


def say(world: World) -> None:
    claimed = judging.claim(world.session, world.critic, world.project)
    assert claimed is not None
    judging.give(world.session, world.critic, claimed.assignment_id, VerdictIn.model_validate({"kind": "none_fit"}))


def say_otherwise(world: World) -> None:
    actor = factories.actor_of(world.session.get_one(User, world.given.critic_id))
    picks = [str(world.given.shown[1])]
    change.change(world.session, actor, world.given.id, VerdictIn.model_validate({"kind": "picked", "picks": picks}))


def claim(world: World) -> None:
    factories.make_candidate_set(world.session, world.project)
    before = world.mark()
    factories.make_assignment(
        world.session, factories.make_candidate_set(world.session, world.project), world.critic, slot=1
    ).state = AssignmentState.open
    assert world.mark() != before


def set_of(world: World, **values: object) -> None:
    world.session.execute(update(CandidateSet).where(CandidateSet.id == world.offered.id).values(**values))


def make_import(world: World) -> None:
    world.session.add(Import(project_id=world.project.id, filename="a.csv", file_key="x"))


def change_settings(world: World) -> None:
    projects.update_project(world.session, SYSTEM, world.project.slug, {"round_every": 7})


CHANGES: dict[str, Callable[[World], object]] = {
    "a verdict": say,
    "a verdict that is changed": say_otherwise,
    "a verdict that is erased": lambda w: w.session.execute(update(Verdict).values(deleted=True, current=False)),
    "a claim": claim,
    "a new set": lambda w: factories.make_candidate_set(w.session, w.project),
    "a set being sampled": lambda w: set_of(w, state=CandidateSetState.sampling, beats_at=func.now()),
    "a new prompt": lambda w: factories.make_prompt(w.session, w.project),
    "a prompt held": lambda w: setattr(factories.make_prompt(w.session, w.project), "state", PromptState.held),
    "a new round": lambda w: factories.make_round(w.session, w.project, number=9, state=RoundState.succeeded),
    "a round's state": lambda w: setattr(w.round, "state", RoundState.evaluating),
    "a round's progress": lambda w: setattr(w.round, "progress", {"fraction": 0.5}),
    "a round's event": lambda w: w.session.add(RoundEvent(round_id=w.round.id, position=1, kind="log", data={})),
    "a version": lambda w: factories.make_version(w.session, w.project, number=5),
    "the training of a machine critic": lambda w: w.session.add(
        CriticJob(project_id=w.project.id, round_id=w.round.id, kind="verifier")
    ),
    "what a machine accepted": lambda w: factories.make_machine_accept(
        w.session, w.project, w.offered, w.project.active_version_id
    ),
    "the active version": lambda w: setattr(w.project, "active_version_id", None),
    "the name": lambda w: setattr(w.project, "name", "Another"),
    "a setting": change_settings,
    "a snapshot": lambda w: factories.make_snapshot(w.session, w.project, number=7),
    "an import": make_import,
    "what a worker does": lambda w: beat(w.session, doing="samples"),
    "a worker's memory": lambda w: beat(w.session, memory_mb=200),
    "a worker that ends": lambda w: workers.remove_worker(w.session, "hall:1"),
    "one's role": lambda w: setattr(w.user, "role", Role.viewer),
    "one's membership": lambda w: factories.make_member(w.session, w.project, Role.viewer, user=w.user),
    "one's session": lambda w: w.session.execute(delete(WebSession)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_gives_another_token(world: World, change: str) -> None:
    before = world.mark()
    assert before is not None
    assert world.mark() == before
    CHANGES[change](world)
    assert world.mark() != before


def test_hidden_changes_keep_the_token(world: World) -> None:
    before = world.mark()
    beat(world.session)
    other = factories.make_project(world.session)
    factories.make_round(world.session, other)
    factories.make_verdict(
        world.session,
        factories.make_assignment(
            world.session,
            factories.make_candidate_set(world.session, other),
            factories.make_critic(world.session, other),
        ),
    )
    assert world.mark() == before


def test_the_database_token_is_stable_until_a_transaction_ends(committed_db: CommittedDatabase) -> None:
    def moment() -> str | None:
        with committed_db.sessions() as session:
            return change_tokens.database_token(session)

    first = moment()
    assert first is not None
    with committed_db.sessions.begin() as writing:
        factories.make_user(writing)
        during = moment()
        assert change_tokens.database_token(writing) is None
    assert moment() not in (first, during)


def test_an_unknown_project_has_no_token(session: Session) -> None:
    assert change_tokens.project_token(session, "nowhere", "") is None
