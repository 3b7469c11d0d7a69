"""Preparing a round: the snapshot is of one moment, whatever happens while it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.errors import Conflict
from app.models import (
    CandidateSet,
    Pick,
    Project,
    Prompt,
    PromptState,
    Round,
    RoundState,
    Snapshot,
    SnapshotItem,
    Verdict,
    VerdictKind,
    VerdictState,
)
from app.services.acceptance import rules
from app.services.acceptance.positions import current_position
from app.services.acceptance.rules import Moment
from app.services.kernel.actors import SYSTEM, Actor
from app.services.kernel.leases import LeaseLostError
from app.services.kernel.store import get_store
from app.services.projects import projects
from app.services.rounds import lease, preparing, rounds, snapshots, training_set
from app.services.rounds.lease import RoundClaim
from tests import factories
from tests.app.services.feedback import choose_rows, judge
from tests.conftest import CommittedDatabase
from tests.statements import recorded


@pytest.fixture
def session(committed_db: CommittedDatabase) -> Iterator[Session]:
    """Commits count here: a position is of committed transactions."""
    with committed_db.sessions() as session:
        yield session


@pytest.fixture
def project(session: Session) -> Project:
    return factories.make_project(session, guard_per_rationale=1)


@pytest.fixture
def critic(session: Session, project: Project) -> Actor:
    return factories.make_critic(session, project)


def start(session: Session, project: Project) -> RoundClaim:
    """A started round, taken up to be prepared."""
    session.commit()
    rounds.start(session, SYSTEM, project)
    session.commit()
    return take(session)


def take(session: Session, worker: str = "a") -> RoundClaim:
    claim = lease.claim_round(session, worker=worker, prepared=False)
    session.commit()
    assert claim is not None
    return claim


def snapshot_of(session: Session, claim: RoundClaim) -> Snapshot:
    session.rollback()
    found = session.get_one(Round, claim.round_id, populate_existing=True)
    return session.get_one(Snapshot, found.snapshot_id, populate_existing=True)


def change_to_none(session: Session, prompt: Prompt) -> Verdict:
    """Its critic takes back what they picked."""
    old = session.scalars(select(Verdict).where(Verdict.prompt_id == prompt.id, Verdict.current)).one()
    old.current = False
    session.flush()
    changed = factories.add(
        session,
        Verdict(
            project_id=old.project_id,
            assignment_id=old.assignment_id,
            candidate_set_id=old.candidate_set_id,
            prompt_id=old.prompt_id,
            critic_id=old.critic_id,
            kind=VerdictKind.none_fit,
            supersedes=old.id,
            shown=old.shown,
        ),
    )
    rules.refresh_prompt(session, prompt.id)
    session.commit()
    return changed


def at(moment: float, deed: Callable[[], object]) -> Callable[[float], None]:
    """A report that does `deed` once so much is done."""
    done: list[object] = []

    def report(share: float) -> None:
        if share >= moment and not done:
            done.append(deed())

    return report


class TestPosition:
    """What counts is what stood when the round was started."""

    def moment(self, session: Session, project: Project) -> Moment:
        session.commit()
        found = Moment(current_position(session), project.revision_id or 0)
        session.commit()
        return found

    def accepted(self, session: Session, project: Project, moment: Moment) -> list[int]:
        found = choose_rows(session, project, at=moment)
        return sorted(row.verdict_id for row in (*found.rationales, *found.heldout) if row.verdict_id)

    def test_later_verdicts_do_not_count(self, session: Session, project: Project, critic: Actor) -> None:
        judge(session, project, critic)
        moment = self.moment(session, project)
        before = self.accepted(session, project, moment)
        judge(session, project, critic)
        session.commit()
        assert self.accepted(session, project, moment) == before
        assert len(before) == 1
        assert len(self.accepted(session, project, self.moment(session, project))) == 2

    def test_one_that_was_under_way_does_not_count(
        self, committed_db: CommittedDatabase, session: Session, project: Project, critic: Actor
    ) -> None:
        judge(session, project, critic)
        session.commit()
        with committed_db.sessions() as slow:
            judge(slow, slow.get_one(Project, project.id), critic)
            moment = self.moment(session, project)
            slow.commit()
        assert len(self.accepted(session, project, moment)) == 1

    def test_superseded_since_they_count_as_they_stood(self, session: Session, project: Project, critic: Actor) -> None:
        judged = judge(session, project, critic)
        moment = self.moment(session, project)
        before = self.accepted(session, project, moment)
        change_to_none(session, judged)
        assert self.accepted(session, project, moment) == before != []
        assert self.accepted(session, project, self.moment(session, project)) == []

    def test_decided_since_the_critics_count(self, session: Session, project: Project, critic: Actor) -> None:
        judged = judge(session, project, critic)
        moment = self.moment(session, project)
        before = self.accepted(session, project, moment)
        said = session.scalars(select(Verdict).where(Verdict.prompt_id == judged.id)).one()
        reviewer = factories.make_critic(session, project)
        candidate_set = session.get_one(CandidateSet, said.candidate_set_id)
        candidate_set.slots = 2
        decided = factories.make_verdict(
            session, factories.make_assignment(session, candidate_set, reviewer, slot=2), kind=VerdictKind.none_fit
        )
        decided.state = VerdictState.decided
        session.commit()
        assert self.accepted(session, project, moment) == before != []
        assert self.accepted(session, project, self.moment(session, project)) == []

    def test_counted_only_since_it_does_not_count(self, session: Session, project: Project, critic: Actor) -> None:
        judged = judge(session, project, critic)
        late = session.scalars(select(Verdict).where(Verdict.prompt_id == judged.id)).one()
        late.state = VerdictState.kept_aside
        moment = self.moment(session, project)
        session.execute(
            update(Verdict).where(Verdict.id == late.id).values(state="counted", xid=func.pg_current_xact_id())
        )
        session.commit()
        assert self.accepted(session, project, moment) == []
        assert len(self.accepted(session, project, self.moment(session, project))) == 1

    def test_held_or_retired_since_a_prompt_is_left_out(
        self, session: Session, project: Project, critic: Actor
    ) -> None:
        judged = [judge(session, project, critic) for _ in range(3)]
        moment = self.moment(session, project)
        judged[0].state, judged[1].state = PromptState.held, PromptState.retired
        session.commit()
        assert [row.prompt.id for row in choose_rows(session, project, at=moment).rationales] == [judged[2].id]

    def test_votes_count_by_the_settings_of_then(self, session: Session) -> None:
        project = factories.make_project(session, overlap=2, aggregation="any")
        judge(session, project, factories.make_critic(session, project))
        session.execute(update(CandidateSet).values(slots=2))
        moment = self.moment(session, project)
        before = self.accepted(session, project, moment)
        projects.update_project(session, SYSTEM, project.slug, {"aggregation": "all"})
        session.commit()
        assert self.accepted(session, project, moment) == before != []
        assert self.accepted(session, project, self.moment(session, project)) == []

    def test_what_is_erased_since_is_left_out(self, session: Session, project: Project, critic: Actor) -> None:
        judged = judge(session, project, critic)
        moment = self.moment(session, project)
        session.execute(update(Verdict).where(Verdict.prompt_id == judged.id).values(deleted=True, current=False))
        session.commit()
        assert self.accepted(session, project, moment) == []


@pytest.mark.parametrize("step", [1, 1000])
class TestPrepare:
    @pytest.fixture(autouse=True)
    def steps(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        monkeypatch.setattr(training_set, "BATCH_SIZE", step)
        monkeypatch.setattr(training_set, "ID_BATCH_SIZE", step)
        monkeypatch.setattr(snapshots, "ITEMS_AT_ONCE", step)

    def test_makes_the_snapshot_of_the_start(self, session: Session, project: Project, critic: Actor) -> None:
        for _ in range(4):
            judge(session, project, critic, picks=2)
        shares: list[float] = []
        claim = start(session, project)
        later = judge(session, project, critic)
        session.commit()
        preparing.prepare(claim, report=shares.append)
        snapshot = snapshot_of(session, claim)
        assert snapshot.prepared
        rows = snapshots.read(snapshot)
        assert later.id not in {row.prompt.id for row in rows if row.rationale}
        assert sum(row.rationale is not None for row in rows) == 8
        assert snapshot.card["counts"]["verdicts"] == 4
        assert len(get_store().read_bytes(str(snapshot.records_key)).splitlines()) == 4
        items = session.scalars(
            select(SnapshotItem).where(SnapshotItem.snapshot_id == snapshot.id).order_by(SnapshotItem.position)
        ).all()
        assert [(one.position, one.role, one.prompt_id, one.verdict_id) for one in items] == [
            (place, row.role, row.prompt.id, row.verdict_id) for place, row in enumerate(rows)
        ]
        found = session.get_one(Round, claim.round_id)
        assert (found.state, found.worker, found.tries) == (RoundState.preparing, None, 0)
        assert shares == sorted(shares)
        assert shares[-1] == 1
        # What was judged later is fresh for the next round.
        assert session.scalars(select(Prompt.id).where(Prompt.fresh)).all() == [later.id]

    def test_fresh_again_since_the_start_is_not_lost(self, session: Session, project: Project, critic: Actor) -> None:
        lost, again, other = (judge(session, project, critic) for _ in range(3))
        claim = start(session, project)

        def change_their_minds() -> None:
            change_to_none(session, lost)
            changed = change_to_none(session, again)
            changed.kind = VerdictKind.picked
            factories.add(session, Pick(verdict_id=changed.id, candidate_id=changed.shown[0]))
            rules.refresh_prompt(session, again.id)
            session.commit()

        preparing.prepare(claim, report=at(0.9, change_their_minds))
        snapshot = snapshot_of(session, claim)
        assert {row.prompt.id for row in snapshots.read(snapshot) if row.rationale} == {lost.id, again.id, other.id}
        assert session.scalars(select(Prompt.id).where(Prompt.fresh)).all() == [again.id]
        assert rules.fresh_count(session, project) == 1

    def test_killed_it_is_made_anew_and_the_same(self, session: Session, project: Project, critic: Actor) -> None:
        for _ in range(3):
            judge(session, project, critic)
        claim = start(session, project)

        class Killed(Exception):
            pass

        def die() -> None:
            raise Killed

        for share in (0.1, 0.4, 0.6, 0.75, 0.94, 0.97):
            with pytest.raises(Killed):
                preparing.prepare(claim, report=at(share, die))
            assert snapshots.list_snapshots(session, SYSTEM, project).items == []
            judge(session, project, critic)
            session.execute(update(Round).values(beats_at=None, tries=1))
            session.commit()
            claim = take(session)
        preparing.prepare(claim)
        snapshot = snapshot_of(session, claim)
        assert (snapshot.number, snapshot.counts["rationale"] + snapshot.counts["heldout"]) == (1, 3)
        n = select(func.count()).where(SnapshotItem.snapshot_id == snapshot.id)
        assert session.scalar(n) == sum(snapshot.counts[role] for role in ("rationale", "guard", "val", "heldout"))

    def test_whoever_lost_the_lease_writes_nothing_more(
        self, session: Session, project: Project, critic: Actor
    ) -> None:
        judge(session, project, critic)
        first = start(session, project)
        taken: list[RoundClaim] = []

        def take_over() -> None:
            session.execute(update(Round).values(beats_at=None))
            session.commit()
            taken.append(take(session, "b"))

        with pytest.raises(LeaseLostError):
            preparing.prepare(first, report=at(0.6, take_over))
        assert session.get_one(Round, first.round_id, populate_existing=True).worker == "b"
        session.commit()
        preparing.prepare(taken[0])
        with pytest.raises(LeaseLostError):
            preparing.prepare(first)
        assert snapshot_of(session, taken[0]).counts["rationale"] == 1

    def test_what_cannot_be_trained_on_fails(self, session: Session, project: Project, critic: Actor) -> None:
        judged = judge(session, project, critic)
        claim = start(session, project)
        judged.state = PromptState.retired
        session.commit()
        with pytest.raises(Conflict, match="0 accepted explanations"):
            preparing.prepare(claim)
        assert session.get_one(Round, claim.round_id, populate_existing=True).snapshot_id is None


def test_a_start_is_a_few_statements(
    committed_db: CommittedDatabase, session: Session, project: Project, critic: Actor
) -> None:
    def statements() -> int:
        with recorded(committed_db.engine) as seen:
            started = rounds.start(session, SYSTEM, project)
            session.commit()
        started.state = RoundState.cancelled
        session.commit()
        return len(seen)

    judge(session, project, critic)
    session.commit()
    few = statements()
    for _ in range(5):
        judge(session, project, critic)
    session.commit()
    assert statements() == few < 20
