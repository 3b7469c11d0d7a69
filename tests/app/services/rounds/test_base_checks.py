"""Looks at base models."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from app import queue
from app.errors import Forbidden
from app.models import CheckState
from app.services import sweep
from app.services.kernel.actors import Actor
from app.services.rounds import base_checks
from tests import factories


@pytest.fixture
def admin(session: Session) -> Actor:
    """An admin."""
    return factories.make_admin(session)


class TestLooks:
    def test_asked_once_until_answered(self, session: Session, admin: Actor) -> None:
        asked = base_checks.request_check(session, admin, "some/model")
        assert base_checks.request_check(session, admin, "some/model").id == asked.id
        assert not base_checks.is_good(session, "some/model")
        assert base_checks.base_to_check(session, asked.id) == "some/model"
        assert (queue.CHECK_BASE, asked.id) in sweep.sweep(session)
        base_checks.finish(session, asked.id, good=True, detail="a fine model")
        base_checks.finish(session, asked.id, good=False, detail="too late")
        assert base_checks.is_good(session, "some/model")
        assert base_checks.get_check(session, admin, asked.id).detail == "a fine model"
        assert base_checks.list_waiting(session) == []

    def test_a_bad_one_may_be_looked_at_again(self, session: Session, admin: Actor) -> None:
        first = base_checks.request_check(session, admin, "some/model")
        base_checks.finish(session, first.id, good=False, detail="no config")
        assert not base_checks.is_good(session, "some/model")
        again = base_checks.request_check(session, admin, "some/model")
        assert (again.id != first.id, again.state) == (True, CheckState.queued)

    def test_a_later_check_that_sees_nothing_changes_nothing(self, session: Session, admin: Actor) -> None:
        assert not base_checks.reads_pictures_first(session, "some/model")
        for found, expected in ((True, True), (None, True), (False, False)):
            check = base_checks.request_check(session, admin, "some/model")
            base_checks.finish(session, check.id, good=found is not None, detail="", pictures_first=found)
            assert base_checks.reads_pictures_first(session, "some/model") is expected
            assert not base_checks.reads_pictures_first(session, "other/model")

    def test_the_shipped_one_is_good(self, session: Session) -> None:
        assert base_checks.is_good(session, "starter")

    def test_only_admins_ask(self, session: Session) -> None:
        with pytest.raises(Forbidden):
            base_checks.request_check(session, factories.actor_of(factories.make_user(session)), "some/model")
