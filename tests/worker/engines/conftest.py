"""A model server on this machine that the settings allow, and a worker of the queue `default`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.processes.connect import forget_settings
from illume.engines import client
from tests.conftest import CommittedDatabase
from tests.model_server import ModelServer, running_server
from worker.process import WorkerProcess, make_process


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    monkeypatch.setenv("ILLUME_ENGINE_ADDRESSES", "127.0.0.0/8")
    monkeypatch.setattr(client, "PAUSE", 0.01)
    forget_settings()
    with running_server() as found:
        yield found
    forget_settings()


@pytest.fixture
def worker(committed_db: CommittedDatabase, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerProcess]:
    monkeypatch.setenv("ILLUME_REDIS_URL", "")
    forget_settings()
    process = make_process(("default",))
    yield process
    process.heartbeat.stop()
    forget_settings()
