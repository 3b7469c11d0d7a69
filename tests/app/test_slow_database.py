"""A frozen, locked, slow or full database gives clear errors in time, causes no pile-up, and recovers."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.db import engine as db_engine
from app.db import migrations
from app.http import problems
from app.models import Scope
from app.processes.embedded import Embedded
from app.services.accounts import users
from app.services.kernel.actors import SYSTEM
from app.web import errors
from bench.serving import free_port, serve
from tests import factories
from tests.app.processes.test_embedded import servers_in
from tests.conftest import remove_base

PLACES, CALLS = 4, 24
CLAIM = "/api/v1/projects/slow/assignments"


@pytest.fixture
def alone(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Embedded, httpx.Client]]:
    """A PostgreSQL of its own and a web server with a small pool; yields the database and a critic's client."""
    folder = Path(tempfile.mkdtemp(dir=data_dir))
    folder.chmod(0o711)
    services = Embedded(folder, durable=False, with_redis=False)
    services.start()
    migrations.upgrade(services.database_url)
    engine = create_engine(db_engine.sqlalchemy_url(services.database_url), poolclass=NullPool)
    with Session(engine) as session, session.begin():
        project = factories.make_project(session, slug="slow", max_open=1000)
        for _ in range(4 * CALLS):
            factories.make_candidate_set(session, project)
        user = factories.make_member(session, project)
        token = users.create_token(session, SYSTEM, user_id=user.id, scope=Scope.write)[1]
    for name, value in (
        ("DATABASE_URL", services.database_url),
        ("POOL_SIZE", str(PLACES)),
        ("REDIS_URL", "redis://127.0.0.1:1/0"),
    ):
        monkeypatch.setenv(f"ILLUME_{name}", value)
    port = free_port()
    server = serve(port, 1, folder / "web.log")
    limits = httpx.Limits(max_connections=200)
    headers = {"Authorization": f"Bearer {token}"}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60, limits=limits) as client:
            yield services, client
    finally:
        server.terminate()
        server.wait(30)
        services.stop()
        remove_base(services)


def claims(client: httpx.Client, threads: ThreadPoolExecutor) -> list[Future[httpx.Response]]:
    """Many concurrent claims, in progress."""
    return [threads.submit(client.post, CLAIM) for _ in range(CALLS)]


@contextlib.contextmanager
def frozen(folder: Path) -> Iterator[None]:
    """Freeze PostgreSQL during the block."""
    family = servers_in(folder)
    for process in family:
        process.suspend()
    try:
        yield
    finally:
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


@pytest.mark.slow
class TestSlow:
    def test_a_frozen_database_blocks_only_admitted_requests(self, alone: tuple[Embedded, httpx.Client]) -> None:
        services, client = alone
        assert client.post(CLAIM).status_code == 201
        with ThreadPoolExecutor(CALLS) as threads:
            with frozen(services.base):
                started = time.monotonic()
                under_way = claims(client, threads)
                while sum(one.done() for one in under_way) < CALLS - PLACES:
                    assert time.monotonic() - started < 15
                    time.sleep(0.05)
                turned_away = [one.result() for one in under_way if one.done()]
                assert {one.status_code for one in turned_away} == {503}
                assert {one.headers["Retry-After"] for one in turned_away} == {"2"}
                assert "busy" in turned_away[0].json()["detail"]
                assert client.get("/healthz").status_code == 200
                assert client.get("/static/css/base.css").status_code == 200
            statuses = Counter(one.result().status_code for one in under_way)
        assert statuses == {503: CALLS - PLACES, 201: PLACES}
        assert client.post(CLAIM).status_code == 201

    def test_a_locked_table_gives_503_in_time(self, alone: tuple[Embedded, httpx.Client]) -> None:
        services, client = alone
        with psycopg.connect(services.database_url) as hindering, ThreadPoolExecutor(CALLS) as threads:
            hindering.execute("LOCK TABLE assignments IN ACCESS EXCLUSIVE MODE")
            started = time.monotonic()
            answers = [one.result() for one in claims(client, threads)]
            assert time.monotonic() - started < 12
            assert {one.status_code for one in answers} == {503}
            assert all(int(one.headers["Retry-After"]) >= 1 for one in answers)
            hindering.rollback()
            assert {one.result().status_code for one in claims(client, threads)} == {201}
        with psycopg.connect(services.database_url) as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'illume'"
            ).fetchone() or (0,)
        assert count <= PLACES + db_engine.EXTRA_CONNECTIONS

    def test_a_stopped_database_gives_503_until_it_is_back(self, alone: tuple[Embedded, httpx.Client]) -> None:
        services, client = alone
        assert client.post(CLAIM).status_code == 201
        for process in servers_in(services.base):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.5)
        gone = client.post(CLAIM)
        assert (gone.status_code, gone.headers["Retry-After"]) == (503, "2")
        assert "cannot be reached" in gone.json()["detail"]
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        end = time.monotonic() + 60
        while client.post(CLAIM).status_code != 201:
            assert time.monotonic() < end
            services.check(time.monotonic())
            time.sleep(0.1)


class TestFull:
    @pytest.fixture
    def broken(self) -> TestClient:
        """An application whose routes find the disk full."""
        app = FastAPI()
        problems.install(app, error_page=errors.render)

        @app.get("/api/store")
        def store() -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        @app.get("/api/database")
        def database() -> None:
            raise OperationalError("INSERT", {}, psycopg.errors.DiskFull("could not extend file"))

        @app.get("/api/other")
        def other() -> None:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

        return TestClient(app, raise_server_exceptions=False)

    @pytest.mark.parametrize("what", ["store", "database"])
    def test_a_full_disk_gives_503(self, broken: TestClient, what: str) -> None:
        answer = broken.get(f"/api/{what}")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")
        assert "disk is full" in answer.json()["detail"]

    def test_other_errors_give_500(self, broken: TestClient) -> None:
        assert broken.get("/api/other").status_code == 500
