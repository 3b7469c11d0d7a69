"""The admin's pages for erasing: the preview, the name to be typed, and the list of erasures."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Erasure, ErasureKind, Image, Project, Role, User
from tests import factories
from tests.app.web.conftest import Browser, person


@pytest.fixture
def image(session: Session, project: Project) -> Image:
    """An image that a prompt shows."""
    found = factories.make_image(session)
    factories.make_prompt(session, project, images=[found])
    return found


@pytest.mark.usefixtures("admin")
class TestErase:
    def test_a_person_once_their_address_is_typed(self, session: Session, project: Project, browser: Browser) -> None:
        critic = factories.make_member(session, project, Role.critic)
        email = critic.email
        page = f"/admin/erase/users/{critic.id}"
        assert page in browser.get(f"/admin/users/{critic.id}").text
        shown = browser.get(page).text
        assert "This cannot be undone" in shown
        assert f"Type <strong>{email}</strong> to confirm" in shown
        wrong = browser.post(page, {"typed": "somebody"})
        assert wrong.status_code == 422
        assert "Nothing has been erased" in wrong.text
        assert session.scalars(select(Erasure)).all() == []
        assert browser.post(page, {"typed": email}).headers["location"] == "/admin/erasures?done=erasing"
        [erasure] = session.scalars(select(Erasure)).all()
        assert (erasure.kind, erasure.subject) == (ErasureKind.person, str(critic.id))
        assert email not in browser.get("/admin/users").text
        assert f"person {critic.id}" in browser.get("/admin/erasures").text

    def test_an_image_from_its_prompt(self, session: Session, browser: Browser, image: Image) -> None:
        page = f"/admin/erase/images/{image.sha256}"
        prompts = browser.get("/admin/projects/scenes/prompts").text
        prompt = prompts.split('href="/admin/projects/scenes/prompts/', 2)[-1].split('"')[0]
        assert page in browser.get(f"/admin/projects/scenes/prompts/{prompt}").text
        assert "Prompts</dt><dd>1" in browser.get(page).text
        assert browser.post(page, {"typed": "erase"}).status_code == 303
        assert session.scalars(select(Erasure.subject)).all() == [image.sha256]

    def test_a_project_from_its_settings(self, session: Session, browser: Browser) -> None:
        page = "/admin/erase/projects/scenes"
        assert page in browser.get("/admin/projects/scenes/settings").text
        browser.get(page)
        assert browser.post(page, {"typed": "scenes"}).status_code == 303
        assert browser.get("/admin/projects/scenes").status_code == 404
        assert ">project scenes</th>" in browser.get("/admin/erasures").text

    def test_oneself(self, admin: User, browser: Browser) -> None:
        assert f"/admin/erase/users/{admin.id}" not in browser.get(f"/admin/users/{admin.id}").text
        assert browser.get(f"/admin/erase/users/{admin.id}").status_code == 409


@pytest.mark.parametrize("role", [Role.reviewer, Role.viewer, Role.critic])
def test_who_may_not(session: Session, project: Project, browser: Browser, image: Image, role: Role) -> None:
    browser.sign_in(factories.make_member(session, project, role, user=person(session)))
    other = factories.make_user(session)
    for subject in (f"users/{other.id}", f"images/{image.sha256}", "projects/scenes"):
        assert browser.get(f"/admin/erase/{subject}").status_code == 403
    assert browser.get("/admin/erasures").status_code == 403
