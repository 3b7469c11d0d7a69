"""Figures of critics: positions, days."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from app.errors import NotFound
from app.models import Project
from app.services.quality import critic_figures
from tests import factories


@pytest.fixture
def project(session: Session) -> Project:
    """A project."""
    return factories.make_project(session)


class TestPositions:
    def test_always_picking_the_first_shows(self) -> None:
        found = critic_figures.compute_position_figures([(4, frozenset({1}))] * 20)
        assert found.rates == (1.0, 0.0, 0.0, 0.0)
        assert found.first is not None
        assert found.first.mean == pytest.approx(0.75)
        assert found.first.low > 0

    def test_picking_evenly_does_not(self) -> None:
        found = critic_figures.compute_position_figures([(3, frozenset({1 + number % 3})) for number in range(60)])
        assert found.first is not None
        assert found.first.low < 0 < found.first.high

    def test_sets_of_different_sizes(self) -> None:
        found = critic_figures.compute_position_figures([(2, frozenset({2})), (3, frozenset({2, 3}))])
        assert found.rates == (0.0, 1.0, 1.0)

    def test_read_in_the_order_shown(self, session: Session, project: Project) -> None:
        critic = factories.make_critic(session, project)
        made = factories.make_candidate_set(session, project)
        assignment = factories.make_assignment(session, made, critic)
        assignment.shown = list(reversed(assignment.shown))
        factories.make_verdict(session, assignment, picks=[assignment.shown[2]])
        found = critic_figures.load_position_figures(session, factories.make_admin(session), project)
        assert found[critic.user_id].rates == found[None].rates == (0.0, 0.0, 1.0)


class TestRights:
    def test_a_stranger(self, session: Session, project: Project) -> None:
        with pytest.raises(NotFound):
            critic_figures.list_daily_verdicts(session, factories.actor_of(factories.make_user(session)), project)
