"""Where critics disagree, by following the feed of verdicts: complete, and without verdicts that do not count."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Assignment, CandidateSet, Project, SetAgreement, Verdict, VerdictKind, VerdictState
from app.services.erasure import tombstones
from app.services.judging import change
from app.services.kernel.actors import Actor
from app.services.kernel.verdict_schema import VerdictIn
from app.services.quality import set_agreements
from tests import factories
from tests.conftest import CommittedDatabase


@pytest.fixture
def project(committed_db: CommittedDatabase) -> Project:
    with committed_db.sessions.begin() as session:
        return factories.make_project(session, overlap=2)


def offer(session: Session, project: Project, *, slots: int = 2) -> CandidateSet:
    return factories.make_candidate_set(session, session.get_one(Project, project.id), slots=slots)


def say(session: Session, made: CandidateSet, *picks: Sequence[int]) -> list[tuple[Actor, Verdict]]:
    """Have one critic after another pick the candidates at these positions."""
    said = []
    for slot, positions in enumerate(picks, start=1):
        critic = factories.make_critic(session, session.get_one(Project, made.project_id))
        claim = factories.make_assignment(session, session.get_one(CandidateSet, made.id), critic, slot=slot)
        kind = VerdictKind.picked if positions else VerdictKind.none_fit
        chosen = [claim.shown[position] for position in positions]
        said.append((critic, factories.make_verdict(session, claim, kind=kind, picks=chosen)))
    return said


def kept(db: CommittedDatabase) -> dict[int, bool]:
    """The stored agreement after all verdicts were processed: whether critics disagree, by set."""
    with db.sessions.begin() as session:
        while set_agreements.follow_feed(session):
            pass
        return {one.candidate_set_id: one.apart for one in session.scalars(select(SetAgreement))}


def test_sets_of_two_or_more_critics_are_kept(committed_db: CommittedDatabase, project: Project) -> None:
    with committed_db.sessions.begin() as session:
        same, none, differ, partly, alone = (offer(session, project) for _ in range(5))
        say(session, same, [0, 2], [2, 0])
        say(session, none, [], [])
        say(session, differ, [0], [])
        say(session, partly, [0], [0, 1])
        say(session, alone, [0])
    assert kept(committed_db) == {same.id: False, none.id: False, differ.id: True, partly.id: True}


def test_changed_sets_are_recomputed(committed_db: CommittedDatabase, project: Project) -> None:
    with committed_db.sessions.begin() as session:
        made = offer(session, project)
        (_, first), (critic, second) = say(session, made, [0], [1])
    assert kept(committed_db) == {made.id: True}
    with committed_db.sessions.begin() as session:
        picks = [str(session.get_one(Verdict, second.id).shown[0])]
        change.change(session, critic, second.id, VerdictIn.model_validate({"kind": "picked", "picks": picks}))
    assert kept(committed_db) == {made.id: False}
    with committed_db.sessions.begin() as session:
        tombstones.tombstone_verdicts(session, [first.id])
    assert kept(committed_db) == {}


def test_uncounted_verdicts_are_left_out(committed_db: CommittedDatabase, project: Project) -> None:
    with committed_db.sessions.begin() as session:
        gold, again, skipped = (offer(session, project) for _ in range(3))
        say(session, gold, [0], [1])[1][1].state = VerdictState.gold
        repeated = say(session, again, [0], [1])[1][1]
        session.get_one(Assignment, repeated.assignment_id).repeat = True
        say(session, skipped, [0], [1])[1][1].kind = VerdictKind.skipped
    assert kept(committed_db) == {}


def test_the_feed_is_processed_in_batches(
    committed_db: CommittedDatabase, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(set_agreements, "BATCH_SIZE", 3)
    with committed_db.sessions.begin() as session:
        sets = [offer(session, project) for _ in range(4)]
        for made in sets:
            say(session, made, [0], [1])
    for seen in (3, 3, 2, 0):
        with committed_db.sessions.begin() as session:
            assert set_agreements.follow_feed(session) == seen
    assert kept(committed_db) == {made.id: True for made in sets}


def test_a_late_commit_is_not_missed(committed_db: CommittedDatabase, project: Project) -> None:
    with committed_db.sessions.begin() as session:
        first, second = offer(session, project), offer(session, project)
    with committed_db.sessions.begin() as slow:
        say(slow, first, [0], [1])
        with committed_db.sessions.begin() as quick:
            say(quick, second, [0], [1])
        assert kept(committed_db) == {}
    assert kept(committed_db) == {first.id: True, second.id: True}
