"""A critic's day."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from app.errors import NotFound
from app.models import Project, Round, RoundState, SnapshotItem, SnapshotItemRole, Verdict, VerdictKind
from app.services.kernel.actors import Actor
from app.services.read_models import critic_day
from tests import factories

FRIDAY = date(2026, 11, 20)


@pytest.fixture
def project(session: Session) -> Project:
    """A project."""
    return factories.make_project(session)


@pytest.fixture
def critic(session: Session, project: Project) -> Actor:
    """A critic."""
    return factories.make_critic(session, project)


def judged(session: Session, project: Project, critic: Actor, *, seconds: float | None = None) -> Verdict:
    """A verdict of a critic."""
    made = factories.make_assignment(session, factories.make_candidate_set(session, project), critic)
    verdict = factories.make_verdict(session, made)
    verdict.seconds = seconds
    session.flush()
    return verdict


def ended_round(session: Session, project: Project, number: int, gain: float, *verdicts: Verdict) -> Round:
    """A round that was trained on picks of some verdicts, and changed the score by `gain`."""
    snapshot = factories.make_snapshot(session, project, number=number)
    for position, verdict in enumerate(verdicts, start=1):
        row = SnapshotItem(
            snapshot_id=snapshot.id,
            position=position,
            role=SnapshotItemRole.rationale,
            prompt_id=verdict.prompt_id,
            verdict_id=verdict.id,
        )
        session.add(row)
    made = factories.make_round(session, project, number=number, state=RoundState.succeeded, snapshot=snapshot)
    made.metrics = {"metric": "rouge_l", "change": {"score": {"mean": gain, "low": 0.0, "high": 0.1, "n": 10}}}
    session.flush()
    return made


class TestLoadCriticDay:
    def test_counts_own_current_verdicts(self, session: Session, project: Project, critic: Actor) -> None:
        for seconds in (2.0, 4.0, 30.0, None):
            judged(session, project, critic, seconds=seconds)
        old = judged(session, project, critic, seconds=500.0)
        old.created_at = datetime.now(UTC) - timedelta(days=40)
        judged(session, project, factories.make_critic(session, project), seconds=1.0)
        judged(session, project, critic).current = False
        session.flush()
        day = critic_day.load_critic_day(session, critic, project)
        assert (day.today, day.total, day.seconds) == (4, 5, 4.0)
        assert day.hour == 4
        assert day.streak == 1

    def test_nothing_yet(self, session: Session, project: Project, critic: Actor) -> None:
        assert critic_day.load_critic_day(session, critic, project) == critic_day.CriticDay(0, 0, None, 0, 0, ())

    def test_a_stranger(self, session: Session, project: Project) -> None:
        with pytest.raises(NotFound):
            critic_day.load_critic_day(session, factories.actor_of(factories.make_user(session)), project)


class TestCredits:
    def test_only_rounds_with_ones_own_picks(self, session: Session, project: Project, critic: Actor) -> None:
        other = factories.make_critic(session, project)
        mine = [judged(session, project, critic) for _ in range(3)]
        theirs = judged(session, project, other)
        ended_round(session, project, 1, 0.061, *mine[:2], theirs)
        ended_round(session, project, 2, 0.02, theirs)
        ended_round(session, project, 3, -0.004, *mine)
        newest, oldest = critic_day.list_credits(session, critic, project)
        assert (newest.round, newest.picks, round(newest.gain, 6)) == (3, 3, -0.4)
        assert (oldest.round, oldest.picks, round(oldest.gain, 6)) == (1, 2, 6.1)
        assert (oldest.version, oldest.active) == (None, False)
        assert (newest.outcome, newest.n) == ("too few to tell", 10)

    @pytest.mark.parametrize(
        ("low", "high", "outcome"),
        [(0.01, 0.1, "better"), (-0.1, -0.01, "worse"), (-0.1, 0.1, "no clear difference")],
    )
    def test_say_what_the_change_means(
        self, session: Session, project: Project, critic: Actor, low: float, high: float, outcome: str
    ) -> None:
        made = ended_round(session, project, 1, 0.05, judged(session, project, critic))
        made.metrics = {**made.metrics, "change": {"score": {"mean": 0.05, "low": low, "high": high, "n": 30}}}
        session.flush()
        [credit] = critic_day.list_credits(session, critic, project)
        assert (credit.outcome, credit.n) == (outcome, 30)
        made.decision = {"activate": False, "outcome": "no clear difference"}  # such as for worse answers
        session.flush()
        assert critic_day.list_credits(session, critic, project)[0].outcome == "no clear difference"

    def test_only_rationale_rows_earn_credit(self, session: Session, project: Project, critic: Actor) -> None:
        made = ended_round(session, project, 1, 0.061, judged(session, project, critic))
        row = session.get_one(SnapshotItem, (made.snapshot_id, 1))
        row.role = SnapshotItemRole.heldout
        session.flush()
        assert critic_day.list_credits(session, critic, project) == ()

    def test_an_active_round_is_left_out(self, session: Session, project: Project, critic: Actor) -> None:
        ended_round(session, project, 1, 0.061, judged(session, project, critic)).state = RoundState.evaluating
        session.flush()
        assert critic_day.list_credits(session, critic, project) == ()


class TestStreak:
    def test_days_in_a_row_up_to_today_or_yesterday(self) -> None:
        worked = frozenset(FRIDAY - timedelta(days=back) for back in (1, 2))
        assert critic_day.count_streak(worked, FRIDAY) == 2
        assert critic_day.count_streak(worked | {FRIDAY}, FRIDAY) == 3
        assert critic_day.count_streak(frozenset({FRIDAY - timedelta(days=2)}), FRIDAY) == 0

    def test_a_weekend_off_does_not_end_it(self) -> None:
        monday = FRIDAY + timedelta(days=3)
        assert critic_day.count_streak(frozenset({FRIDAY, monday}), monday) == 2
        assert critic_day.count_streak(frozenset({FRIDAY, FRIDAY + timedelta(days=1), monday}), monday) == 3

    def test_the_streak_is_bounded(self) -> None:
        worked = frozenset(FRIDAY - timedelta(days=back) for back in range(1000))
        assert critic_day.count_streak(worked, FRIDAY) == critic_day.LOOK_BACK_DAYS + 1


def test_a_skip_counts_as_work(session: Session, project: Project, critic: Actor) -> None:
    made = factories.make_assignment(session, factories.make_candidate_set(session, project), critic)
    factories.make_verdict(session, made, kind=VerdictKind.skipped)
    assert critic_day.load_glance(session, critic, project).pace == critic_day.CriticPace(1, None)
