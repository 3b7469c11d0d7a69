"""The page of webhooks: adding one, the log, sending again."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import DeliveryState, Project, Webhook, WebhookDelivery
from app.services.integrations import webhooks
from tests.app.web.conftest import Browser

HERE = "/admin/projects/scenes"


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
