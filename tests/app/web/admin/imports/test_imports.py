"""The admin's routes of imports and webhooks: permissions, form tokens, problems."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import DeliveryState, Import, Project, Role, Webhook, WebhookDelivery
from app.services.integrations import webhooks
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


@pytest.mark.usefixtures("admin")
class TestWebhooks:
    def test_one_is_added_and_sent_again(self, browser: Browser, session: Session, project: Project) -> None:
        fields = {"url": "https://8.8.8.8/hook", "events": ["import.finished"]}
        answer = browser.post(f"{HERE}/webhooks", fields)
        assert answer.status_code == 201
        hook = session.scalars(select(Webhook)).one()
        assert webhooks.secret_of(hook) in answer.text
        assert webhooks.secret_of(hook) not in browser.get(f"{HERE}/webhooks").text
        webhooks.emit(session, project.id, "import.finished", {"x": "<script>"})
        delivery = session.scalars(select(WebhookDelivery)).one()
        delivery.state, delivery.error = DeliveryState.failed, "It answered <b>500</b>."
        session.flush()
        assert "It answered &lt;b&gt;500&lt;/b&gt;." in browser.get(f"{HERE}/webhooks").text
        answer = browser.post(f"{HERE}/webhooks/{hook.id}/deliveries/{delivery.id}/replay", {})
        assert answer.status_code == 303
        session.refresh(delivery)
        assert delivery.state is DeliveryState.pending
        assert browser.post(f"{HERE}/webhooks/{hook.id}/remove", {}).status_code == 303
        assert session.scalars(select(Webhook)).all() == []

    def test_what_is_refused_is_said_and_stays_typed(self, browser: Browser, session: Session) -> None:
        answer = browser.post(f"{HERE}/webhooks", {"url": "https://127.0.0.1/hook", "events": ["verdict"]})
        assert answer.status_code == 422
        assert "private address" in answer.text
        assert 'value="https://127.0.0.1/hook"' in answer.text
        assert session.scalars(select(Webhook)).all() == []
