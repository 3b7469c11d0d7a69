"""Signing in and out: the form, its token, the page that follows, and rejected attempts."""

from __future__ import annotations

import re
from urllib.parse import urlencode

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from app.cli.server import demo
from app.models import Role
from app.services.accounts import sessions
from app.settings import get_settings
from app.web.accounts.sign_in import local_path
from tests import factories
from tests.app.web.conftest import PASSWORD, Browser, person


class TestLocalPath:
    @pytest.mark.parametrize(
        "path", ["/", "/annotate/scenes?verdict=3", "/admin/projects/a-b/rounds/2", "/admin?words=/../a...b"]
    )
    def test_our_pages(self, path: str) -> None:
        assert local_path(path) == path

    @pytest.mark.parametrize(
        "path",
        [
            "",
            "//evil.example",
            "/\\evil.example",
            "https://evil.example",
            "javascript:alert(1)",
            "/a\nb",
            "/sign-out",
            "/../b",
            "/a/.%2E",
        ],
    )
    def test_nothing_else(self, path: str) -> None:
        assert local_path(path) == "/"


class TestSignIn:
    def test_leads_where_one_wanted_to_go(self, browser: Browser, session: Session) -> None:
        user = person(session, role=Role.critic)
        browser.get("/sign-in?next=/annotate/scenes")
        fields = {"email": user.email, "password": PASSWORD, "next": "/annotate/scenes"}
        response = browser.post("/sign-in", fields)
        assert (response.status_code, response.headers["location"]) == (303, "/annotate/scenes")
        cookie = response.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie

    def test_the_demo_leads_a_stranger_to_its_first_steps(
        self, browser: Browser, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        project = factories.make_project(session, slug="scenes")
        user = person(session, role=Role.admin)
        assert "This is the demo" not in browser.get("/sign-in").text
        monkeypatch.setattr(get_settings(), "demo_account", user.email)
        opened = browser.get(demo.FIRST_STEPS)
        assert opened.headers["location"] == f"/sign-in?{urlencode({'next': demo.FIRST_STEPS})}"
        form = browser.get(opened.headers["location"]).text
        assert f"sign in as <strong>{user.email}</strong>" in form
        to = re.search(r'name="next" value="([^"]+)"', form)
        assert to
        wrong = browser.post("/sign-in", {"email": user.email, "password": "wrong", "next": to[1]})
        assert f"sign in as <strong>{user.email}</strong>" in wrong.text
        signed_in = browser.post("/sign-in", {"email": user.email, "password": PASSWORD, "next": to[1]})
        assert signed_in.headers["location"] == f"/admin/projects/{project.slug}/first-steps"
        assert "First steps" in browser.get(signed_in.headers["location"]).text

    @pytest.mark.parametrize(
        ("referer", "back"),
        [
            ("http://127.0.0.1:8000/admin/users?x=1", "%2Fadmin%2Fusers%3Fx%3D1"),
            ("https://elsewhere.example.org/admin", "%2F"),
        ],
    )
    def test_a_form_of_an_ended_session_leads_back_to_its_page(self, browser: Browser, referer: str, back: str) -> None:
        answer = browser.post("/admin/users", {"email": "eve@example.org"}, headers={"Referer": referer})
        assert answer.status_code == 401
        assert f'href="/sign-in?next={back}"' in answer.text

    def test_a_wrong_password_keeps_the_address(self, browser: Browser, session: Session) -> None:
        user = person(session)
        browser.get("/sign-in?next=/admin")
        response = browser.post("/sign-in", {"email": user.email, "password": "wrong", "next": "/admin"})
        assert response.status_code == 401
        assert f'value="{user.email}"' in response.text
        assert "Wrong email address or password" in response.text
        assert 'name="next" value="/admin"' in response.text

    def test_the_sixth_try_in_a_minute_is_refused(self, browser: Browser, session: Session) -> None:
        user = person(session)
        browser.get("/sign-in")
        for _ in range(5):
            assert browser.post("/sign-in", {"email": user.email, "password": "wrong"}).status_code == 401
        response = browser.post("/sign-in", {"email": user.email, "password": PASSWORD})
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) > 0

    def test_others_lock_nobody_out_of_their_own_browser(self, browser: Browser, session: Session) -> None:
        user = person(session)
        browser.sign_in(user)
        browser.post("/sign-out")
        known = browser.client.cookies["illume_browser"]
        browser.client.cookies.delete("illume_browser")
        browser.get("/sign-in")
        for _ in range(5):
            browser.post("/sign-in", {"email": user.email, "password": "wrong"})
        assert browser.post("/sign-in", {"email": user.email, "password": PASSWORD}).status_code == 429
        browser.client.cookies.set("illume_browser", known)
        assert browser.post("/sign-in", {"email": user.email, "password": PASSWORD}).status_code == 303

    def test_a_form_of_another_site_is_refused(self, browser: Browser, session: Session) -> None:
        user = person(session)
        browser.get("/sign-in")
        browser.token = "made up"
        response = browser.post("/sign-in", {"email": user.email, "password": PASSWORD})
        assert response.status_code == 403
        assert "illume_session" not in response.headers.get("set-cookie", "")

    def test_no_form_cookie_is_no_pass(self, browser: Browser, session: Session) -> None:
        user = person(session)
        browser.token = ""
        assert browser.post("/sign-in", {"email": user.email, "password": PASSWORD}).status_code == 403


