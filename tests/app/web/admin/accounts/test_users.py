"""The pages of people: roles, tokens, one-time links, the audit log."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import LinkPurpose, Project, Role, Scope, Token, User
from app.services.accounts import one_time_links, passwords, sessions, users
from tests import factories
from tests.app.web.conftest import Browser, person


@pytest.mark.usefixtures("admin")
class TestUsers:
    def test_a_token_is_shown_once(self, browser: Browser, session: Session, admin: User) -> None:
        browser.get(f"/admin/users/{admin.id}")
        response = browser.post(f"/admin/users/{admin.id}/tokens", {"scope": "read", "name": "mine", "expires": "30"})
        assert "ill_" in response.text
        assert "ill_" not in browser.get(f"/admin/users/{admin.id}").text
        token = session.scalars(select(Token).where(Token.user_id == admin.id)).one()
        assert (token.scope, token.name) == (Scope.read, "mine")
        assert token.expires_at is not None
        assert timedelta(days=29) < token.expires_at - datetime.now(UTC) < timedelta(days=31)

    def test_a_role_in_each_project(self, browser: Browser, session: Session, project: Project) -> None:
        other = factories.make_project(session, slug="signs", name="Signs")
        user = factories.make_member(session, project, Role.critic, user=person(session, role=Role.critic))
        browser.get(f"/admin/users/{user.id}")
        form: dict[str, object] = {"role": "critic", "project-scenes": "", "project-signs": "reviewer"}
        assert browser.post(f"/admin/users/{user.id}/role", form).status_code == 303
        assert users.list_project_roles(session, [user.id]) == {user.id: {other.slug: Role.reviewer}}
        assert "signs (reviewer)" in browser.get("/admin/users").text
        browser.sign_in(user)
        assert "Signs" in browser.get("/admin").text

    def test_somebody_is_signed_out_of_all_browsers(self, browser: Browser, session: Session, admin: User) -> None:
        user = person(session, role=Role.critic)
        cookie, _ = sessions.open_web_session(session, user, browser="Mozilla/5.0 (X11; Linux) Firefox/140.0")
        shown = browser.get(f"/admin/users/{user.id}").text
        assert "Firefox on Linux" in shown
        answer = browser.post(f"/admin/users/{user.id}/sign-out")
        assert answer.status_code == 303
        assert sessions.actor_for_cookie(session, cookie) is None
        after = browser.get(answer.headers["location"]).text
        assert "They are signed out in every browser." in after
        assert "Firefox on Linux" not in after
        assert '/sign-out"' not in browser.get(f"/admin/users/{admin.id}").text.partition("<main")[2]
        browser.sign_in(person(session, role=Role.critic))
        assert browser.post(f"/admin/users/{admin.id}/sign-out").status_code == 403

    def test_several_invitations_at_once(self, browser: Browser, session: Session) -> None:
        browser.get("/admin/users")
        typed = "eve@example.org, ida@example.org\r\nnot an address\nEVE@example.org"
        answer = browser.post("/admin/users", {"email": typed, "role": "critic", "projects": "scenes"})
        assert answer.status_code == 201
        assert len(set(re.findall(r"/account/link/[\w-]+", answer.text))) == 2
        for email in ("eve@example.org", "ida@example.org"):
            user = users.find_user(session, email)
            assert user is not None
            assert users.list_project_roles(session, [user.id])[user.id] == {"scenes": Role.critic}
        left = re.findall(r'<textarea[^>]*name="email"[^>]*>([^<]*)', answer.text)[0]
        assert left.split() == ["not", "an", "address", "EVE@example.org"]
        assert "address: This is not an email address." in answer.text
        assert "EVE@example.org: There is already an account for EVE@example.org." in answer.text
        again = browser.post("/admin/users", {"email": "ida@example.org", "role": "critic"})
        assert (again.status_code, "/account/link/" in again.text) == (409, False)
        many = "\n".join(f"p{number}@example.org" for number in range(101))
        assert browser.post("/admin/users", {"email": many, "role": "critic"}).status_code == 422

    def test_an_invitation_becomes_a_password_once(self, browser: Browser, session: Session) -> None:
        browser.get("/admin/users")
        form: dict[str, object] = {"email": "eve@example.org", "role": "critic", "projects": "scenes"}
        page = browser.post("/admin/users", form).text
        found = re.search(r"http://127\.0\.0\.1:8000(/account/link/[\w-]+)", page)
        assert found is not None
        assert found[1] not in browser.get("/admin/users").text
        browser.client.cookies.clear()
        assert "eve@example.org" in browser.get(found[1]).text
        refused = browser.post(found[1], {"password": "long enough", "again": "something else"})
        assert (refused.status_code, "do not match" in refused.text) == (422, True)
        browser.get(found[1])
        assert browser.post(found[1], {"password": "short", "again": "short"}).status_code == 422
        browser.get(found[1])
        named = {"name": "Eve", "password": "long enough", "again": "long enough"}
        odd = browser.post(found[1], {**named, "name": "n" * 101})
        assert (odd.status_code, "at most 100 characters" in odd.text, "n" * 101 in odd.text) == (422, True, True)
        browser.get(found[1])
        done = browser.post(found[1], named)
        assert done.headers["location"] == "/"  # and they are signed in
        assert 'aria-label="Account eve@example.org"' in browser.get("/annotate").text
        assert "do not belong to a project yet" not in page
        assert browser.get(found[1]).status_code == 404
        user = users.find_user(session, "eve@example.org")
        assert user is not None
        assert user.name == "Eve"
        assert passwords.verify_user_password(user, "long enough")

    def test_an_invitation_without_a_project_says_so(self, browser: Browser, project: Project) -> None:
        browser.get("/admin/users")
        assert (
            "do not belong to a project yet"
            in browser.post("/admin/users", {"email": "a@example.org", "role": "critic"}).text
        )
        assert (
            "do not belong to a project yet"
            not in browser.post("/admin/users", {"email": "b@example.org", "role": "admin"}).text
        )

    def test_a_password_needs_the_pages_own_token(self, browser: Browser, session: Session, admin: User) -> None:
        user = person(session)
        _, plain = one_time_links.make_link(session, factories.actor_of(admin), user.id, LinkPurpose.password)
        browser.client.cookies.clear()
        form: dict[str, object] = {"password": "long enough", "again": "long enough"}
        assert browser.post(f"/account/link/{plain}", form).status_code == 403
        assert not passwords.verify_user_password(user, "long enough")

    def test_the_audit_log_is_filtered(self, browser: Browser, session: Session, project: Project) -> None:
        browser.get("/admin/users")
        browser.post("/admin/users", {"email": "eve@example.org", "role": "critic", "projects": "scenes"})
        page = browser.get("/admin/audit").text
        assert "added a user" in page
        assert "added a user" not in browser.get("/admin/audit?kind=link").text
        assert "No matches" in browser.get("/admin/audit?person=nobody").text
        assert "is not a date" in browser.get("/admin/audit?since=soon").text
        browser.sign_in(person(session, role=Role.reviewer))
        assert browser.get("/admin/audit").status_code == 403

    def test_the_last_admin_stays(self, browser: Browser, session: Session, admin: User) -> None:
        browser.get(f"/admin/users/{admin.id}")
        response = browser.post(f"/admin/users/{admin.id}/role", {"role": "critic"})
        assert response.status_code == 409
        assert "last admin" in response.text
