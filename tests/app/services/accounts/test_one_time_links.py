"""One-time links."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import Forbidden, Invalid, NotFound
from app.models import AuditEvent, LinkPurpose, OneTimeLink, User
from app.services.accounts import one_time_links, passwords, sessions, users
from app.services.kernel.actors import Actor
from tests import factories

PASSWORD = "horse and staple"


@pytest.fixture
def admin(session: Session) -> Actor:
    """An admin."""
    return factories.make_admin(session)


@pytest.fixture
def person(session: Session) -> User:
    """A person without a password."""
    return factories.make_user(session)


class TestLinks:
    def test_a_password_is_chosen_once(self, session: Session, admin: Actor, person: User) -> None:
        link, plain = one_time_links.make_link(session, admin, person.id, LinkPurpose.invitation)
        assert plain not in link.token_hash
        assert one_time_links.find_link(session, plain)[1] is person
        sessions.open_web_session(session, person)
        assert passwords.verify_user_password(one_time_links.use_link(session, plain, PASSWORD), PASSWORD)
        with pytest.raises(NotFound):
            one_time_links.use_link(session, plain, "another password")
        assert passwords.verify_user_password(person, PASSWORD)
        said = [event.action for event in session.scalars(select(AuditEvent).order_by(AuditEvent.id))]
        assert said == ["link.invitation", "user.password"]

    def test_an_invited_person_may_say_their_name(self, session: Session, admin: Actor, person: User) -> None:
        _, plain = one_time_links.make_link(session, admin, person.id, LinkPurpose.invitation)
        with pytest.raises(Invalid) as refused:
            one_time_links.use_link(session, plain, PASSWORD, name="n" * 101)
        assert refused.value.field == "name"
        assert one_time_links.find_open_link(session, person.id) is not None
        assert one_time_links.use_link(session, plain, PASSWORD, name="Eve").name == "Eve"

    def test_a_weak_password_leaves_the_link_open(self, session: Session, admin: Actor, person: User) -> None:
        _, plain = one_time_links.make_link(session, admin, person.id, LinkPurpose.invitation)
        with pytest.raises(Invalid):
            one_time_links.use_link(session, plain, "short")
        assert one_time_links.find_open_link(session, person.id) is not None

    @pytest.mark.parametrize("how", ["by themselves", "by an admin", "disabled"])
    def test_it_ends_with_the_password(self, session: Session, admin: Actor, person: User, how: str) -> None:
        _, plain = one_time_links.make_link(session, admin, person.id, LinkPurpose.password)
        if how == "disabled":
            users.set_disabled(session, admin, person.id, disabled=True)
            users.set_disabled(session, admin, person.id, disabled=False)
        else:
            actor = factories.actor_of(person) if how == "by themselves" else admin
            users.set_password(session, actor, person.id, PASSWORD)
        with pytest.raises(NotFound):
            one_time_links.use_link(session, plain, "another password")
        assert passwords.verify_user_password(person, PASSWORD) is (how != "disabled")

    def test_a_new_link_replaces_the_old_one(self, session: Session, admin: Actor, person: User) -> None:
        _, first = one_time_links.make_link(session, admin, person.id, LinkPurpose.password)
        _, second = one_time_links.make_link(session, admin, person.id, LinkPurpose.password)
        with pytest.raises(NotFound):
            one_time_links.find_link(session, first)
        one_time_links.find_link(session, second)

    def test_it_expires(self, session: Session, admin: Actor, person: User) -> None:
        link, plain = one_time_links.make_link(session, admin, person.id, LinkPurpose.password)
        assert timedelta(hours=23) < link.expires_at - datetime.now(UTC) <= timedelta(days=1)
        session.get_one(OneTimeLink, link.id).expires_at = datetime.now(UTC) - timedelta(hours=1)
        session.flush()
        with pytest.raises(NotFound, match="expired"):
            one_time_links.find_link(session, plain)

    def test_not_for_a_disabled_person(self, session: Session, admin: Actor, person: User) -> None:
        _, plain = one_time_links.make_link(session, admin, person.id, LinkPurpose.password)
        users.set_disabled(session, admin, person.id, True)
        with pytest.raises(NotFound):
            one_time_links.use_link(session, plain, PASSWORD)

    def test_only_admins_make_them(self, session: Session, person: User) -> None:
        with pytest.raises(Forbidden):
            one_time_links.make_link(session, factories.actor_of(person), person.id, LinkPurpose.password)
