"""The web application as it starts."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import insert, select

from app.main import create_app
from app.models import Installation
from app.processes.connect import forget_settings
from app.services.kernel import secret_key
from app.settings import get_settings
from tests.conftest import CommittedDatabase

BASE = "http://127.0.0.1:8000"


def start() -> int:
    """Start an application and stop it. Returns the status of its health check."""
    with TestClient(create_app(), base_url=BASE) as client:
        return client.get("/healthz").status_code


class TestStart:
    def test_two_at_once_store_the_check_of_the_secret_key_and_one_warns_of_another(
        self, committed_db: CommittedDatabase, caplog: pytest.LogCaptureFixture
    ) -> None:
        with committed_db.sessions.begin() as session:
            session.execute(insert(Installation).values(key_check=secret_key.make_check("another")))
        together = threading.Barrier(2)

        def start_with_the_other(app: FastAPI) -> None:
            together.wait()
            with TestClient(app, base_url=BASE):
                pass  # it asks for nothing: what routes need is built with the first request, not in several threads

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(start_with_the_other, [create_app(), create_app()]))
        with committed_db.sessions() as session:
            assert session.scalar(select(Installation.key_check)) == secret_key.make_check(get_settings().secret_key)
        assert [said for said in caplog.messages if "secret key" in said] == [secret_key.CHANGED]

    def test_without_a_database_it_starts_all_the_same(
        self, committed_db: CommittedDatabase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ILLUME_DATABASE_URL", "postgresql://illume@127.0.0.1:1/none")
        forget_settings()
        assert start() == 200
