"""Krippendorff's alpha over candidates."""

from __future__ import annotations

from datetime import UTC, datetime

import krippendorff
import numpy as np
import pytest
from sqlalchemy.orm import Session

from app.models import CandidateSet, Project, VerdictKind
from app.services.kernel.actors import Actor
from app.services.quality import agreement, set_agreements
from app.services.quality.agreement import NO_SHARED_SETS, NO_VARIETY, Vote
from tests import factories

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def votes(table: dict[int, tuple[bool | None, ...]], *, per_set: int = 3) -> list[Vote]:
    """Votes of critics 1, 2 ... on candidates; None for a critic who did not judge it."""
    return [
        Vote(candidate // per_set, candidate, critic, NOW, said)
        for candidate, row in table.items()
        for critic, said in enumerate(row, start=1)
        if said is not None
    ]


class TestAlpha:
    def test_equals_the_library_with_missing_data(self) -> None:
        rows: dict[int, tuple[bool | None, ...]] = {
            0: (True, True, None),
            1: (False, True, False),
            2: (None, True, True),
            3: (False, False, False),
        }
        data = np.array([[np.nan if one is None else float(one) for one in row] for row in rows.values()]).T
        expected = krippendorff.alpha(reliability_data=data, level_of_measurement="nominal")
        found = agreement.compute_agreement(votes(rows))
        assert found.alpha == pytest.approx(expected)
        assert (found.candidates, found.sets, found.reason) == (4, 2, "")

    def test_perfect_agreement(self) -> None:
        found = agreement.compute_agreement(votes({number: (number % 2 == 0,) * 2 for number in range(30)}))
        assert (found.alpha, found.share) == (1.0, 1.0)
        assert found.low == found.high == 1.0

    def test_chance_is_about_zero_and_inside_the_interval(self) -> None:
        draw = np.random.default_rng(4)
        found = agreement.compute_agreement(
            votes({number: (bool(draw.random() < 0.5), bool(draw.random() < 0.5)) for number in range(600)})
        )
        assert found.alpha == pytest.approx(0, abs=0.1)
        assert found.low is not None
        assert found.high is not None
        assert found.low < 0 < found.high

    def test_the_interval_uses_the_same_alpha(self) -> None:
        """Resampling a single set always gives the estimate itself."""
        table = np.array([[3.0, 1.0], [1.0, 2.0], [0.0, 4.0]])
        low, high = agreement.bootstrap_alpha(np.vstack([table, table]), np.array([0, 0, 0, 1, 1, 1]), 2, seed=0)
        expected = krippendorff.alpha(value_counts=np.vstack([table, table]), level_of_measurement="nominal")
        assert low == pytest.approx(expected)
        assert high == pytest.approx(expected)

    def test_undefined_alpha_has_a_reason(self) -> None:
        assert agreement.compute_agreement([]).reason == NO_SHARED_SETS
        assert agreement.compute_agreement(votes({0: (True, None), 1: (None, False)})).reason == NO_SHARED_SETS
        alike = agreement.compute_agreement(votes({0: (True, True), 1: (True, True)}))
        assert (alike.alpha, alike.share, alike.reason) == (None, 1.0, NO_VARIETY)


class TestSubsets:
    def test_pairs_count_what_both_judged(self) -> None:
        found = agreement.agreement_by_pair(
            votes({0: (True, True, None), 1: (False, False, None), 3: (None, True, False), 4: (None, False, True)})
        )
        assert [(pair.first, pair.second) for pair in found] == [(1, 2), (2, 3)]
        assert found[0].agreement.alpha == 1.0
        assert found[1].agreement.alpha is not None
        assert found[1].agreement.alpha < 0

    def test_one_critic_and_the_others(self) -> None:
        given = votes({0: (True, True, False), 1: (False, None, False), 2: (None, True, False)})
        assert agreement.agreement_by_critic(given)[1].candidates == 2

    def test_a_set_counts_where_it_was_finished(self) -> None:
        early, late = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC)
        given = [Vote(1, 1, 1, early, True), Vote(1, 1, 2, late, True), Vote(2, 2, 1, early, True)]
        found = agreement.agreement_by_period(given, lambda at: at.day)
        assert {period: one.candidates for period, one in found.items()} == {1: 0, 3: 1}


def judge(session: Session, made: CandidateSet, critic: Actor, places: tuple[int, ...], *, slot: int) -> None:
    """A verdict that picks the candidates at these positions."""
    assignment = factories.make_assignment(session, made, critic, slot=slot)
    kind = VerdictKind.picked if places else VerdictKind.none_fit
    factories.make_verdict(session, assignment, kind=kind, picks=[assignment.shown[place] for place in places])


class TestProject:
    @pytest.fixture
    def project(self, session: Session) -> Project:
        """A project."""
        return factories.make_project(session)

    def test_none_fit_rejects_every_candidate(self, session: Session, project: Project) -> None:
        first, second = (factories.make_critic(session, project) for _ in range(2))
        for places in ((0,), ()):
            made = factories.make_candidate_set(session, project, slots=2)
            judge(session, made, first, (0,), slot=1)
            judge(session, made, second, places, slot=2)
        alone = factories.make_candidate_set(session, project)
        judge(session, alone, first, (1,), slot=1)
        found = agreement.project_agreement(session, factories.make_admin(session), project)
        assert (found.candidates, found.sets) == (6, 2)
        assert found.share == pytest.approx(5 / 6)
        assert found.alpha == pytest.approx(1 - 11 * 2 / (2 * 3 * 9))

    def test_sets_that_two_judged_are_found_however_many_were_judged_once_since(
        self, session: Session, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(agreement, "MAX_UNSWEPT", 3)
        first, second = (factories.make_critic(session, project) for _ in range(2))
        old = []
        for places in ((0,), (1,), ()):
            made = factories.make_candidate_set(session, project, slots=2)
            judge(session, made, first, (0,), slot=1)
            judge(session, made, second, places, slot=2)
            old.append(made.id)
        set_agreements.update_agreements(session, project.id, old)
        for _ in range(4):
            judge(session, factories.make_candidate_set(session, project), first, (1,), slot=1)
        found = agreement.project_agreement(session, factories.make_admin(session), project)
        assert (found.candidates, found.sets, found.reason) == (9, 3, "")
        newest = agreement.load_votes(session, project, most=2)
        assert {vote.set_id for vote in newest} == set(old[1:])
        assert {(vote.critic_id, vote.candidate_id) for vote in newest if vote.picked and vote.set_id == old[2]} == {
            (first.user_id, factories.candidates_of(session, session.get_one(CandidateSet, old[2]))[0].id)
        }

    def test_pairs_are_those_asked_for(self) -> None:
        given = votes({number: (True, number % 2 == 0, None if number < 6 else False) for number in range(9)})
        assert [(pair.first, pair.second) for pair in agreement.agreement_by_pair(given, most=1)] == [(1, 2)]
        assert [(pair.first, pair.second) for pair in agreement.agreement_by_pair(given, of=3)] == [(1, 3), (2, 3)]
