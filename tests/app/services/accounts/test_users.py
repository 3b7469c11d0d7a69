"""People: signing in and its limit, sessions, tokens, the last admin, pseudonyms."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.errors import Conflict, Forbidden, Invalid, NotFound, TooMany, Unauthenticated
from app.models import AuditEvent, Membership, Role, Scope, SignInAttempt, Token, User, WebSession
from app.services.accounts import known_browsers, passwords, sessions, users
from app.services.kernel.actors import SYSTEM, Actor
from app.settings import get_settings
from tests import factories
from tests.conftest import CommittedDatabase

PASSWORD = "a long enough password"


@pytest.fixture
def user(session: Session) -> User:
    return factories.make_user(session, password=PASSWORD)


class TestAddUser:
    def test_with_password_and_projects(self, session: Session) -> None:
        project = factories.make_project(session)
        user = users.add_user(
            session,
            SYSTEM,
            email=" new@example.org ",
            role=Role.critic,
            password=PASSWORD,
            project_slugs=[project.slug],
        )
        assert user.email == "new@example.org"
        assert user.password_hash is not None
        assert user.password_hash.startswith("$argon2id$")
        assert session.get_one(Membership, (user.id, project.id)).role is Role.critic
        event = session.scalar(select(AuditEvent).where(AuditEvent.subject == f"user:{user.id}"))
        assert event is not None
        assert PASSWORD not in str(event.data)

    def test_a_known_address_leaves_the_session_usable(self, session: Session, user: User) -> None:
        with pytest.raises(Conflict):
            users.add_user(session, SYSTEM, email=user.email.upper(), role=Role.critic)
        assert users.find_user(session, user.email.upper()) is user

    @pytest.mark.parametrize("password", ["", "short", "x" * 1001])
    def test_a_bad_password(self, session: Session, password: str) -> None:
        with pytest.raises(Invalid) as caught:
            users.add_user(session, SYSTEM, email="a@example.org", role=Role.critic, password=password)
        assert caught.value.field == "password"

    def test_needs_an_admin(self, session: Session, user: User) -> None:
        with pytest.raises(Forbidden):
            users.add_user(session, factories.actor_of(user), email="a@example.org", role=Role.admin)


class TestLastAdmin:
    def test_stays_one(self, session: Session) -> None:
        session.execute(update(User).where(User.role == Role.admin).values(role=Role.viewer))
        admin = factories.make_admin(session)
        with pytest.raises(Conflict, match="last admin"):
            users.set_role(session, admin, admin.user_id, Role.critic)
        with pytest.raises(Conflict, match="last admin"):
            users.set_disabled(session, admin, admin.user_id, True)
        factories.make_admin(session)
        assert users.set_role(session, admin, admin.user_id, Role.critic).role is Role.critic


class TestCheckPassword:
    def check(self, session: Session, email: str, password: str, address: str = "192.0.2.1", browser: str = "") -> User:
        return sessions.check_password(session, email, password, address=address, browser=browser)

    def test_right(self, session: Session, user: User) -> None:
        assert self.check(session, user.email.upper(), PASSWORD) is user
        assert session.scalar(select(func.count()).select_from(SignInAttempt)) == 0

    def test_an_old_hash_is_replaced(self, session: Session, user: User) -> None:
        before = user.password_hash
        self.check(session, user.email, PASSWORD)
        assert user.password_hash != before
        assert passwords.verify_user_password(user, PASSWORD)

    def test_all_failures_look_the_same(self, session: Session, user: User) -> None:
        disabled = factories.make_user(session, password=PASSWORD, disabled=True)
        robot = factories.make_user(session)
        told = set()
        for email, password in (
            (user.email, "wrong"),
            ("nobody@example.org", PASSWORD),
            (disabled.email, PASSWORD),
            (robot.email, PASSWORD),
        ):
            with pytest.raises(Unauthenticated) as caught:
                self.check(session, email, password)
            told.add(caught.value.detail)
        assert len(told) == 1

    @pytest.mark.parametrize("known", [True, False])
    def test_five_failures_of_an_account(self, session: Session, user: User, known: bool) -> None:
        email = user.email if known else "nobody@example.org"
        for number in range(get_settings().sign_in_tries):
            with pytest.raises(Unauthenticated):
                self.check(session, email, "wrong", f"192.0.2.{number}")
        with pytest.raises(TooMany) as caught:
            self.check(session, email, PASSWORD, "192.0.2.99")
        assert 0 < caught.value.retry_after <= 60
        other = factories.make_user(session, password=PASSWORD)
        assert self.check(session, other.email, PASSWORD, "192.0.2.99") is other

    def test_many_failures_of_an_address(self, session: Session, user: User, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(get_settings(), "sign_in_tries_per_address", 8)
        for number in range(8):
            assert self.check(session, user.email, PASSWORD) is user, "people behind one address may err"
            with pytest.raises(Unauthenticated):
                self.check(session, f"nobody{number}@example.org", "wrong")
        with pytest.raises(TooMany):
            self.check(session, user.email, PASSWORD)
        assert self.check(session, user.email, PASSWORD, "192.0.2.2") is user

    def test_an_address_may_fail_more_often_than_an_account(self) -> None:
        assert get_settings().sign_in_tries_per_address >= 10 * get_settings().sign_in_tries

    def test_many_right_passwords_at_once(self, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions() as session, session.begin():
            emails = [factories.make_user(session, password=PASSWORD).email for _ in range(6)]

        def sign_in(email: str) -> str:
            with committed_db.sessions() as session:
                return self.check(session, email, PASSWORD).email

        twice = [email for email in emails for _ in range(2)]
        with ThreadPoolExecutor(len(twice)) as threads:
            assert list(threads.map(sign_in, twice)) == twice
        with ThreadPoolExecutor(len(twice)) as threads:
            assert set(threads.map(sign_in, [emails[0]] * len(twice))) == {emails[0]}
        with committed_db.sessions() as session:
            assert session.scalar(select(func.count()).select_from(SignInAttempt)) == 0

    def test_a_locked_account_opens_in_a_known_browser(self, session: Session, user: User) -> None:
        known = known_browsers.remember("", user)
        for _ in range(get_settings().sign_in_tries):
            with pytest.raises(Unauthenticated):
                self.check(session, user.email, "wrong", "192.0.2.66")
        for browser in ("", "made.up.entry", known_browsers.remember("", factories.make_user(session))):
            with pytest.raises(TooMany):
                self.check(session, user.email, PASSWORD, browser=browser)
        assert self.check(session, user.email, PASSWORD, browser=known) is user

    def test_a_known_browser_has_a_limit_of_its_own(self, session: Session, user: User) -> None:
        known = known_browsers.remember("", user)
        for _ in range(get_settings().sign_in_tries):
            with pytest.raises(Unauthenticated):
                self.check(session, user.email, "wrong", browser=known)
        with pytest.raises(TooMany):
            self.check(session, user.email, PASSWORD, browser=known)
        assert self.check(session, user.email, PASSWORD) is user, "the others do not pay for it"

    def test_allowed_again_after_a_minute(self, session: Session, user: User) -> None:
        for _ in range(get_settings().sign_in_tries):
            with pytest.raises(Unauthenticated):
                self.check(session, user.email, "wrong")
        session.execute(update(SignInAttempt).values(at=func.now() - timedelta(seconds=61)))
        assert self.check(session, user.email, PASSWORD) is user

    def test_a_failure_stays_counted_when_the_request_rolls_back(self, session: Session, user: User) -> None:
        session.commit()
        with pytest.raises(Unauthenticated):
            self.check(session, user.email, "wrong")
        session.rollback()
        assert session.scalar(select(func.count()).select_from(SignInAttempt)) == 2


class TestKnownBrowsers:
    def test_a_browser_knows_the_last_few_people(self, session: Session) -> None:
        people = [factories.make_user(session) for _ in range(known_browsers.MAX_PEOPLE + 1)]
        cookie = ""
        for one in people:
            cookie = known_browsers.remember(known_browsers.remember(cookie, one), one)
        assert [known_browsers.find_entry(cookie, one) is not None for one in people] == [False] + [True] * 5

    def test_an_entry_is_signed_for_one_person(self, session: Session, user: User) -> None:
        other = factories.make_user(session)
        _, _, rest = known_browsers.remember("", user).partition(".")
        for cookie in (f"{other.id}.{rest}", f"{user.id}.{rest}x", f"{user.id}", f"{user.id}..", "é/é.é.é", "/" * 50):
            assert known_browsers.find_entry(cookie, other) is None
            assert known_browsers.find_entry(cookie, user) is None
        assert known_browsers.find_entry(f"x/{user.id}.{rest}", user) is not None


class TestWebSessions:
    def test_opened_and_closed(self, session: Session, user: User) -> None:
        cookie, csrf = sessions.open_web_session(session, user)
        found = sessions.actor_for_cookie(session, cookie)
        assert found is not None
        assert (found[0].user_id, found[1]) == (user.id, csrf)
        stored = session.scalars(select(WebSession.token_hash)).all()
        assert cookie not in stored
        sessions.close_web_session(session, cookie)
        assert sessions.actor_for_cookie(session, cookie) is None

    def test_expired(self, session: Session, user: User) -> None:
        cookie, _ = sessions.open_web_session(session, user)
        session.execute(update(WebSession).values(expires_at=func.now()))
        assert sessions.actor_for_cookie(session, cookie) is None

    @pytest.mark.parametrize("how", ["disabled", "password"])
    def test_ended_by(self, session: Session, user: User, how: str) -> None:
        cookie, _ = sessions.open_web_session(session, user)
        if how == "disabled":
            users.set_disabled(session, SYSTEM, user.id, True)
        else:
            users.set_password(session, factories.actor_of(user), user.id, "another long password")
        assert sessions.actor_for_cookie(session, cookie) is None


class TestTokens:
    def test_stored_hashed_and_audited(self, session: Session, user: User) -> None:
        token, plain = users.create_token(session, SYSTEM, user_id=user.id, scope=Scope.write, name="n", max_open=9)
        assert plain not in (token.token_hash, token.name)
        actor = users.actor_for_token(session, plain)
        assert actor == Actor(user.id, user.email, Role(user.role), Scope.write, token.id, 9)
        session.expire_all()
        assert session.get_one(Token, token.id).last_used_at is not None

    def test_invalid_tokens(self, session: Session, user: User) -> None:
        late = datetime.now(UTC) - timedelta(seconds=1)
        _, expired = users.create_token(session, SYSTEM, user_id=user.id, scope=Scope.read, expires_at=late)
        revoked, plain = users.create_token(session, SYSTEM, user_id=user.id, scope=Scope.read)
        users.revoke_token(session, factories.actor_of(user), revoked.id)
        for bad in (expired, plain, "", "nonsense"):
            with pytest.raises(Unauthenticated):
                users.actor_for_token(session, bad)

    def test_anothers_cannot_be_revoked(self, session: Session, user: User) -> None:
        token, _ = users.create_token(session, SYSTEM, user_id=user.id, scope=Scope.read)
        with pytest.raises(NotFound):
            users.revoke_token(session, factories.actor_of(factories.make_user(session)), token.id)

    def test_max_open_is_an_admins(self, session: Session, user: User) -> None:
        with pytest.raises(Forbidden):
            users.create_token(session, factories.actor_of(user), user_id=user.id, scope=Scope.read, max_open=50)


class TestPseudonym:
    def test_differs_by_person_project_and_secret(self) -> None:
        made = {
            users.pseudonym(project, user, secret) for project in (1, 2) for user in (1, 2) for secret in ("a", "b")
        }
        assert len(made) == 8
        assert users.pseudonym(1, 2, "a") == users.pseudonym(1, 2, "a")
        assert all(name.startswith("critic-") for name in made)


class TestEmails:
    @pytest.mark.parametrize(
        "email",
        ["ann\u200b@example.org", "\u0430nn@example.org", "ann@exa\u0000mple.org", "ann@-\u2764.", "a b@example.org"],
    )
    def test_an_address_that_looks_like_another_is_refused(self, session: Session, email: str) -> None:
        with pytest.raises(Invalid) as caught:
            users.add_user(session, SYSTEM, email=email, role=Role.critic)
        assert caught.value.field == "email"

    @pytest.mark.parametrize(
        ("email", "shown"),
        [
            ("ann@ex\u0430mple.org", "ann@xn--exmple-4nf.org"),
            ("ann@b\u00fccher.example", "ann@xn--bcher-kva.example"),
            ("ann@exam\u200bple.org", "ann@example.org"),
        ],
    )
    def test_a_domain_is_shown_in_ascii(self, session: Session, email: str, shown: str) -> None:
        user = users.add_user(session, SYSTEM, email=email, role=Role.critic)
        assert user.email == shown
        assert users.find_user(session, email) is user
        assert users.find_user(session, shown.upper()) is user
