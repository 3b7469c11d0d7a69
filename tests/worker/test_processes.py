"""Whole worker processes: started, killed, stopped, with Redis between."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis
from sqlalchemy import func, select

from app import queue
from app.db import session_scope
from app.models import Candidate, ModelVersion, RoundState
from app.services import round_running, rounds, versions, workers
from app.services.actors import SYSTEM
from tests import factories
from tests.conftest import CommittedDatabase, forget_settings
from tests.worker import loop


@pytest.fixture
def installation(
    committed_db: CommittedDatabase, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The data directory of an installation of the test's own: its database, and a broker without messages."""
    url = redis_url.removesuffix("/0") + "/9"
    monkeypatch.setenv("ILLUME_REDIS_URL", url)
    monkeypatch.setenv("ILLUME_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("ILLUME_DEVICE", "cpu")
    monkeypatch.setenv("ILLUME_SWEEP_SECONDS", "0.5")
    forget_settings()
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield tmp_path / "data"
        client.flushdb()
    forget_settings()


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process, ended at the end if it still runs."""
    process = loop.start_worker(*arguments)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def stop(process: subprocess.Popen[bytes]) -> int:
    """Tell a worker to stop; its exit code."""
    process.send_signal(signal.SIGTERM)
    return process.wait(20)


def n_alive() -> int:
    with session_scope() as session:
        return len(workers.list_workers(session))


def n_epochs(folder: Path) -> int:
    path = folder / "events.jsonl"
    return path.read_text().count('"kind": "epoch"') if path.exists() else 0


class TestRoundThroughKills:
    def test_it_goes_on_from_its_last_epoch_and_repeats_none(self, installation: Path, base: Path) -> None:
        _, round_id = loop.project_with_a_round(base, waiting=0, epochs=12)
        folder = installation / "rounds" / str(round_id)
        with running("--queues", "default,model") as first:
            loop.wait_until(lambda: n_epochs(folder) >= 2, seconds=300)
            child = json.loads((folder / "child.json").read_text())["pid"]
            first.kill()
            first.wait()
            loop.wait_until(lambda: not psutil.pid_exists(child))
        assert loop.round_now(round_id).state in round_running.RUNNING
        with running("--queues", "default,model") as second:
            loop.wait_until(lambda: loop.round_now(round_id).fence == 2, seconds=120)
            loop.wait_until(lambda: n_epochs(folder) >= 4, seconds=300)
            # The tuning process alone is killed now, under a worker that lives on.
            os.kill(json.loads((folder / "child.json").read_text())["pid"], signal.SIGKILL)
            loop.wait_until(lambda: loop.round_now(round_id).state == RoundState.succeeded, seconds=300)
            assert stop(second) == 0
        done = loop.round_now(round_id)
        with session_scope() as session:
            epochs = [one.data["epoch"] for one in rounds.events(session, done) if one.kind == "epoch"]
            made = session.scalar(select(func.count()).select_from(ModelVersion).where(ModelVersion.number > 0))
        assert epochs == list(range(1, 13))
        assert made == 1
        assert n_alive() == 0

    def test_a_worker_told_to_stop_puts_its_round_back_within_seconds(self, installation: Path, base: Path) -> None:
        _, round_id = loop.project_with_a_round(base, waiting=0, epochs=12)
        folder = installation / "rounds" / str(round_id)
        with running("--queues", "default,model") as worker:
            loop.wait_until(lambda: n_epochs(folder) >= 1, seconds=300)
            child = json.loads((folder / "child.json").read_text())["pid"]
            assert stop(worker) == 0
        assert not psutil.pid_exists(child)
        put_back = loop.round_now(round_id)
        assert (put_back.state, put_back.worker, put_back.error) == (RoundState.queued, None, None)


class TestTheWholeOfIt:
    def test_beat_and_workers_fill_the_pool_with_the_starter_model(self, installation: Path) -> None:
        if not versions.starter_model().is_dir():
            pytest.fail("the starter model is not there")
        with session_scope() as session:
            project = factories.make_project(session, pool_target=2)
            loop.add_prompts(session, project, count=3)
        with running("beat") as beat, running("--queues", "model") as model, running("--queues", "default") as default:
            ready = lambda: [one.state for one in loop.sets_now(project.id)] == ["ready", "ready"]  # noqa: E731
            loop.wait_until(ready, seconds=300)
            assert n_alive() == 2
            with session_scope() as session:
                texts = session.scalars(select(Candidate.text)).all()
            assert len(texts) >= 4
            # The default worker never loads torch.
            assert psutil.Process(default.pid).memory_info().rss < 200 * 2**20
            assert [stop(one) for one in (beat, model, default)] == [0, 0, 0]
        assert not list(Path.cwd().glob("celerybeat*"))

    def test_losing_the_broker_loses_nothing(self, installation: Path, base: Path) -> None:
        _, round_id = loop.project_with_a_round(base, waiting=0, epochs=1)
        with redis.Redis.from_url(os.environ["ILLUME_REDIS_URL"]) as client:
            client.flushdb()
        with running("beat"), running("--queues", "default,model"):
            loop.wait_until(lambda: loop.round_now(round_id).state == RoundState.succeeded, seconds=300)

    def test_cancelled_over_processes(self, installation: Path, base: Path) -> None:
        _, round_id = loop.project_with_a_round(base, waiting=0, epochs=60)
        folder = installation / "rounds" / str(round_id)
        with running("--queues", "default,model") as worker:
            queue.send_now(queue.RUN_ROUND, round_id)
            loop.wait_until(lambda: n_epochs(folder) >= 1, seconds=300)
            with session_scope() as session:
                rounds.cancel(session, SYSTEM, round_id)
            loop.wait_until(lambda: loop.round_now(round_id).state == RoundState.cancelled, seconds=10)
            assert stop(worker) == 0
