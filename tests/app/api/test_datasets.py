"""Data sets and imports over REST, with sessions of their own."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import threading
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from app.db.engine import get_engine, make_engine
from app.db.sessions import session_factory
from app.main import create_app
from app.models import Project, Role, Scope
from app.services.accounts import users
from app.services.exports import plan
from app.services.imports.running import run_import
from app.services.kernel.actors import SYSTEM
from app.settings import get_settings
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

    def test_a_third_download_is_refused(
        self, project: Project, admin: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        streaming, finish = threading.Semaphore(0), threading.Event()

        def slow(_: plan.ExportPlan, *, as_csv: bool) -> Iterator[bytes]:
            streaming.release()
            finish.wait(60)
            yield b"{}\n"

        monkeypatch.setattr(plan, "file_pages", slow)
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
        run_import(int(answer.json()["id"]), worker="w", check=lambda: None)
        found = admin.get(f"/api/v1/imports/{answer.json()['id']}").json()
        assert (found["state"], found["total"], found["rejected"]) == ("succeeded", 1, 1)
        assert found["problems"][0]["line"] == 1
        assert found["problems"][0]["field"] == "images"
        assert found["finished_at"].endswith("Z")


class TestDatabaseUnreachable:
    def test_503_until_it_is_back(
        self, committed_db: CommittedDatabase, admin: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert admin.get("/api/v1/projects").status_code == 200
        here = session_factory()
        away = make_engine("postgresql://nobody@127.0.0.1:1/none", pool_size=1)
        here.configure(bind=away)
        answer = admin.get("/api/v1/projects")
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["retry-after"]) > 0
        page = admin.get("/annotate", headers={"Cookie": "illume_session=x"})
        assert page.status_code == 503
        assert page.headers["content-type"].startswith("text/html")
        assert admin.get("/healthz").status_code == 200
        here.configure(bind=get_engine())
        away.dispose()
        # A connection that the server closed meanwhile is noticed, too.
        with committed_db.engine.connect() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert admin.get("/api/v1/projects").status_code == 200


class TestEncodings:
    """How rows are sent: compressed, as Parquet, in pages, or not at all if nothing changed."""

    def path(self, project: Project) -> str:
        return f"/api/v1/projects/{project.slug}/dataset"

    def test_parquet_by_accept_and_by_parameter(self, project: Project, admin: TestClient) -> None:
        params = {"format": "sft"}
        by_accept = admin.get(self.path(project), params=params, headers={"Accept": "application/vnd.apache.parquet"})
        assert by_accept.headers["content-type"] == "application/vnd.apache.parquet"
        assert by_accept.headers["content-disposition"] == f'attachment; filename="{project.slug}-sft.parquet"'
        table = pq.read_table(io.BytesIO(by_accept.content))
        assert table.num_rows == 3
        assert table["images"].to_pylist()[0][0]["bytes"].startswith(b"\x89PNG")
        page = admin.get(self.path(project), params={**params, "as": "parquet", "limit": 2, "images": "path"})
        assert pq.read_table(io.BytesIO(page.content))["images"].to_pylist()[0][0]["bytes"] is None
        assert pq.read_metadata(io.BytesIO(page.content)).num_rows == 2

    def test_csv(self, project: Project, admin: TestClient) -> None:
        parquet = {"Accept": "application/vnd.apache.parquet"}  # a table all the same: the format says so
        found = admin.get(self.path(project), params={"format": "csv"}, headers=parquet)
        assert found.headers["content-type"].startswith("text/csv")
        assert found.headers["content-disposition"] == f'attachment; filename="{project.slug}-verdicts.csv"'
        rows = list(csv.DictReader(io.StringIO(found.text, newline="")))
        assert [row["kind"] for row in rows] == ["picked"] * 3
        page = admin.get(self.path(project), params={"format": "csv", "limit": 2})
        rest = admin.get(page.links["next"]["url"])
        assert page.content + rest.content == found.content
        packed = admin.get(self.path(project), params={"format": "csv", "compression": "gzip"})
        assert gzip.decompress(packed.content) == found.content
        for params, field in (({"as": "parquet"}, "as"), ({"as": "ndjson"}, "as")):
            refused = admin.get(self.path(project), params={"format": "csv", **params})
            assert (refused.status_code, refused.json()["field"]) == (422, field)
        for form in ("csv", "fields", "answers"):
            refused = admin.get(f"{self.path(project)}/features", params={"format": form})
            assert (refused.status_code, refused.json()["field"]) == (422, "format")
        types = admin.get(f"{self.path(project)}/features", params={"format": "kto"}).json()
        assert types["label"] == {"dtype": "bool", "_type": "Value"}

    def test_compressed(self, project: Project, admin: TestClient) -> None:
        plain = admin.get(self.path(project), headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert len(plain.content.splitlines()) == 3
        gzipped = admin.get(self.path(project), headers={"Accept-Encoding": "br, gzip;q=0.5"})
        assert gzipped.headers["content-encoding"] == "gzip"
        assert gzipped.content == plain.content
        with admin.stream("GET", self.path(project), headers={"Accept-Encoding": "gzip, zstd"}) as answer:
            assert answer.headers["content-encoding"] == "zstd"
            packed = b"".join(answer.iter_raw())
        assert pa.CompressedInputStream(io.BytesIO(packed), "zstd").read() == plain.content
        file = admin.get(self.path(project), params={"compression": "gzip"})
        assert (file.headers["content-type"], "content-encoding" in file.headers) == ("application/gzip", False)
        assert file.headers["content-disposition"].endswith('.jsonl.gz"')
        assert gzip.decompress(file.content) == plain.content

    def test_unchanged_is_304(self, project: Project, admin: TestClient, committed_db: CommittedDatabase) -> None:
        first = admin.get(self.path(project))
        tag = first.headers["etag"]
        assert tag.startswith('W/"')
        again = admin.get(self.path(project), headers={"If-None-Match": f'"other", {tag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        for params in ({"format": "kto"}, {"as": "parquet"}, {"limit": 2}, {"split": "train"}, {"aggregation": "all"}):
            assert admin.get(self.path(project), params=params, headers={"If-None-Match": tag}).status_code == 200
        with committed_db.sessions() as session:
            judge(session, session.get_one(Project, project.id), factories.make_critic(session, project))
            session.commit()
        changed = admin.get(self.path(project), headers={"If-None-Match": tag})
        assert (changed.status_code, len(changed.text.splitlines())) == (200, 4)

    def test_pages_link_to_the_next(self, project: Project, admin: TestClient) -> None:
        whole = admin.get(self.path(project)).content
        page = admin.get(self.path(project), params={"limit": 2})
        rest = admin.get(page.links["next"]["url"])
        assert page.content + rest.content == whole
        assert "next" not in rest.links
        sent = {"Host": "other.localhost:9"}  # one of our names, but not that of the public URL
        page = admin.get(self.path(project), params={"limit": 2}, headers=sent)
        assert page.links["next"]["url"].startswith(f"{get_settings().address}/api/v1/")
        assert admin.get(self.path(project), params={"limit": 0}).json()["field"] == "limit"

    def test_an_interrupted_stream_is_resumed(
        self, project: Project, admin: TestClient, committed_db: CommittedDatabase
    ) -> None:
        whole = admin.get(self.path(project))
        first = whole.text.splitlines()[0]
        with committed_db.sessions() as session:
            judge(session, session.get_one(Project, project.id), factories.make_critic(session, project))
            session.commit()
        params = {"cursor": whole.headers["illume-cursor"], "after": json.loads(first)["id"]}
        rest = admin.get(self.path(project), params=params)
        assert f"{first}\n{rest.text}" == whole.text

    def test_dataset_info(self, project: Project, admin: TestClient) -> None:
        info = admin.get(f"{self.path(project)}/dataset_info", params={"task": "kto"}).json()
        rows = admin.get(self.path(project), params={"format": "sharegpt", "task": "kto"})
        assert info[project.slug]["file_name"] in rows.headers["content-disposition"]
        assert set(info[project.slug]["columns"].values()) <= json.loads(rows.text.splitlines()[0]).keys()


class TestSnapshotFiles:
    def test_rows_records_and_card(self, project: Project, admin: TestClient) -> None:
        made = admin.post(f"/api/v1/projects/{project.slug}/snapshots", json={"name": "first"})
        assert made.status_code == 201
        found = admin.get(f"/api/v1/snapshots/{made.json()['id']}").json()
        assert found == made.json()
        assert (found["card"]["counts"]["verdicts"], found["redacted"]) == (3, 0)
        rows = admin.get(f"/api/v1/snapshots/{found['id']}/download")
        assert hashlib.sha256(rows.content).hexdigest() == found["sha256"]
        part = admin.get(f"/api/v1/snapshots/{found['id']}/download", headers={"Range": "bytes=10-"})
        assert (part.status_code, part.content) == (206, rows.content[10:])
        assert part.headers["content-range"] == f"bytes 10-{len(rows.content) - 1}/{len(rows.content)}"
        tag = {"If-None-Match": rows.headers["etag"]}
        assert admin.get(f"/api/v1/snapshots/{found['id']}/download", headers=tag).status_code == 304
        records = admin.get(f"/api/v1/projects/{project.slug}/dataset", params={"snapshot": found["id"]})
        assert hashlib.sha256(records.content).hexdigest() == found["records_sha256"]
        card = admin.get(f"/api/v1/snapshots/{found['id']}/card")
        assert card.headers["content-type"].startswith("text/markdown")
        assert found["records_sha256"] in card.text
