"""Tuning rounds as a worker sees them: leases, fences, and what the end of a round changes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.models import CandidateSet, ModelVersion, Project, Round, RoundEvent, RoundState
from app.services.kernel.actors import SYSTEM, Actor
from app.services.projects import projects
from app.services.rounds import comparisons, lease, rounds, versions
from app.services.rounds.lease import RoundClaim, RoundResult
from tests import factories
from tests.app.services.feedback import judge, start_prepared


@pytest.fixture
def project(session: Session) -> Project:
    return factories.make_project(session)


@pytest.fixture
def critic(session: Session, project: Project) -> Actor:
    return factories.make_critic(session, project)


@pytest.fixture
def queued(session: Session, project: Project, critic: Actor) -> Round:
    judge(session, project, critic)
    return start_prepared(session, project)


def take(session: Session, worker: str = "a") -> RoundClaim:
    claim = lease.claim_round(session, worker=worker)
    assert claim is not None
    return claim


def silence(session: Session) -> None:
    session.execute(update(Round).values(beats_at=func.now() - timedelta(hours=1)))


def fresh(session: Session, claim: RoundClaim) -> Round:
    return session.get_one(Round, claim.round_id, populate_existing=True)


def result(*, activate: bool = True, seconds: float | None = 30.0) -> RoundResult:
    return RoundResult(
        adapter="a" * 64,
        activate=activate,
        reason="Better." if activate else "No clear difference.",
        decision={"interval": {"low": 0.1}},
        metrics={"score": 0.6, "parent": {"score": 0.5}},
        prompts_hash="b" * 64,
        settings_hash="c" * 64,
        scores={"mine": 1},
        parent_scores={"its": 2},
        seconds=seconds,
    )


class TestClaimRound:
    def test_the_oldest_that_waits_once(self, session: Session, queued: Round) -> None:
        other = factories.make_round(session, factories.make_project(session))
        claim = take(session)
        assert (claim.round_id, claim.fence) == (queued.id, 2)
        found = fresh(session, claim)
        assert (found.state, found.worker) == (RoundState.preparing, "a")
        assert found.started_at is not None
        assert take(session, "b").round_id == other.id
        assert lease.claim_round(session, worker="c") is None
        assert not lease.is_round_waiting(session)

    def test_one_that_went_wrong_lets_others_go_first(self, session: Session, queued: Round) -> None:
        others = [factories.make_round(session, factories.make_project(session)).id for _index in range(2)]
        assert lease.release(session, take(session), error="no store", at_once=False)
        assert (second := take(session)).round_id == others[0]
        assert lease.release(session, second, error="no store", at_once=False)
        order = []
        for _index in range(5):
            order.append((claim := take(session)).round_id)
            assert lease.release(session, claim, error="no store", at_once=False)
        assert order == [others[1], others[0], others[1], queued.id, others[0]]
        assert lease.release(session, take(session))  # stopped with its worker
        assert take(session).round_id == others[1]

    @pytest.mark.parametrize("state", [RoundState.preparing, RoundState.training, RoundState.evaluating])
    def test_a_silent_workers_round_is_taken_over(self, session: Session, queued: Round, state: RoundState) -> None:
        first = take(session)
        lease.beat(session, first, state=state)
        silence(session)
        second = take(session, "b")
        assert (second.round_id, second.fence) == (first.round_id, first.fence + 1)
        assert not lease.beat(session, first).held
        assert lease.beat(session, second).held

    def test_is_named_by_its_number_and_project(self, session: Session, queued: Round, project: Project) -> None:
        queued.number = 7
        session.flush()
        assert take(session).name == f"training round 7 of {project.slug}"

    def test_a_silent_workers_cancelled_round_is_cancelled(self, session: Session, queued: Round) -> None:
        first = take(session)
        rounds.cancel(session, SYSTEM, queued.id)
        silence(session)
        assert lease.claim_round(session, worker="b") is None
        assert fresh(session, first).state == RoundState.cancelled

    def test_taken_up_too_often_without_progress_it_failed(self, session: Session, queued: Round) -> None:
        for _ in range(lease.MAX_TRIES):
            claim = take(session)
            silence(session)
        assert lease.claim_round(session, worker="b") is None
        found = fresh(session, claim)
        assert found.state == RoundState.failed
        assert found.error == "Stopped 5 times without progress: its worker or process was stopped each time."

    def test_a_finished_epoch_starts_the_count_anew(self, session: Session, queued: Round) -> None:
        for _ in range(2 * lease.MAX_TRIES):
            claim = take(session)
            lease.beat(session, claim, advanced=True)
            silence(session)
        assert fresh(session, claim).state == RoundState.preparing


class TestBeat:
    def test_says_how_far_it_is(self, session: Session, queued: Round) -> None:
        claim = take(session)
        beat = lease.beat(session, claim, state=RoundState.training, progress={"epoch": 2})
        assert (beat.held, beat.cancelling) == (True, False)
        assert (fresh(session, claim).state, fresh(session, claim).progress) == (RoundState.training, {"epoch": 2})

    def test_tells_that_it_should_be_cancelled(self, session: Session, queued: Round) -> None:
        claim = take(session)
        rounds.cancel(session, SYSTEM, queued.id)
        beat = lease.beat(session, claim, state=RoundState.training)
        assert (beat.held, beat.cancelling) == (True, True)
        assert fresh(session, claim).state == RoundState.cancelling
        assert lease.finish_cancel(session, claim)
        assert not lease.beat(session, claim).held
        assert fresh(session, claim).state == RoundState.cancelled


class TestEvents:
    def lines(self, *epochs: int) -> list[tuple[int, dict[str, Any]]]:
        return [(number, {"kind": "epoch", "epoch": epoch}) for number, epoch in enumerate(epochs, start=1)]

    def test_kept_once_and_replaced_when_they_come_again(self, session: Session, queued: Round) -> None:
        claim = take(session)
        assert lease.add_events(session, claim, self.lines(1, 2))
        assert lease.add_events(session, claim, self.lines(1, 3))
        assert lease.add_events(session, claim, [])
        assert [one.data["epoch"] for one in rounds.events(session, queued)] == [1, 3]
        assert [one.data["epoch"] for one in rounds.events(session, queued, after=1)] == [3]
        lease.delete_events(session, claim)
        assert rounds.events(session, queued) == []

    def test_not_from_who_lost_the_lease(self, session: Session, queued: Round) -> None:
        first = take(session)
        silence(session)
        second = take(session, "b")
        lease.add_events(session, second, self.lines(1))
        assert not lease.add_events(session, first, self.lines(7))
        lease.delete_events(session, first)
        assert session.scalars(select(RoundEvent.data)).all() == [{"kind": "epoch", "epoch": 1}]


class TestFinish:
    def test_registers_and_activates(self, session: Session, project: Project, queued: Round) -> None:
        parent = project.active_version_id
        stale = factories.make_candidate_set(session, project)
        claim = take(session)
        version = lease.finish(session, claim, result())
        assert version is not None
        assert (version.number, version.parent_id, version.round_id) == (1, parent, queued.id)
        assert (version.adapter, version.metrics["score"]) == ("a" * 64, 0.6)
        found = fresh(session, claim)
        assert (found.state, found.version_id, found.worker) == (RoundState.succeeded, version.id, None)
        assert found.decision == {"activate": True, "reason": "Better.", "interval": {"low": 0.1}}
        assert found.metrics["seconds_per_work"] > 0
        assert session.get_one(Project, project.id, populate_existing=True).active_version_id == version.id
        assert session.get_one(CandidateSet, stale.id, populate_existing=True).state == "replaced"
        key = {"prompts_hash": "b" * 64, "settings_hash": "c" * 64}
        assert versions.known_scores(session, version.id, **key) == {"mine": 1}
        assert parent is not None
        assert versions.known_scores(session, parent, **key) == {"its": 2}

    def test_left_to_the_admin_when_the_rule_says_so(self, session: Session, project: Project, queued: Round) -> None:
        parent = project.active_version_id
        version = lease.finish(session, take(session), result(activate=False, seconds=None))
        assert version is not None
        assert session.get_one(Project, project.id, populate_existing=True).active_version_id == parent
        assert "seconds" not in session.get_one(Round, queued.id, populate_existing=True).metrics

    def test_held_at_the_gate_until_critics_have_compared(
        self, session: Session, project: Project, critic: Actor
    ) -> None:
        judge(session, project, critic)
        projects.update_project(session, SYSTEM, project.slug, {"blind_gate": True})
        prompts = [str(factories.make_prompt(session, project).id) for _ in range(30)]
        start_prepared(session, project)
        part = {"gold": {"greedy": {"rationales": [["a boat"]] * 30}}, "prompts": prompts}
        other = {"gold": {"greedy": {"rationales": [["a ship"]] * 30}}, "prompts": prompts}
        before = project.active_version_id
        claim = take(session)
        version = lease.finish(session, claim, replace(result(), scores=part, parent_scores=other))
        assert version is not None
        session.refresh(project)
        assert project.active_version_id == before
        assert "Blind comparison 1 decides" in fresh(session, claim).decision["reason"]
        while (pair := comparisons.next_pair(session, critic, project)) is not None:
            comparisons.prefer(session, critic, project, pair.id, "left" if pair.left == "a boat" else "right")
        session.refresh(project)
        assert project.active_version_id == version.id
        assert fresh(session, claim).decision["activate"] is True

    def test_not_activated_when_another_version_became_active(
        self, session: Session, project: Project, queued: Round
    ) -> None:
        claim = take(session)
        other = factories.make_version(session, project, number=1)
        versions.activate(session, SYSTEM, other.id)
        version = lease.finish(session, claim, result())
        assert version is not None
        assert version.number == 2
        assert session.get_one(Project, project.id, populate_existing=True).active_version_id == other.id
        decision = fresh(session, claim).decision
        assert decision["activate"] is False
        assert decision["reason"].endswith("Not activated: another version became active during the round.")

    def test_not_by_who_lost_the_lease_nor_twice(self, session: Session, project: Project, queued: Round) -> None:
        first = take(session)
        silence(session)
        second = take(session, "b")
        assert lease.finish(session, first, result()) is None
        assert lease.finish(session, second, result()) is not None
        assert lease.finish(session, second, result()) is None
        made = select(func.count()).select_from(ModelVersion).where(ModelVersion.project_id == project.id)
        assert session.scalar(made) == 2

    def test_one_that_is_done_is_done_though_it_was_to_be_cancelled(self, session: Session, queued: Round) -> None:
        claim = take(session)
        rounds.cancel(session, SYSTEM, queued.id)
        assert lease.finish(session, claim, result()) is not None
        assert fresh(session, claim).state == RoundState.succeeded


class TestFail:
    def test_with_its_reason(self, session: Session, queued: Round) -> None:
        claim = take(session)
        assert lease.fail(session, claim, "out of memory")
        assert (fresh(session, claim).state, fresh(session, claim).error) == (RoundState.failed, "out of memory")
        assert not lease.fail(session, claim, "again")

    def test_while_it_is_cancelled_it_is_cancelled(self, session: Session, queued: Round) -> None:
        claim = take(session)
        rounds.cancel(session, SYSTEM, queued.id)
        assert lease.fail(session, claim, "killed")
        assert (fresh(session, claim).state, fresh(session, claim).error) == (RoundState.cancelled, None)


class TestRelease:
    def test_goes_on_elsewhere_at_once(self, session: Session, queued: Round) -> None:
        claim = take(session)
        assert lease.release(session, claim)
        assert (fresh(session, claim).state, fresh(session, claim).tries) == (RoundState.queued, 0)
        again = take(session, "b")
        assert again.fence == claim.fence + 1
        assert not lease.release(session, claim)

    def test_a_failed_try_counts(self, session: Session, queued: Round) -> None:
        for _ in range(lease.MAX_TRIES):
            claim = take(session)
            assert lease.release(session, claim, error="it ended with SIGKILL", counts=True)
        assert lease.claim_round(session, worker="b") is None
        error = fresh(session, claim).error
        assert error == "Stopped 5 times without progress: it ended with SIGKILL."

    def test_while_it_is_cancelled_it_is_cancelled(self, session: Session, queued: Round) -> None:
        claim = take(session)
        rounds.cancel(session, SYSTEM, queued.id)
        assert lease.release(session, claim)
        assert fresh(session, claim).state == RoundState.cancelled
