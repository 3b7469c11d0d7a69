"""A model server on this machine that the settings allow, a worker of the queue `default`, and what both share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db.sessions import session_scope
from app.processes.connect import forget_settings
from app.services.kernel.store import get_store
from illume.engines import client
from tests.conftest import CommittedDatabase
from tests.engines import make_engine
from tests.model_server import MODEL, ModelServer, running_server
from tests.worker import loop
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


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the server and the workers share."""
    monkeypatch.setenv("ILLUME_ADAPTERS_DIR", str(tmp_path / "shared"))
    forget_settings()
    return tmp_path / "shared"


@pytest.fixture
def adapter(worker: WorkerProcess, tmp_path: Path) -> str:
    """The key of an adapter in the store."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"r": 4}))
    return get_store().put_folder(tmp_path / "adapter")


@pytest.fixture
def project_id(worker: WorkerProcess, server: ModelServer, shared: Path) -> int:
    """A project that samples from the server."""
    with session_scope() as session:
        make_engine(session, server)
        project = loop.make_project(session, Path(MODEL), engine="gpu")
        loop.add_prompts(session, project, count=2)
        return project.id
