"""Model servers over REST."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.errors import Conflict
from app.models import AuditEvent, Engine, EngineState, Project, Role
from app.processes.connect import forget_settings
from app.services.engines import keys, probing
from app.services.rounds import hand_over
from tests import factories
from tests.app.api.conftest import As
from tests.engines import FOUND, make_engine
from tests.model_server import MODEL

BODY = {"name": "gpu", "base_url": "https://8.8.8.8/v1/", "model": MODEL, "api_key": "secret-7"}


class TestEngines:
    def test_lifecycle(self, admin: TestClient, session: Session, project: Project) -> None:
        made = admin.post("/api/v1/engines", json={**BODY, "adapters_path": "/adapters/"})
        assert made.status_code == 201
        engine = made.json()
        assert (engine["base_url"], engine["adapters_path"]) == ("https://8.8.8.8", "/adapters")
        assert (engine["state"], engine["capabilities"], engine["has_key"]) == ("probing", None, True)
        path = f"/api/v1/engines/{engine['id']}"
        session.get_one(Engine, int(engine["id"])).capabilities = FOUND.as_json()
        assert admin.get(path).json()["capabilities"]["logprobs"] == "before"
        assert [one["name"] for one in admin.get("/api/v1/engines").json()["items"]] == ["gpu"]
        changed = admin.patch(path, json={"model": "other", "api_key": "", "adapters_path": None}).json()
        assert (changed["model"], changed["has_key"], changed["adapters_path"]) == ("other", False, None)
        assert admin.post(f"{path}/probe").status_code == 202
        slug = f"/api/v1/projects/{project.slug}"
        assert admin.patch(slug, json={"engine": "gpu"}).json()["engine"] == "gpu"
        assert admin.get(path).json()["projects"] == [project.slug]
        refused = admin.delete(path)
        assert (refused.status_code, project.slug in refused.json()["detail"]) == (409, True)
        assert admin.patch(slug, json={"engine": "local"}).status_code == 200
        assert admin.delete(path).status_code == 204
        assert admin.get(path).status_code == 404

    def test_the_key_is_nowhere(self, admin: TestClient, session: Session) -> None:
        made = admin.post("/api/v1/engines", json=BODY)
        stored = session.get_one(Engine, int(made.json()["id"]))
        audit = session.scalars(select(AuditEvent.data).where(AuditEvent.action == "engine.add")).one()
        assert "secret-7" not in f"{made.text}{stored.sealed_key}{audit}"
        assert keys.open_key(stored) == "secret-7"

    def test_a_key_is_not_sent_to_another_host(self, admin: TestClient, session: Session) -> None:
        path = f"/api/v1/engines/{admin.post('/api/v1/engines', json=BODY).json()['id']}"
        refused = admin.patch(path, json={"base_url": "https://9.9.9.9"})
        assert (refused.status_code, refused.json()["field"]) == (422, "api_key")
        assert admin.get(path).json()["base_url"] == "https://8.8.8.8"
        assert admin.patch(path, json={"base_url": "https://8.8.8.8/inner"}).json()["has_key"]
        moved = admin.patch(path, json={"base_url": "https://9.9.9.9", "api_key": "secret-9"})
        assert (moved.status_code, moved.json()["has_key"]) == (200, True)
        gone = admin.patch(path, json={"base_url": "https://9.9.9.9:8443", "api_key": ""})
        assert (gone.status_code, gone.json()["has_key"]) == (200, False)
        assert admin.patch(path, json={"base_url": "https://8.8.4.4"}).status_code == 200

    def test_a_key_of_another_installation(
        self, admin: TestClient, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stored = session.get_one(Engine, int(admin.post("/api/v1/engines", json=BODY).json()["id"]))
        monkeypatch.setenv("ILLUME_SECRET_KEY", "another")
        forget_settings()
        with pytest.raises(Conflict, match="enter it again"):
            keys.open_key(stored)
        forget_settings()

    @pytest.mark.parametrize(
        ("change", "field", "said"),
        [
            ({"name": "local"}, "name", "is not 'local'"),
            ({"name": "GPU box"}, "name", "lower-case letters"),
            ({"base_url": "http://127.0.0.1:8000"}, "base_url", "https://"),
            ({"base_url": "https://127.0.0.1:8000"}, "base_url", "ILLUME_ENGINE_ADDRESSES"),
            ({"base_url": "https://8.8.8.8/v1?x"}, "base_url", "neither"),
            ({"api_key": "two words"}, "api_key", "no spaces"),
            ({"adapters_path": "adapters"}, "adapters_path", "absolute path"),
            ({"model": " "}, "model", "not empty"),
            ({"in_flight": 0}, "in_flight", ""),
            ({"kind": "other"}, "kind", ""),
        ],
    )
    def test_invalid_input(self, admin: TestClient, change: dict[str, object], field: str, said: str) -> None:
        answer = admin.post("/api/v1/engines", json={**BODY, **change})
        assert (answer.status_code, answer.json()["field"]) == (422, field)
        assert said in answer.json()["detail"]

    def test_addresses_that_the_installation_allows(self, admin: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ILLUME_ENGINE_ADDRESSES", "127.0.0.1, 10.0.0.0/8")
        forget_settings()
        addresses = (
            "http://127.0.0.1:8000",
            "https://10.1.2.3",
            "https://8.8.8.8",
            "http://8.8.8.8",
            "http://192.168.1.1",
        )
        made = [
            admin.post("/api/v1/engines", json={**BODY, "name": f"e{n}", "base_url": url}).status_code
            for n, url in enumerate(addresses)
        ]
        assert made == [201, 201, 201, 422, 422]
        assert (
            admin.post("/api/v1/webhooks", json={"url": "https://10.1.2.3", "events": ["verdict"]}).status_code == 422
        )
        forget_settings()

    def test_a_name_is_taken_once(self, admin: TestClient) -> None:
        admin.post("/api/v1/engines", json=BODY)
        assert admin.post("/api/v1/engines", json=BODY).status_code == 409

    def test_only_admins_of_the_installation(self, session: Session, project: Project, as_user: As) -> None:
        member = as_user(factories.make_member(session, project, Role.admin))
        assert member.get("/api/v1/engines").status_code == 403
        assert member.post("/api/v1/engines", json=BODY).status_code == 403


class TestProjectsWithOne:
    def test_one_that_does_not_exist(self, admin: TestClient, project: Project) -> None:
        answer = admin.patch(f"/api/v1/projects/{project.slug}", json={"engine": "nowhere"})
        assert (answer.status_code, answer.json()["field"]) == (422, "engine")

    def test_what_needs_log_probabilities_is_refused_where_there_are_none(
        self, admin: TestClient, session: Session, project: Project
    ) -> None:
        make_engine(session, capabilities=FOUND.as_json() | {"logprobs": "after"})
        path = f"/api/v1/projects/{project.slug}"
        assert admin.patch(path, json={"engine": "gpu"}).status_code == 200
        answer = admin.patch(path, json={"next_prompt": "uncertain"})
        assert (answer.status_code, answer.json()["field"]) == (422, "next_prompt")
        assert "gives no log-probabilities of before the temperature" in answer.json()["detail"]

    def test_a_round_is_refused_where_the_models_differ(
        self, admin: TestClient, session: Session, project: Project
    ) -> None:
        make_engine(session)
        admin.patch(f"/api/v1/projects/{project.slug}", json={"engine": "gpu"})
        answer = admin.post(f"/api/v1/projects/{project.slug}/rounds")
        assert answer.status_code == 409
        assert "runs tiny/model, and the base model of this project is starter" in answer.json()["detail"]

    def test_a_version_says_how_its_hand_over_goes(
        self, admin: TestClient, session: Session, project: Project, as_user: As
    ) -> None:
        engine = make_engine(session)
        admin.patch(f"/api/v1/projects/{project.slug}", json={"engine": "gpu"})
        version = factories.make_version(session, project, number=1, adapter="1" * 64)
        answer = admin.post(f"/api/v1/versions/{version.id}/activate").json()
        assert (answer["active"], answer["hand_over"]["state"]) == (False, "waiting")
        row = hand_over.newest_adapter(session, engine, version)
        assert row is not None
        assert answer["hand_over"]["name"] == row.name
        [_, base] = admin.get(f"/api/v1/projects/{project.slug}/versions").json()["items"]
        assert (base["active"], base["hand_over"]) == (True, None)
        row.error = "no adapter in /somewhere"
        session.flush()
        path = f"/api/v1/projects/{project.slug}/versions"
        assert admin.get(path).json()["items"][0]["hand_over"]["error"] == row.error
        viewer = as_user(factories.make_member(session, project, Role.viewer))
        assert viewer.get(path).json()["items"][0]["hand_over"]["error"] is None


def test_a_server_is_probed_once_and_again_when_asked(session: Session) -> None:
    engine = make_engine(session, state=EngineState.probing)
    assert probing.list_due(session) == [engine.id]
    engine.state = EngineState.failed
    session.flush()
    assert probing.list_due(session) == []
