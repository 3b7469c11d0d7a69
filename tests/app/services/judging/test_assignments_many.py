"""Many critics at once, some slow, some dying: whatever happens, the database is in order at the end."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, create_engine, func, select, text, update
from sqlalchemy.orm import Session, sessionmaker

from app.db.engine import sqlalchemy_url
from app.models import Assignment, AssignmentState, CandidateSet, CandidateSetState, Project, Verdict
from app.services.judging import assignments
from app.services.judging.claim import Claim
from app.services.kernel.actors import Actor
from app.services.kernel.verdict_schema import parse_verdict
from tests import factories, judging
from tests.app.services.invariants import broken
from tests.conftest import CommittedDatabase

CONNECTIONS = 16  # as many as a web process has


class Crowd:
    """Critics that share a few connections, as the requests of a web process do."""

    def __init__(self, engine: Engine, project: Project, seed: int) -> None:
        self.sessions = sessionmaker(engine, expire_on_commit=False)
        self.project = project
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    def note(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def claim(self, critic: Actor) -> Claim | None:
        with self.sessions.begin() as session:
            return judging.claim(session, critic, self.project)

    def lapse(self, assignment_id: int) -> None:
        """Let a claim's time be over, and have the sweep look."""
        with self.sessions.begin() as session:
            past = func.now() - func.make_interval(0, 0, 0, 0, 1)
            session.execute(update(Assignment).where(Assignment.id == assignment_id).values(expires_at=past))
        with self.sessions.begin() as session:
            assignments.expire_claims(session)

    def give(self, critic: Actor, claimed: Claim, dice: random.Random) -> None:
        kind = dice.choices(("picked", "none_fit", "skipped"), (6, 3, 1))[0]
        picks = [one["id"] for one in claimed.candidates[: dice.randint(1, 2)]] if kind == "picked" else []
        said = parse_verdict({"kind": kind, "picks": picks})
        with self.sessions.begin() as session:
            out = judging.give(session, critic, claimed.assignment_id, said)
        self.note(f"{kind} {out.status}")

    def work(self, number: int, critic: Actor) -> None:
        """Claim and judge until nothing is left; now and then be slow, give back, or die with the claim in hand."""
        dice = random.Random(f"{self.seed}-{number}")
        while (claimed := self.claim(critic)) is not None:
            fate = dice.random()
            if fate < 0.05:
                self.note("died")
                return
            if fate < 0.1:
                with self.sessions.begin() as session:
                    assignments.release(session, critic, claimed.assignment_id)
            elif fate < 0.2:
                self.lapse(claimed.assignment_id)
                self.give(critic, claimed, dice)
            else:
                self.give(critic, claimed, dice)


def rush(database: CommittedDatabase, *, critics: int, sets: int, overlap: int) -> None:
    with database.sessions() as session:
        project = factories.make_project(session, overlap=overlap, auto_rounds=False, max_open=2)
        images = [factories.make_image(session) for _ in range(3)]
        for number in range(sets):
            prompt = factories.make_prompt(session, project, images=[images[number % 3]])
            factories.make_candidate_set(session, project, prompt=prompt, slots=overlap)
        actors = [factories.make_critic(session, project) for _ in range(critics)]
        session.commit()
    engine = create_engine(sqlalchemy_url(database.url), pool_size=CONNECTIONS, max_overflow=0, pool_timeout=120)
    try:
        crowd = Crowd(engine, project, seed=overlap)
        with ThreadPoolExecutor(critics) as threads:
            list(threads.map(crowd.work, range(critics), actors))
        with database.sessions() as session:
            assert broken(session) == {}
            dead = session.scalar(select(func.count()).where(Assignment.state == AssignmentState.open)) or 0
            assert dead == crowd.counts["died"]
            session.execute(update(Assignment).values(expires_at=text("now() - interval '1 minute'")))
            session.commit()
            assert assignments.expire_claims(session) == dead
            session.commit()
            assert broken(session) == {}
        finish(crowd, database, overlap)
        with database.sessions() as session:
            assert broken(session) == {}
            answered = sum(count for what, count in crowd.counts.items() if what.endswith(("201", "202")))
            assert session.scalar(select(func.count()).select_from(Verdict)) == answered
            states = session.execute(
                select(CandidateSet.state, CandidateSet.taken, func.count()).group_by(
                    CandidateSet.state, CandidateSet.taken
                )
            ).all()
            assert [tuple(row) for row in states] == [(CandidateSetState.judged, overlap, sets)]
    finally:
        engine.dispose()


def finish(crowd: Crowd, database: CommittedDatabase, overlap: int) -> None:
    """Fresh critics, one after another, take what the dead and the skipped left."""

    def last(session: Session) -> bool:
        left = select(CandidateSet.id).where(CandidateSet.state == CandidateSetState.ready).limit(1)
        return session.scalar(left) is None

    for _ in range(4 * overlap):
        with database.sessions() as session:
            if last(session):
                return
            critic = factories.make_critic(session, crowd.project)
            session.commit()
        while (claimed := crowd.claim(critic)) is not None:
            with crowd.sessions.begin() as session:
                out = judging.give(session, critic, claimed.assignment_id, parse_verdict({"kind": "none_fit"}))
            crowd.note(f"last {out.status}")


@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_fifty_critics(committed_db: CommittedDatabase, overlap: int) -> None:
    rush(committed_db, critics=50, sets=20, overlap=overlap)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_two_hundred_critics(committed_db: CommittedDatabase, overlap: int) -> None:
    rush(committed_db, critics=200, sets=300, overlap=overlap)
