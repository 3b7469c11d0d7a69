"""The audit log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from app.errors import Forbidden
from app.services.kernel import audit
from app.services.kernel.actors import SYSTEM, Actor
from tests import factories


@pytest.fixture
def admin(session: Session) -> Actor:
    """An admin."""
    return factories.make_admin(session)


class TestListEvents:
    def test_newest_first_by_who_what_and_where(self, session: Session, admin: Actor) -> None:
        project = factories.make_project(session)
        audit.record(session, admin, "round.start", "round:1", project.id, number=1)
        audit.record(session, SYSTEM, "rounding.up", "round:2")
        audit.record(session, admin, "user.add", "user:7", role="critic")
        session.flush()

        def found(**by: object) -> list[str]:
            return [one.subject for one in audit.list_events(session, admin, **by)]  # type: ignore[arg-type]

        assert found() == ["user:7", "round:2", "round:1"]
        assert found(action="round.") == ["round:1"]
        assert found(who=admin.email.upper()) == ["user:7", "round:1"]
        assert found(project=project.slug) == ["round:1"]
        assert found(who="%") == []
        assert audit.list_subject_kinds(session, admin) == ["round", "rounding", "user"]

    def test_page_by_page_and_by_day(self, session: Session, admin: Actor) -> None:
        for number in range(3):
            audit.record(session, admin, "user.add", f"user:{number}")
        session.flush()
        first = audit.list_events(session, admin, limit=2)
        rest = audit.list_events(session, admin, limit=2, before=first[-1].id)
        assert [one.subject for one in (*first, *rest)] == ["user:2", "user:1", "user:0"]
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        assert audit.list_events(session, admin, since=tomorrow) == []
        assert len(audit.list_events(session, admin, until=tomorrow)) == 3

    def test_not_for_others(self, session: Session) -> None:
        with pytest.raises(Forbidden):
            audit.list_events(session, factories.actor_of(factories.make_user(session)))
