"""The pages of imports: permissions, form tokens, templates."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Import, Project, Role
from tests import factories
from tests.app.web.conftest import Browser, person

HERE = "/admin/projects/scenes"


@pytest.mark.usefixtures("admin")
class TestImports:
    def test_a_form_without_its_token_changes_nothing(self, browser: Browser, session: Session) -> None:
        answer = browser.client.post(f"{HERE}/imports", files={"file": ("x.csv", b"question\nq\n")})
        assert answer.status_code == 403
        assert session.scalars(select(Import)).all() == []

    def test_a_template(self, browser: Browser) -> None:
        answer = browser.get(f"{HERE}/imports/template.csv")
        assert answer.status_code == 200
        assert answer.text.startswith("external_id,image,split,question")
        assert browser.get(f"{HERE}/imports/template.exe").status_code == 404

    def test_others_projects_and_unknown_ones(self, browser: Browser, session: Session) -> None:
        other = factories.make_project(session)
        found = factories.add(session, Import(project_id=other.id, filename="x", file_key="0" * 64))
        assert browser.get(f"{HERE}/imports/{found.id}").status_code == 404
        assert browser.get(f"{HERE}/imports/none").status_code == 404


class TestWho:
    @pytest.mark.parametrize(("role", "status"), [(Role.reviewer, 200), (Role.viewer, 403), (Role.critic, 403)])
    def test_imports_are_for_reviewers(
        self, session: Session, project: Project, browser: Browser, role: Role, status: int
    ) -> None:
        browser.sign_in(factories.make_member(session, project, role, user=person(session)))
        assert browser.get(f"{HERE}/imports").status_code == status
        assert browser.get(f"{HERE}/webhooks").status_code == 403
