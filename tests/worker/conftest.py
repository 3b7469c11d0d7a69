"""A tiny model, a worker process in this process, and the model it loads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.processes.connect import forget_settings
from tests.conftest import CommittedDatabase
from tests.illume.families import make_llava
from worker.model_cache import ModelCache
from worker.process import WorkerProcess, make_process


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights."""
    return make_llava(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def models() -> ModelCache:
    """The model cache of this process."""
    return ModelCache()


@pytest.fixture
def process(
    committed_db: CommittedDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WorkerProcess]:
    """This process as a worker of models, with a data directory of its own; its heart does not beat by itself."""
    monkeypatch.setenv("ILLUME_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("ILLUME_DEVICE", "cpu")
    monkeypatch.setenv("ILLUME_REDIS_URL", "")
    forget_settings()
    process = make_process(("model",), device="cpu")
    yield process
    process.heartbeat.stop()
    forget_settings()
