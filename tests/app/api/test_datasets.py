"""Data sets and imports over REST, with sessions of their own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from app import db
from app.main import create_app
from app.models import Project, Role, Scope
from app.services import datasets, imports, users
from app.services.actors import SYSTEM
from tests import factories
from tests.app.services.feedback import judge
from tests.conftest import CommittedDatabase


@pytest.fixture
def project(committed_db: CommittedDatabase) -> Project:
    with committed_db.sessions() as session:
        project = factories.make_project(session)
        critic = factories.make_critic(session, project)
        for _ in range(3):
            judge(session, project, critic)
        session.commit()
    return project


@pytest.fixture
def admin(committed_db: CommittedDatabase) -> Iterator[TestClient]:
    with committed_db.sessions() as session:
        user = factories.make_user(session, role=Role.admin)
        _, token = users.create_token(session, SYSTEM, user_id=user.id, scope=Scope.admin)
        session.commit()
    with TestClient(create_app(), headers={"Authorization": f"Bearer {token}"}) as client:
        yield client


class TestDataset:
    def test_streams_records(self, project: Project, admin: TestClient) -> None:
        answer = admin.get(f"/api/v1/projects/{project.slug}/dataset", params={"format": "records"})
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert [line["kind"] for line in lines] == ["picked"] * 3
        none = admin.get(f"/api/v1/projects/{project.slug}/dataset", params={"split": "val"})
        assert (none.status_code, none.content) == (200, b"")

    @pytest.mark.parametrize("params", [{"format": "xml"}, {"since": "yesterday"}, {"version": "x"}, {"split": "x"}])
    def test_bad_parameters(self, project: Project, admin: TestClient, params: dict[str, str]) -> None:
        answer = admin.get(f"/api/v1/projects/{project.slug}/dataset", params=params)
        assert answer.status_code == 422
        assert answer.json()["field"] == next(iter(params))

    def test_a_third_download_is_told_to_wait(
        self, project: Project, admin: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        streaming, finish = threading.Semaphore(0), threading.Event()

        def slow(_: datasets.Plan) -> Iterator[list[bytes]]:
            streaming.release()
            finish.wait(60)
            yield [b"{}\n"]

        monkeypatch.setattr(datasets, "line_pages", slow)
        path = f"/api/v1/projects/{project.slug}/dataset"
        threads = [threading.Thread(target=admin.get, args=(path,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert streaming.acquire(timeout=60)
        answer = admin.get(path)
        others = admin.get("/api/v1/projects")
        finish.set()
        for thread in threads:
            thread.join()
        assert answer.status_code == 429
        assert "retry-after" in answer.headers
        assert others.status_code == 200


class TestImports:
    def test_a_file(self, project: Project, admin: TestClient) -> None:
        answer = admin.post(
            f"/api/v1/projects/{project.slug}/imports",
            files={"file": ("prompts.jsonl", b'{"question": "q"}\n')},
        )
        assert answer.status_code == 202
        assert answer.json()["state"] == "queued"
        imports.run(int(answer.json()["id"]), worker="w", check=lambda: None)
        found = admin.get(f"/api/v1/imports/{answer.json()['id']}").json()
        assert (found["state"], found["total"], found["rejected"]) == ("succeeded", 1, 1)
        assert found["problems"][0]["line"] == 1
        assert found["problems"][0]["field"] == "images"
        assert found["finished_at"].endswith("Z")


class TestDatabaseAway:
    def test_is_503_and_back_by_itself(
        self, committed_db: CommittedDatabase, admin: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert admin.get("/api/v1/projects").status_code == 200
        here = db.session_factory()
        away = db.make_engine("postgresql://nobody@127.0.0.1:1/none", pool_size=1)
        here.configure(bind=away)
        answer = admin.get("/api/v1/projects")
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["retry-after"]) > 0
        page = admin.get("/annotate/scenes", headers={"Cookie": "illume_session=x"})
        assert page.status_code == 503
        assert page.headers["content-type"].startswith("text/html")
        assert admin.get("/healthz").status_code == 200
        here.configure(bind=db.get_engine())
        away.dispose()
        # A connection that the server ended meanwhile is noticed too.
        with committed_db.engine.connect() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert admin.get("/api/v1/projects").status_code == 200
