"""Tuning rounds as people see them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.errors import Conflict, Forbidden, NotFound
from app.models import AuditEvent, Project, Prompt, Role, Round, RoundState, RoundTrigger, Snapshot, Split
from app.services.acceptance import rules
from app.services.kernel.actors import SYSTEM, Actor
from app.services.rounds import estimate, lease, preparing, rounds
from tests import factories
from tests.app.services.feedback import judge, prepare, start_prepared
from tests.conftest import CommittedDatabase


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.make_project(session, round_every=2)
    factories.make_prompt(session, project, split=Split.val, references=["because it is"])
    return project


@pytest.fixture
def critic(session: Session, project: Project) -> Actor:
    return factories.make_critic(session, project)


def end(session: Session, found: Round, state: RoundState) -> None:
    found.state = state
    session.flush()


class TestPreview:
    def test_what_a_round_would_train_on(self, session: Session, project: Project, critic: Actor) -> None:
        judge(session, project, critic, picks=2)
        judge(session, project, critic)
        seen = rounds.preview(session, SYSTEM, project)
        with pytest.raises(Forbidden):  # it counts what others' verdicts made of one's own
            rounds.preview(session, critic, project)
        assert (seen.n_prompts, seen.n_rationales, seen.n_guard, seen.n_val, seen.metric) == (2, 3, 2, 1, "rouge_l")
        assert session.scalar(select(func.count()).select_from(Snapshot)) == 0

    def test_in_a_large_project_it_is_estimated(
        self, session: Session, project: Project, critic: Actor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for picks in (2, 1, 0):
            judge(session, project, critic, picks=picks)
        for _ in range(3):
            factories.make_prompt(session, project)
        counted = rounds.preview(session, SYSTEM, project)
        monkeypatch.setattr(estimate, "COUNTED_PROMPTS", 1)
        seen = rounds.preview(session, SYSTEM, project)
        assert (counted.exact, seen.exact) == (True, False)
        assert replace(seen, exact=True) == counted
        monkeypatch.setattr(estimate, "SAMPLE", 1)  # the newest with an accepted rationale has one
        assert rounds.preview(session, SYSTEM, project).n_rationales == 2

    def test_a_large_project_without_references_holds_rationales_out(
        self, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(estimate, "COUNTED_PROMPTS", 1)
        other = factories.make_project(session)
        critic = factories.make_critic(session, other)
        empty = rounds.preview(session, SYSTEM, other)
        assert (empty.n_prompts, empty.n_rationales, empty.n_guard, empty.exact) == (0, 0, 0, True)
        for _ in range(10):
            judge(session, other, critic)
        seen = rounds.preview(session, SYSTEM, other)
        assert (seen.n_rationales, seen.n_heldout, seen.metric) == (5, 5, "heldout")

    def test_time_is_estimated_from_earlier_rounds(self, session: Session, project: Project, critic: Actor) -> None:
        judge(session, project, critic)
        before = rounds.preview(session, SYSTEM, project).estimated_seconds
        earlier = factories.make_round(session, project, state=RoundState.succeeded)
        earlier.metrics = {"seconds_per_work": 100.0}
        session.flush()
        after = rounds.preview(session, SYSTEM, project).estimated_seconds
        start = rounds.SECONDS_AT_START
        assert after - start == pytest.approx(100 * (before - start), rel=0.05)


class TestStart:
    def test_queues_a_round_of_what_stands_now(self, session: Session, project: Project, critic: Actor) -> None:
        judge(session, project, critic)
        made = rounds.start(session, factories.make_admin(session), project)
        assert (made.number, made.state, made.trigger) == (1, RoundState.queued, RoundTrigger.manual)
        assert made.parent_id == project.active_version_id
        assert (made.snapshot_id, made.revision_id) == (None, project.revision_id)
        assert made.position is not None
        assert prepare(session, made).counts["rationale"] == 1

    def test_nothing_accepted_is_a_conflict_with_the_count(self, session: Session, project: Project) -> None:
        factories.make_prompt(session, project)
        with pytest.raises(Conflict, match="0 accepted explanations") as caught:
            rounds.start(session, SYSTEM, project)
        assert caught.value.extra["count"] == 0
        assert session.scalar(select(func.count()).select_from(Snapshot)) == 0

    def test_one_at_a_time(self, session: Session, project: Project, critic: Actor) -> None:
        judge(session, project, critic)
        first = rounds.start(session, SYSTEM, project)
        with pytest.raises(Conflict, match="Training round 1 is still running"):
            rounds.start(session, SYSTEM, project)
        end(session, first, RoundState.failed)
        assert rounds.start(session, SYSTEM, project).number == 2

    def test_the_database_holds_it_to_one(self, session: Session, project: Project, critic: Actor) -> None:
        judge(session, project, critic)
        first = rounds.start(session, SYSTEM, project)
        second = Round(
            project_id=project.id,
            number=2,
            state=RoundState.queued,
            trigger=RoundTrigger.manual,
            position=first.position,
            revision_id=first.revision_id,
            parent_id=first.parent_id,
        )
        with pytest.raises(Conflict):
            rounds._flush_one_active(session, second)

    def test_needs_an_admin(self, session: Session, project: Project, critic: Actor) -> None:
        with pytest.raises(Forbidden):
            rounds.start(session, critic, project)


class TestStartIfDue:
    def newest(self, session: Session, project: Project) -> Round:
        found = session.scalar(select(Round).where(Round.project_id == project.id).order_by(Round.id.desc()))
        assert found is not None
        return found

    def test_when_enough_prompts_are_fresh(self, session: Session, project: Project, critic: Actor) -> None:
        judge(session, project, critic)
        assert not rounds.start_if_due(session, project.id)
        judge(session, project, critic)
        assert rounds.start_if_due(session, project.id)
        started = self.newest(session, project)
        assert (started.trigger, started.created_by) == (RoundTrigger.auto, None)
        assert not rounds.start_if_due(session, project.id)
        prepare(session, started)
        end(session, started, RoundState.succeeded)
        assert not rounds.start_if_due(session, project.id)
        for _ in range(2):
            judge(session, project, critic)
        assert rounds.start_if_due(session, project.id)

    def test_not_again_for_what_a_cancelled_one_was_started_by(self, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions() as session:
            project = factories.make_project(session, round_every=2)
            critic = factories.make_critic(session, project)
            for _ in range(2):
                judge(session, project, critic)
            session.commit()
            assert rounds.start_if_due(session, project.id)
            session.commit()
            rounds.cancel(session, SYSTEM, self.newest(session, project).id)
            session.commit()
            assert rules.fresh_count(session, project) == 0
            assert not rounds.start_if_due(session, project.id)
            judge(session, project, critic)
            session.commit()
            assert rules.fresh_count(session, project) == 1
            judge(session, project, critic)
            session.commit()
            assert rounds.start_if_due(session, project.id)
            session.commit()
            # All four are in the next one, and none is fresh any more.
            claim = lease.claim_round(session, worker="a", prepared=False)
            session.commit()
            assert claim is not None
            preparing.prepare(claim)
            assert session.scalar(select(func.count()).where(Prompt.fresh)) == 0
            started = session.get_one(Round, claim.round_id, populate_existing=True)
            assert session.get_one(Snapshot, started.snapshot_id).counts["prompts"] == 4

    def test_not_where_the_project_does_not_want_it(self, session: Session, critic: Actor) -> None:
        project = factories.make_project(session, round_every=1, auto_rounds=False)
        judge(session, project, factories.make_critic(session, project))
        assert not rounds.start_if_due(session, project.id)

    def test_many_at_once_start_one(self, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions() as session:
            project = factories.make_project(session, round_every=1)
            judge(session, project, factories.make_critic(session, project))
            session.commit()
        with committed_db.sessions() as one, committed_db.sessions() as two:
            assert rounds.start_if_due(one, project.id)
            assert not rounds.start_if_due(two, project.id)
            one.commit()
            two.commit()
            assert not rounds.start_if_due(two, project.id)


class TestCancel:
    def test_a_queued_round_at_once(self, session: Session, project: Project, critic: Actor) -> None:
        judge(session, project, critic)
        made = rounds.start(session, SYSTEM, project)
        assert rounds.cancel(session, SYSTEM, made.id).state == RoundState.cancelled
        assert made.finished_at is not None
        with pytest.raises(Conflict, match="was cancelled"):
            rounds.cancel(session, SYSTEM, made.id)

    def test_a_running_one_through_its_worker(self, session: Session, project: Project, critic: Actor) -> None:
        judge(session, project, critic)
        made = rounds.start(session, SYSTEM, project)
        assert lease.claim_round(session, worker="a", prepared=False) is not None
        assert rounds.cancel(session, SYSTEM, made.id).state == RoundState.cancelling
        assert rounds.cancel(session, SYSTEM, made.id).state == RoundState.cancelling
        with pytest.raises(Conflict):
            rounds.start(session, SYSTEM, project)


class TestRetry:
    def test_goes_on_with_its_snapshot(self, session: Session, project: Project, critic: Actor) -> None:
        judge(session, project, critic)
        made = rounds.start(session, SYSTEM, project)
        with pytest.raises(Conflict, match="still in progress"):
            rounds.retry(session, SYSTEM, made.id)
        prepare(session, made)
        with pytest.raises(Conflict, match="still in progress"):
            rounds.retry(session, SYSTEM, made.id)
        end(session, made, RoundState.failed)
        made.error = "out of memory"
        snapshot = made.snapshot_id
        again = rounds.retry(session, SYSTEM, made.id)
        assert (again.id, again.state, again.error, again.snapshot_id) == (made.id, "queued", None, snapshot)

    def test_not_beside_another_round(self, session: Session, project: Project, critic: Actor) -> None:
        judge(session, project, critic)
        made = rounds.start(session, SYSTEM, project)
        end(session, made, RoundState.cancelled)
        rounds.start(session, SYSTEM, project)
        with pytest.raises(Conflict, match="Training round 2 is still running"):
            rounds.retry(session, SYSTEM, made.id)


class TestRerun:
    def test_is_a_new_round_of_the_same_snapshot(self, session: Session, project: Project, critic: Actor) -> None:
        judge(session, project, critic)
        made = start_prepared(session, project)
        end(session, made, RoundState.succeeded)
        project.active_version_id = factories.make_version(session, project, number=1).id
        session.flush()
        again = rounds.rerun(session, SYSTEM, made.id)
        assert (again.number, again.trigger, again.snapshot_id) == (2, RoundTrigger.rerun, made.snapshot_id)
        assert again.parent_id == made.parent_id

    def test_not_of_an_erased_snapshot(self, session: Session, project: Project, critic: Actor) -> None:
        judge(session, project, critic)
        made = start_prepared(session, project)
        end(session, made, RoundState.succeeded)
        session.get_one(Snapshot, made.snapshot_id).redacted = 2
        with pytest.raises(Conflict, match="2 rows"):
            rounds.rerun(session, SYSTEM, made.id)


class TestLooking:
    def test_lists_and_finds(self, session: Session, project: Project, critic: Actor) -> None:
        for number in (1, 2, 3):
            factories.make_round(session, project, number=number, state=RoundState.failed)
        page = rounds.list_rounds(session, critic, project, limit=2)
        assert [one.number for one in page.items] == [3, 2]
        assert [one.number for one in rounds.list_rounds(session, critic, project, cursor=page.next).items] == [1]
        found = rounds.get_round_by_number(session, critic, project, 2)
        assert rounds.get_round(session, critic, found.id) is found
        stranger = factories.actor_of(factories.make_user(session, role=Role.reviewer))
        with pytest.raises(NotFound):
            rounds.get_round(session, stranger, found.id)
        with pytest.raises(NotFound, match="no training round 9"):
            rounds.get_round_by_number(session, critic, project, 9)

    def test_everything_is_in_the_audit_log(self, session: Session, project: Project, critic: Actor) -> None:
        judge(session, project, critic)
        made = rounds.start(session, SYSTEM, project)
        rounds.cancel(session, SYSTEM, made.id)
        rounds.retry(session, SYSTEM, made.id)
        noted = session.scalars(select(AuditEvent.action).where(AuditEvent.subject == f"round:{made.id}")).all()
        assert list(noted) == ["round.start", "round.cancel", "round.retry"]
