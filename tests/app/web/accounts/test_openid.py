"""Signing in with an OpenID Connect provider: a real one on loopback, and everything that is refused."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from joserfc.jwk import OctKey, RSAKey
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.cli.server import serve
from app.db.sessions import database_now
from app.errors import Forbidden
from app.models import ProviderIdentity, Role, User
from app.services.accounts import openid, openid_providers, users
from app.services.kernel.actors import SYSTEM
from app.settings import ROOT, get_settings
from app.web.accounts import sign_in
from tests import factories
from tests.app.web.conftest import PASSWORD, Browser, person
from tests.openid import CLIENT, SECRET, LocalProvider, back, local_provider

ANN = {"email": "ann@example.org", "email_verified": True, "name": "Ann", "groups": ["lab"]}
FILE = """
[university]
label = "University"
issuer = "{issuer}"
client_id = "{client}"
client_secret = "{secret}"
new_accounts = true
groups = [
  {{ group = "lab", role = "critic", projects = ["scenes"] }},
  {{ group = "leads", role = "admin", projects = ["scenes", "not-there-yet"] }},
  {{ group = "operators", role = "admin" }},
]

[other]
label = "Another place"
issuer = "{issuer}/other"
client_id = "{client}"
"""


@pytest.fixture(scope="module")
def running() -> Iterator[LocalProvider]:
    with local_provider() as provider:
        yield provider


@pytest.fixture
def provider(running: LocalProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalProvider:
    """The provider, and an installation that knows it. It says that Ann is in the lab."""
    running.claims, running.in_user_info, running.signing = dict(ANN), {}, None
    running.algorithm, running.broken = "RS256", False
    running.grants.clear()
    use_file(tmp_path, monkeypatch, running)
    openid_providers.known.cache_clear()
    return running


def use_file(folder: Path, monkeypatch: pytest.MonkeyPatch, provider: LocalProvider, *changes: tuple[str, str]) -> None:
    """Write the file of providers, with changes, and use it."""
    text = FILE.format(issuer=provider.address, client=CLIENT, secret=SECRET)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / f"providers-{len(list(folder.iterdir()))}.toml"
    path.write_text(text)
    monkeypatch.setattr(get_settings(), "openid_file", str(path))


def go(browser: Browser, *, to: str = "/annotate") -> str:
    """Follow the link of the sign-in page; the provider's address that it leads to."""
    response = browser.get(f"/sign-in/with/university?next={to}")
    assert response.status_code == 303, response.text
    return response.headers["location"]


def come_back(browser: Browser, provider: LocalProvider, **changes: str) -> Any:
    """Sign in at the provider and come back from it."""
    return browser.get(back("/sign-in/from/university", {**provider.sign_in(go(browser)), **changes}))


def user_of(session: Session, email: str = "ann@example.org") -> User | None:
    return users.find_user(session, email)