class TestSignOut:
    def test_ends_the_session(self, browser: Browser, session: Session) -> None:
        browser.sign_in(person(session, role=Role.admin))
        assert browser.get("/admin").status_code == 200
        response = browser.post("/sign-out")
        assert response.headers["location"] == "/sign-in?done=signed-out"
        response = browser.get("/admin")
        assert (response.status_code, response.headers["location"]) == (303, "/sign-in?next=%2Fadmin")

    def test_needs_the_form_token(self, browser: Browser, session: Session) -> None:
        browser.sign_in(person(session, role=Role.admin))
        browser.token = "made up"
        assert browser.post("/sign-out").status_code == 403
        assert browser.get("/admin").status_code == 200


class TestStart:
    def test_a_critic_goes_on_where_they_left_off(self, browser: Browser, session: Session) -> None:
        project = factories.make_project(session, slug="scenes")
        critic = person(session, role=Role.critic)
        factories.make_member(session, project, Role.critic, user=critic)
        browser.sign_in(critic)
        assert browser.get("/").headers["location"] == "/annotate"
        browser.client.cookies.set("illume_project", "scenes")
        assert browser.get("/").headers["location"] == "/annotate/scenes"

    @pytest.mark.parametrize(("role", "start"), [(None, "/annotate"), (Role.viewer, "/admin")])
    def test_a_project_they_judge_in_no_more_is_not_gone_to(
        self, browser: Browser, session: Session, role: Role | None, start: str
    ) -> None:
        project = factories.make_project(session, slug="scenes")
        critic = person(session, role=Role.critic)
        if role is not None:
            factories.make_member(session, project, role, user=critic)
        browser.sign_in(critic)
        browser.client.cookies.set("illume_project", "scenes")
        assert browser.get("/").headers["location"] == start

    @pytest.mark.parametrize(
        ("roles", "start", "sees_projects"),
        [
            ([], "/annotate", False),
            ([Role.critic], "/annotate", False),
            ([Role.viewer], "/admin", True),
            ([Role.viewer, Role.critic], "/annotate", True),
            ([Role.admin], "/annotate", True),
        ],
    )
    def test_a_role_in_a_project_opens_its_pages(
        self, browser: Browser, session: Session, roles: list[Role], start: str, sees_projects: bool
    ) -> None:
        user = person(session, role=Role.critic)
        for role in roles:
            factories.make_member(session, factories.make_project(session), role, user=user)
        browser.sign_in(user)
        assert browser.get("/").headers["location"] == start
        page = browser.get("/annotate").text
        assert ('<a href="/admin"' in page) is sees_projects
        assert browser.get("/admin").status_code == (200 if sees_projects else 403)
        if roles == [Role.viewer]:
            assert "You may look at projects but are not a critic in any of them" in page

    def test_a_cookie_leads_nowhere_else(self, browser: Browser, session: Session) -> None:
        browser.sign_in(person(session, role=Role.critic))
        browser.client.cookies.set("illume_project", "..%2F..%2Fevil")
        assert browser.get("/").headers["location"] == "/annotate"

    def test_others_see_the_overview(self, browser: Browser, session: Session) -> None:
        browser.sign_in(person(session, role=Role.viewer))
        assert browser.get("/").headers["location"] == "/admin"


class TestSignOutEverywhere:
    def test_every_browser_of_the_person_and_of_nobody_else(
        self, client: TestClient, browser: Browser, session: Session
    ) -> None:
        user, other = person(session, role=Role.critic), person(session, role=Role.critic)
        cookies = [sessions.open_web_session(session, one)[0] for one in (user, other)]
        browser.sign_in(user)
        answer = browser.post("/sign-out/everywhere")
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?done=everywhere")
        assert sessions.actor_for_cookie(session, cookies[0]) is None
        assert sessions.actor_for_cookie(session, cookies[1]) is not None
        assert client.get("/annotate").status_code in (303, 401)

    def test_needs_the_form_token(self, browser: Browser, session: Session) -> None:
        user = person(session, role=Role.critic)
        browser.sign_in(user)
        browser.token = "x"
        assert browser.post("/sign-out/everywhere").status_code == 403
        assert browser.get("/annotate").status_code == 200
