"""Webhooks over REST."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.models import Project, Role, Scope
from app.services.integrations import webhooks
from tests import factories
from tests.app.api.conftest import As

BODY = {"url": "https://8.8.8.8/hook", "events": ["verdict", "import.finished"]}


class TestWebhooks:
    def test_lifecycle(self, admin: TestClient, session: Session, project: Project) -> None:
        made = admin.post("/api/v1/webhooks", json={**BODY, "project": project.slug})
        assert made.status_code == 201
        hook = made.json()
        assert hook["secret"].startswith("whsec_")
        assert (hook["project"], hook["active"], hook["events"]) == (project.slug, True, BODY["events"])
        path = f"/api/v1/webhooks/{hook['id']}"
        assert "secret" not in admin.get(path).json()
        listed = admin.get("/api/v1/webhooks", params={"project": project.slug}).json()["items"]
        assert [one["id"] for one in listed] == [hook["id"]]
        assert "secret" not in listed[0]
        changed = admin.patch(path, json={"active": False, "events": ["round.finished"]}).json()
        assert (changed["active"], changed["events"]) == (False, ["round.finished"])
        assert admin.patch(path, json={"active": True, "events": ["import.finished"]}).status_code == 200
        assert admin.post(f"{path}/secret").json()["secret"] != hook["secret"]
        webhooks.emit(session, project.id, "import.finished", {"id": "1"})
        [delivery] = admin.get(f"{path}/deliveries").json()["items"]
        assert (delivery["event"], delivery["state"], delivery["tries"]) == ("import.finished", "pending", 0)
        again = admin.post(f"{path}/deliveries/{delivery['id']}/replay")
        assert (again.status_code, again.json()["id"]) == (202, delivery["id"])
        assert admin.delete(path).status_code == 204
        for gone in (admin.get(path), admin.get(f"{path}/deliveries"), admin.delete(path)):
            assert gone.status_code == 404

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"url": "https://127.0.0.1/"}, "url"),
            ({"url": "http://8.8.8.8/"}, "url"),
            ({"events": ["everything"]}, "events"),
            ({"events": []}, "events"),
        ],
    )
    def test_invalid_input(self, admin: TestClient, change: dict[str, object], field: str) -> None:
        answer = admin.post("/api/v1/webhooks", json={**BODY, **change})
        assert answer.status_code == 422
        assert answer.json()["field"] == field
        made = admin.post("/api/v1/webhooks", json=BODY).json()
        assert admin.patch(f"/api/v1/webhooks/{made['id']}", json=change).status_code == 422

    def test_permissions(self, admin: TestClient, session: Session, project: Project, as_user: As) -> None:
        made = admin.post("/api/v1/webhooks", json=BODY).json()
        reviewer = as_user(factories.make_member(session, project, Role.reviewer))
        manager = factories.make_member(session, project, Role.admin)
        assert reviewer.get("/api/v1/webhooks").status_code == 403
        assert reviewer.post("/api/v1/webhooks", json={**BODY, "project": project.slug}).status_code == 403
        assert as_user(manager).get(f"/api/v1/webhooks/{made['id']}").status_code == 403
        assert as_user(manager, Scope.write).post("/api/v1/webhooks", json=BODY).status_code == 403
        answer = as_user(manager).post("/api/v1/webhooks", json={**BODY, "project": project.slug})
        assert answer.status_code == 201