class TestSignIn:
    def test_the_first_makes_an_account_with_the_roles_of_the_groups(
        self, browser: Browser, session: Session, provider: LocalProvider
    ) -> None:
        factories.make_project(session, slug="scenes")
        assert "Sign in with University" in browser.get("/sign-in?next=/annotate/scenes").text
        query = provider.sign_in(go(browser, to="/annotate/scenes"))
        response = browser.get(back("/sign-in/from/university", query))
        assert (response.status_code, response.headers["location"]) == (303, "/annotate/scenes")
        user = user_of(session)
        assert user is not None
        assert (user.name, user.role, user.password_hash) == ("Ann", Role.critic, None)
        assert users.list_project_roles(session, [user.id])[user.id] == {"scenes": Role.critic}
        assert browser.get("/annotate").status_code == 200

    def test_later_ones_find_the_account_though_its_address_changed(
        self, browser: Browser, session: Session, provider: LocalProvider
    ) -> None:
        come_back(browser, provider)
        provider.claims["email"] = "ann.new@example.org"
        assert come_back(browser, provider).status_code == 303
        assert user_of(session, "ann.new@example.org") is None
        assert len(session.scalars(select(ProviderIdentity)).all()) == 1

    def test_it_finds_an_account_with_a_confirmed_address_only(
        self, browser: Browser, session: Session, provider: LocalProvider
    ) -> None:
        there = factories.make_user(session, email="ann@example.org", role=Role.reviewer)
        provider.claims["email_verified"] = False
        refused = come_back(browser, provider)
        assert refused.status_code == 403
        assert "University does not confirm your email address" in html.unescape(refused.text)
        provider.claims["email_verified"] = True
        assert come_back(browser, provider).status_code == 303
        assert session.scalars(select(ProviderIdentity.user_id)).all() == [there.id]

    def test_groups_are_looked_up_where_the_token_has_none(
        self, browser: Browser, session: Session, provider: LocalProvider
    ) -> None:
        del provider.claims["groups"]
        provider.in_user_info = {"groups": ["operators"]}
        assert come_back(browser, provider).status_code == 303
        user = user_of(session)
        assert user is not None
        assert user.role is Role.admin
        provider.in_user_info = {"groups": ["operators"], "sub": "somebody else"}
        assert come_back(browser, provider).status_code == 401

    def test_roles_follow_the_groups(self, browser: Browser, session: Session, provider: LocalProvider) -> None:
        factories.make_project(session, slug="scenes")
        factories.make_user(session, role=Role.admin)  # so that nobody is the last admin
        for groups, role, roles in (
            (["operators", "lab"], Role.admin, {"scenes": Role.critic}),
            (["leads", "lab"], Role.reviewer, {"scenes": Role.admin}),
            (["lab"], Role.critic, {"scenes": Role.critic}),
            (["operators"], Role.admin, {}),
        ):
            provider.claims["groups"] = groups
            assert come_back(browser, provider).status_code == 303
            user = user_of(session)
            assert user is not None
            assert (user.role, users.list_project_roles(session, [user.id])[user.id]) == (role, roles)

    def test_the_last_admin_stays_one_whatever_their_groups(
        self, browser: Browser, session: Session, provider: LocalProvider
    ) -> None:
        admin = factories.make_user(session, email="ann@example.org", role=Role.admin)
        assert come_back(browser, provider).status_code == 303
        roles = [admin.role]
        factories.make_user(session, role=Role.admin)
        assert come_back(browser, provider).status_code == 303
        assert [*roles, admin.role] == [Role.admin, Role.critic]

    def test_a_provider_whose_groups_make_no_admins_leaves_them_alone(
        self,
        browser: Browser,
        session: Session,
        provider: LocalProvider,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        use_file(tmp_path, monkeypatch, provider, ('  { group = "operators", role = "admin" },\n', ""))
        factories.make_user(session, role=Role.admin)
        admin = factories.make_user(session, email="ann@example.org", role=Role.admin)
        assert come_back(browser, provider).status_code == 303
        assert admin.role is Role.admin

    def test_a_path_that_is_too_long_to_keep_is_forgotten(self, browser: Browser, provider: LocalProvider) -> None:
        query = provider.sign_in(go(browser, to="/annotate/" + "x" * 3000))
        assert len(browser.client.cookies["illume_start"]) < openid.MAX_COOKIE
        assert browser.get(back("/sign-in/from/university", query)).headers["location"] == "/"

    def test_signing_out_offers_to_sign_out_there_too(
        self, browser: Browser, session: Session, provider: LocalProvider
    ) -> None:
        come_back(browser, provider)
        browser.get("/annotate")
        assert browser.post("/sign-out").headers["location"] == "/sign-in?done=signed-out"
        page = html.unescape(browser.get("/sign-in?done=signed-out").text)
        assert f'href="{provider.address}/sign-out?client_id={CLIENT}&post_logout_redirect_uri=' in page
        assert "sign out there too" not in browser.get("/sign-in?done=signed-out").text
        assert browser.get("/annotate").status_code == 303


class TestRefusals:
    """Each is a page that says what to do, opens no session, and leaves nothing secret in the log."""

    @pytest.fixture(autouse=True)
    def nothing_secret_is_logged(
        self, provider: LocalProvider, caplog: pytest.LogCaptureFixture, browser: Browser, session: Session
    ) -> Iterator[None]:
        caplog.set_level(logging.DEBUG)
        yield
        assert "illume_session" not in browser.client.cookies
        assert session.scalars(select(ProviderIdentity)).all() == []
        logged = "\n".join([record.getMessage() + str(record.exc_text or "") for record in caplog.records])
        start = browser.client.cookies.get("illume_start") or "no cookie"
        for secret in (SECRET, "that-is-secret", "ann@example.org", "person-1", start):
            assert secret not in logged, secret

    def refuse(self, response: Any, status: int, text: str) -> None:
        assert response.status_code == status
        shown = html.unescape(response.text)
        assert text in shown
        assert "Sign in with University" in shown
        assert "that-is-secret" not in shown

    def test_somebody_without_the_group(self, browser: Browser, provider: LocalProvider) -> None:
        provider.claims["groups"] = ["elsewhere"]
        self.refuse(come_back(browser, provider), 403, "in no group that may use Illume")

    def test_somebody_without_an_account_where_none_are_made(
        self, browser: Browser, provider: LocalProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use_file(tmp_path, monkeypatch, provider, ("new_accounts = true", "new_accounts = false"))
        self.refuse(come_back(browser, provider), 403, "You have no account here yet")

    def test_a_disabled_account(self, browser: Browser, session: Session, provider: LocalProvider) -> None:
        factories.make_user(session, email="ann@example.org", disabled=True)
        response = come_back(browser, provider)
        self.refuse(response, 403, "Your account here is disabled")

    def test_one_that_took_too_long(
        self, browser: Browser, provider: LocalProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        query = provider.sign_in(go(browser))
        monkeypatch.setattr(sign_in, "database_now", lambda session: database_now(session) + timedelta(seconds=601))
        self.refuse(browser.get(back("/sign-in/from/university", query)), 401, "This sign-in has expired")

    def test_one_of_another_browser(self, browser: Browser, provider: LocalProvider) -> None:
        query = provider.sign_in(go(browser))
        browser.client.cookies.delete("illume_start")
        self.refuse(browser.get(back("/sign-in/from/university", query)), 401, "another browser")

    def test_a_forged_cookie(self, browser: Browser, provider: LocalProvider) -> None:
        query = provider.sign_in(go(browser))
        text, _, _ = browser.client.cookies["illume_start"].partition(".")
        browser.client.cookies.delete("illume_start")
        browser.client.cookies.set("illume_start", f"{text}.{'0' * 64}")
        self.refuse(browser.get(back("/sign-in/from/university", query)), 401, "another browser")

    @pytest.mark.parametrize("changes", [{"state": "forged"}, {"iss": "https://elsewhere.example.org"}, {"code": "x"}])
    def test_a_forged_answer(self, browser: Browser, provider: LocalProvider, changes: dict[str, str]) -> None:
        self.refuse(come_back(browser, provider, **changes), 401, "could not be verified")

    @pytest.mark.parametrize(
        "claims",
        [
            {"nonce": "forged"},
            {"aud": "another client"},
            {"aud": [CLIENT, "another client"], "azp": "another client"},
            {"iss": "https://elsewhere.example.org"},
            {"exp": 1_000_000_000},
            {"sub": ""},
            {"sub": None},
        ],
        ids=lambda claims: "-".join(claims),
    )
    def test_a_token_that_is_not_for_this(
        self, browser: Browser, provider: LocalProvider, claims: dict[str, Any]
    ) -> None:
        provider.claims.update(claims)
        self.refuse(come_back(browser, provider), 401, "could not be verified")

    def test_a_token_that_somebody_else_signed(self, browser: Browser, provider: LocalProvider) -> None:
        provider.signing = RSAKey.generate_key(2048, {"kid": "first"})
        self.refuse(come_back(browser, provider), 401, "could not be verified")

    def test_a_token_signed_with_a_shared_secret(self, browser: Browser, provider: LocalProvider) -> None:
        provider.algorithm = "HS256"
        provider.signing = OctKey.import_key(SECRET * 2, {"kid": "first"})  # type: ignore[assignment]
        self.refuse(come_back(browser, provider), 401, "could not be verified")

    def test_a_provider_that_is_down(self, browser: Browser, provider: LocalProvider) -> None:
        provider.broken = True
        self.refuse(browser.get("/sign-in/with/university"), 503, "University does not answer")
        count = len(provider.asked)
        self.refuse(browser.get("/sign-in/with/university"), 503, "University does not answer")
        assert len(provider.asked) == count  # it is left alone for a moment

    def test_a_provider_that_goes_down_in_between(self, browser: Browser, provider: LocalProvider) -> None:
        query = provider.sign_in(go(browser))
        provider.broken = True
        self.refuse(browser.get(back("/sign-in/from/university", query)), 503, "University does not answer")

    def test_a_provider_that_says_no(self, browser: Browser, provider: LocalProvider) -> None:
        query = {"error": "access_denied", "state": provider.sign_in(go(browser))["state"]}
        self.refuse(browser.get(back("/sign-in/from/university", query)), 401, "You were not signed in at University")

    def test_an_answer_for_another_provider(self, browser: Browser, provider: LocalProvider) -> None:
        query = provider.sign_in(go(browser))
        self.refuse(browser.get(back("/sign-in/from/other", query)), 401, "another browser")

    def test_a_provider_that_nobody_named(self, browser: Browser) -> None:
        assert browser.get("/sign-in/with/nobody").status_code == 404
        assert browser.get("/sign-in/from/nobody").status_code == 404


class TestPasswordsOff:
    def test_only_providers_are_left(
        self, browser: Browser, session: Session, provider: LocalProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user = person(session, role=Role.admin)
        browser.get("/sign-in")
        monkeypatch.setattr(get_settings(), "passwords", False)
        response = browser.post("/sign-in", {"email": user.email, "password": PASSWORD})
        assert response.status_code == 403
        assert "Passwords are switched off" in response.text
        assert 'type="password"' not in response.text
        provider.claims["groups"] = ["operators"]
        assert come_back(browser, provider).status_code == 303
        assert 'type="password"' not in browser.get("/account").text
        added = browser.post("/admin/users", {"email": "bob@example.org", "role": "critic"})
        assert added.status_code == 201
        assert "/account/link/" not in added.text
        with pytest.raises(Forbidden, match="Passwords are switched off"):
            users.set_password(session, SYSTEM, user.id, PASSWORD)
        with pytest.raises(Forbidden, match="Passwords are switched off"):
            users.add_user(session, SYSTEM, email="eve@example.org", role=Role.critic, password=PASSWORD)
        assert browser.get("/account/link/anything").status_code == 403


class TestFile:
    @pytest.mark.parametrize(
        ("old", "new", "expected"),
        [
            ('issuer = "http://127', 'issuer = "http://login.example.org/127', "university.issuer"),
            ("new_accounts = true", "new_account = true", "university.new_account"),
            ('role = "critic"', 'role = "king"', "university.groups.0.role"),
            ("[other]", "[Other]", "Other.name"),
            ("[other]", "[other", "is not TOML"),
        ],
    )
    def test_what_is_wrong_is_named_without_secrets(
        self,
        provider: LocalProvider,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        old: str,
        new: str,
        expected: str,
    ) -> None:
        use_file(tmp_path, monkeypatch, provider, (old, new))
        with pytest.raises(openid_providers.BadProviders, match=expected) as caught:
            openid_providers.load_providers()
        assert SECRET not in str(caught.value)

    def test_a_file_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(get_settings(), "openid_file", "/nowhere/providers.toml")
        with pytest.raises(openid_providers.BadProviders, match="cannot be read"):
            openid_providers.load_providers()

    def test_the_one_in_the_docs_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = re.search(r"```toml\n(.*?)```", (ROOT / "docs" / "deploying.md").read_text(), re.DOTALL)
        assert found
        path = tmp_path / "docs.toml"
        path.write_text(found[1])
        monkeypatch.setattr(get_settings(), "openid_file", str(path))
        shown = openid_providers.find_provider("university")
        assert [(rule.group, rule.projects) for rule in shown.groups] == [
            ("vision-lab", ("scenes",)),
            ("illume-operators", ()),
        ]
        assert shown.client_secret not in repr(shown)

    def test_somebody_has_to_be_able_to_sign_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        openid_providers.check_providers()
        monkeypatch.setattr(get_settings(), "passwords", False)
        result = CliRunner().invoke(serve.serve, ["--port", "0"], standalone_mode=False)
        assert isinstance(result.exception, openid_providers.BadProviders)
        assert "ILLUME_PASSWORDS=false leaves no way to sign in" in str(result.exception)
