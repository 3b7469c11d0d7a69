"""A person's own page: password, keys, tokens, and the browsers they are signed in with."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.models import Role, Scope, Token, User, WebSession
from app.services.accounts import passwords, sessions, users
from app.services.projects import key_bindings
from app.web.accounts.browsers import describe_browser
from tests import factories
from tests.app.web.conftest import PASSWORD, Browser, person

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
SAFARI = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 Version/18.0 Mobile Safari/604.1"
EDGE = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/140.0.0.0 Safari/537.36 Edg/140.0.0.0"
CHROME = "Mozilla/5.0 (Linux; Android 15) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Mobile Safari/537.36"
NEW = "quite another password"


@pytest.fixture
def critic(session: Session, browser: Browser) -> User:
    """A critic who is signed in."""
    user = person(session, role=Role.critic)
    browser.client.headers["User-Agent"] = FIREFOX
    browser.sign_in(user)
    return user


@pytest.mark.parametrize(
    ("user_agent", "words"),
    [
        (FIREFOX, "Firefox on Linux"),
        (SAFARI, "Safari on iPhone"),
        (EDGE, "Edge on Windows"),
        (CHROME, "Chrome on Android"),
        ("curl/8.0", "curl/8.0"),
        ("", "Unknown browser"),
    ],
)
def test_browsers_are_named(user_agent: str, words: str) -> None:
    assert describe_browser(user_agent) == words


class TestName:
    def test_is_shown_to_oneself_and_to_admins(self, browser: Browser, session: Session, critic: User) -> None:
        browser.get("/account")
        answer = browser.post("/account/name", {"name": "  Ada   <King>\t"})
        assert answer.headers["location"] == "/account?done=name-saved"
        session.refresh(critic)
        assert critic.name == "Ada <King>"
        page = browser.get("/account?done=name-saved").text
        assert "Your name is saved." in page
        assert 'value="Ada &lt;King&gt;"' in page
        assert page.count("Ada &lt;King&gt;") == 3  # the menu, the head and the field
        assert "Ada &lt;King&gt;" in browser.get("/annotate").text  # the menu
        browser.client.cookies.clear()
        browser.sign_in(person(session, role=Role.admin))
        assert "Ada &lt;King&gt;" in browser.get("/admin/users").text
        assert "Ada &lt;King&gt;" in browser.get(f"/admin/users/{critic.id}").text

    def test_may_be_taken_away(self, browser: Browser, session: Session, critic: User) -> None:
        critic.name = "Ada"
        session.flush()
        browser.get("/account")
        assert browser.post("/account/name", {"name": " "}).status_code == 303
        session.refresh(critic)
        assert critic.name == ""

    @pytest.mark.parametrize(("name", "said"), [("n" * 101, "at most 100 characters"), ("Ada\u202eKing", "invisible")])
    def test_that_is_odd_is_refused_and_stays_in_the_form(
        self, browser: Browser, session: Session, critic: User, name: str, said: str
    ) -> None:
        browser.get("/account")
        answer = browser.post("/account/name", {"name": name})
        assert (answer.status_code, said in answer.text, f'value="{name}"' in answer.text) == (422, True, True)
        session.refresh(critic)
        assert critic.name == ""

    def test_of_every_script_is_taken(self, session: Session, critic: User) -> None:
        for name in ("\u0645\u06cc\u200c\u0646\u0627", "\u5c71\u7530 \u592a\u90ce", "Jos\u00e9 O\u2019Neil-\u0141"):
            assert users.set_name(session, factories.actor_of(critic), critic.id, name).name == name


class TestPassword:
    def change(self, browser: Browser, current: str, password: str, again: str | None = None) -> tuple[int, str]:
        browser.get("/account")
        form = {"current": current, "password": password, "again": password if again is None else again}
        answer = browser.post("/account/password", form)
        return answer.status_code, answer.text

    def test_ends_the_other_browsers_alone(self, browser: Browser, session: Session, critic: User) -> None:
        other, _ = sessions.open_web_session(session, critic)
        assert self.change(browser, PASSWORD, NEW)[0] == 303
        assert passwords.verify_user_password(critic, NEW)
        assert sessions.actor_for_cookie(session, other) is None
        assert "Your account" in browser.get("/account?done=password-changed").text

    @pytest.mark.parametrize(
        ("current", "password", "again", "said"),
        [
            ("wrong", NEW, NEW, "not your current password"),
            (PASSWORD, NEW, "something else", "do not match"),
            (PASSWORD, "short", "short", "8 to 1000 characters"),
        ],
    )
    def test_is_refused(
        self, browser: Browser, session: Session, critic: User, current: str, password: str, again: str, said: str
    ) -> None:
        other, _ = sessions.open_web_session(session, critic)
        status, text = self.change(browser, current, password, again)
        assert (status, said in text) == (422, True)
        assert 'aria-invalid="true"' in text
        assert passwords.verify_user_password(critic, PASSWORD)
        assert sessions.actor_for_cookie(session, other) is not None

    def test_cannot_be_guessed_in_an_open_browser(self, browser: Browser, critic: User) -> None:
        assert {self.change(browser, "wrong", NEW)[0] for _ in range(5)} == {422}
        assert self.change(browser, PASSWORD, NEW)[0] == 429
        assert passwords.verify_user_password(critic, PASSWORD)


class TestTokens:
    def test_are_made_listed_and_revoked_by_a_critic(self, browser: Browser, session: Session, critic: User) -> None:
        browser.get("/account")
        made = browser.post("/account/tokens", {"name": "night <run>", "scope": "write", "expires": "30"})
        plain = re.search(r"ill_[\w-]+", made.text)
        assert (made.status_code, plain is not None) == (201, True)
        assert plain is not None
        token = session.scalars(select(Token).where(Token.user_id == critic.id)).one()
        assert token.scope is Scope.write
        assert token.expires_at is not None
        assert timedelta(days=29) < token.expires_at - datetime.now(UTC) < timedelta(days=31)
        page = browser.get("/account").text
        assert ("night &lt;run&gt;" in page, plain[0] in page) == (True, False)
        assert re.search(r'data-label="Last used"><span class="muted">never', page)
        users.actor_for_token(session, plain[0])
        session.expire(token)
        assert re.search(r'data-label="Last used"><time', browser.get("/account").text)
        assert browser.post(f"/account/tokens/{token.id}/revoke").headers["location"] == "/account?done=revoked"
        assert users.find_actor_for_token(session, plain[0]) is None
        assert "night" not in browser.get("/account").text

    @pytest.mark.parametrize("form", [{"scope": "all", "expires": "30"}, {"scope": "read", "expires": "31"}])
    def test_an_odd_form_is_refused(
        self, browser: Browser, session: Session, critic: User, form: dict[str, object]
    ) -> None:
        browser.get("/account")
        answer = browser.post("/account/tokens", form)
        assert (answer.status_code, 'role="alert"' in answer.text) == (422, True)
        assert session.scalar(select(func.count()).select_from(Token).where(Token.user_id == critic.id)) == 0

    def test_those_of_others_are_out_of_reach_even_for_an_admin(self, browser: Browser, session: Session) -> None:
        other = person(session, role=Role.critic)
        token, plain = users.create_token(
            session, factories.actor_of(other), user_id=other.id, scope=Scope.read, name="theirs"
        )
        browser.sign_in(person(session, role=Role.admin))
        assert "theirs" not in browser.get("/account").text
        assert browser.post(f"/account/tokens/{token.id}/revoke").status_code == 404
        assert users.find_actor_for_token(session, plain) is not None


class TestSessions:
    def test_are_listed_with_browser_and_time_and_one_is_ended(
        self, browser: Browser, session: Session, critic: User
    ) -> None:
        phone, _ = sessions.open_web_session(session, critic, browser=SAFARI)
        desk, _ = sessions.open_web_session(session, critic, browser=EDGE)
        hashed = passwords.hash_secret(phone)
        long_ago = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        session.execute(update(WebSession).where(WebSession.token_hash == hashed).values(last_seen_at=long_ago))
        page = browser.get("/account").text
        assert re.findall(r'scope="row">(\w+ on \w+)<', page) == [
            "Firefox on Linux",
            "Edge on Windows",
            "Safari on iPhone",
        ]
        assert (page.count("this browser"), hashed in page) == (1, False)
        assert "2026-01-02 03:04:05 UTC" in page
        ends = re.findall(r"/account/sessions/\w+/end", page)
        assert len(ends) == 3  # the two others, and all others
        assert browser.post(ends[1]).status_code == 303
        assert sessions.actor_for_cookie(session, phone) is None
        assert sessions.actor_for_cookie(session, desk) is not None
        assert browser.post(ends[1]).status_code == 404

    def test_all_others_end_and_this_one_stays(self, browser: Browser, session: Session, critic: User) -> None:
        stranger, _ = sessions.open_web_session(session, person(session, role=Role.critic))
        own, _ = sessions.open_web_session(session, critic)
        browser.get("/account")
        assert browser.post("/account/sessions/others/end").status_code == 303
        assert sessions.actor_for_cookie(session, own) is None
        assert sessions.actor_for_cookie(session, stranger) is not None
        assert "All your other browsers are signed out." in browser.get("/account?done=others-signed-out").text

    def test_those_of_others_cannot_be_ended(self, browser: Browser, session: Session, critic: User) -> None:
        other = person(session, role=Role.critic)
        cookie, _ = sessions.open_web_session(session, other)
        [shown] = sessions.list_sessions(session, factories.actor_of(other), other.id)
        browser.get("/account")
        assert browser.post(f"/account/sessions/{shown.id}/end").status_code == 404
        assert sessions.actor_for_cookie(session, cookie) is not None

    def test_a_use_is_noted_once_in_a_while(self, session: Session, critic: User) -> None:
        cookie, _ = sessions.open_web_session(session, critic)
        row = session.get_one(WebSession, passwords.hash_secret(cookie))
        for minutes, is_noted in ((4, False), (6, True)):
            row.last_seen_at = datetime.now(UTC) - timedelta(minutes=minutes)
            session.flush()
            assert sessions.actor_for_cookie(session, cookie) is not None
            session.refresh(row)
            assert (datetime.now(UTC) - row.last_seen_at < timedelta(minutes=2)) == is_noted

    def test_judging_is_a_use(self, browser: Browser, session: Session, critic: User) -> None:
        factories.make_member(session, factories.make_project(session, slug="scenes"), user=critic)
        session.execute(update(WebSession).values(last_seen_at=datetime(2026, 1, 2, tzinfo=UTC)))
        assert browser.get("/annotate/scenes/figures").status_code == 200
        seen = session.scalars(select(WebSession.last_seen_at).where(WebSession.user_id == critic.id)).one()
        assert datetime.now(UTC) - seen < timedelta(minutes=2)


def test_own_keys_are_shown_and_reset(browser: Browser, session: Session, critic: User) -> None:
    assert "use the default shortcuts" in browser.get("/account").text
    key_bindings.save_key_bindings(session, factories.actor_of(critic), {"flag": "<"})
    assert "<kbd>&lt;</kbd>" in browser.get("/account").text
    assert browser.post("/account/keys/reset").status_code == 303
    assert key_bindings.load_key_bindings(session, factories.actor_of(critic)) == {}


def test_only_for_who_is_signed_in_and_with_the_form_token(browser: Browser, critic: User) -> None:
    browser.token = "x"
    for path in ("password", "tokens", "keys/reset", "sessions/others/end"):
        assert browser.post(f"/account/{path}", {"scope": "read", "expires": "30"}).status_code == 403
    browser.client.cookies.clear()
    assert browser.get("/account").status_code in (303, 401)


def test_each_menu_says_which_it_is(browser: Browser, session: Session, critic: User) -> None:
    factories.make_member(session, factories.make_project(session, slug="scenes", name="Scenes"), user=critic)
    page = browser.get("/annotate/scenes").text
    assert re.search(r'<summary [^>]*aria-label="Project Scenes"', page)
    assert f'<summary aria-label="Account {critic.email}"' in page
    assert 'href="/account"' in page
    assert re.search(r'href="/account" aria-current="page"', browser.get("/account").text)
