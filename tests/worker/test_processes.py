"""Whole worker processes: started, killed, stopped, with Redis between."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import redis
from sqlalchemy import func, select, update

from app import queue
from app.db.sessions import session_scope
from app.models import (
    Candidate,
    CandidateSet,
    CandidateSetState,
    CandidateSource,
    ModelVersion,
    Project,
    Prompt,
    Round,
    RoundState,
    RoundTrigger,
    Scope,
    Split,
    Verdict,
)
from app.processes import health_checks
from app.processes.connect import forget_settings
from app.processes.embedded import free_port
from app.services.accounts import users
from app.services.candidates import pools
from app.services.kernel import workers
from app.services.kernel.actors import SYSTEM
from app.services.projects import base_models
from app.services.rounds import lease, rounds
from app.settings import ROOT
from tests import factories
from tests.app.services.invariants import broken
from tests.conftest import CommittedDatabase
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
    @pytest.mark.slow  # in this process in test_rounds.py, and among everything else in tests/chaos
    def test_it_goes_on_from_its_last_epoch_and_repeats_none(
        self, installation: Path, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ILLUME_LEASE_SECONDS", "8")  # after so long the second worker takes the round over
        forget_settings()
        _, round_id = loop.project_with_a_round(base, waiting=0, epochs=12)
        folder = installation / "rounds" / str(round_id)
        with running("--queues", "default,model") as first:
            loop.wait_until(lambda: n_epochs(folder) >= 2, seconds=300)
            child = json.loads((folder / "process.json").read_text())[0]["pid"]
            first.kill()
            first.wait()
            loop.wait_until(lambda: not psutil.pid_exists(child))
        assert loop.round_now(round_id).state in lease.RUNNING
        with running("--queues", "default,model") as second:
            loop.wait_until(lambda: loop.round_now(round_id).fence == 2, seconds=120)
            loop.wait_until(lambda: n_epochs(folder) >= 4, seconds=300)
            # The tuning process alone is killed now, under a worker that lives on.
            os.kill(json.loads((folder / "process.json").read_text())[0]["pid"], signal.SIGKILL)
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
            child = json.loads((folder / "process.json").read_text())[0]["pid"]
            assert stop(worker) == 0
        assert not psutil.pid_exists(child)
        put_back = loop.round_now(round_id)
        assert (put_back.state, put_back.worker, put_back.error) == (RoundState.queued, None, None)


class TestTheWholeOfIt:
    def test_they_find_in_the_database_what_the_broker_has_lost(self, installation: Path, base: Path) -> None:
        """A pool that the starter model fills, and a round of another project, from its snapshot to its version."""
        if not base_models.starter_model().is_dir():
            pytest.fail("the starter model is not there")
        with session_scope() as session:
            project = factories.make_project(session, pool_target=2, pool_for_round=2)  # whoever fills it first
            loop.add_prompts(session, project, count=3)
        _, round_id = loop.project_with_a_round(base, waiting=0, prepared=False, epochs=1)
        with redis.Redis.from_url(os.environ["ILLUME_REDIS_URL"]) as client:
            client.flushdb()
        with running("beat") as beat, running("--queues", "model") as model, running("--queues", "default") as default:
            ready = lambda: [one.state for one in loop.sets_now(project.id)] == ["ready", "ready"]  # noqa: E731
            loop.wait_until(ready, seconds=300)
            loop.wait_until(lambda: loop.round_now(round_id).state == RoundState.succeeded, seconds=300)
            assert n_alive() == 2
            with session_scope() as session:
                of_project = select(Candidate.text).join(CandidateSet).where(CandidateSet.project_id == project.id)
                assert len(session.scalars(of_project).all()) >= 4
            # The default worker never loads torch.
            assert psutil.Process(default.pid).memory_info().rss < 200 * 2**20
            assert [stop(one) for one in (beat, model, default)] == [0, 0, 0]
        assert not list(Path.cwd().glob("celerybeat*"))

    @pytest.mark.slow  # quick in test_rounds.py, in this process
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


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """A web server process; its address once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        loop.wait_until(lambda: health_checks.answers(f"{address}/readyz"), seconds=120)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def judge_all(address: str, token: str) -> int:
    """Pick the first candidate of every set there is to judge, over HTTP; how many that were."""
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=f"{address}/api/v1", headers=headers, timeout=60) as api:
        for count in itertools.count():
            claimed = api.post("/projects/twice/assignments")
            if claimed.status_code == 204:
                return count
            body = {"kind": "picked", "picks": [claimed.json()["candidates"][0]["id"]]}
            given = api.post(f"/assignments/{claimed.json()['id']}/verdict", json=body)
            assert (claimed.status_code, given.status_code) == (201, 201)
    raise AssertionError


class TestTwoOfEach:
    SETS, WAITING, CRITICS = 24, 8, 8

    @pytest.mark.slow
    def test_nothing_is_done_twice(self, installation: Path, base: Path) -> None:
        with session_scope() as session:
            project = loop.make_project(
                session, base, slug="twice", auto_rounds=True, round_every=self.SETS, pool_target=self.WAITING
            )
            for prompt in loop.add_prompts(session, project, count=self.SETS):
                factories.make_candidate_set(session, project, prompt=prompt, source=CandidateSource.imported)
            loop.add_prompts(session, project, count=self.WAITING, split=Split.test)
            loop.add_prompts(session, project, count=3, split=Split.val)
            session.execute(update(Prompt).where(Prompt.split == Split.test).values(split=Split.train))
            critics = [factories.make_member(session, project) for _ in range(self.CRITICS)]
            tokens = [users.create_token(session, SYSTEM, user_id=one.id, scope=Scope.write)[1] for one in critics]
            project_id = project.id
        with contextlib.ExitStack() as stack:
            web = [stack.enter_context(serving()) for _ in range(2)]
            with ThreadPoolExecutor(self.CRITICS) as threads:
                judged = threads.map(judge_all, itertools.cycle(web), tokens)
                assert sum(judged) == self.SETS
            for words in (["beat"], ["--queues", "model"], ["--queues", "default"]) * 2:
                stack.enter_context(running(*words))
            loop.wait_until(lambda: self.is_done(project_id), seconds=300)
        with session_scope() as session:
            assert broken(session) == {}
            assert session.scalar(select(func.count()).select_from(Verdict)) == self.SETS
            (made,) = session.scalars(select(Round))
            assert (made.trigger, made.fence, made.tries) == (RoundTrigger.auto, 1, 1)
            epochs = [one.data["epoch"] for one in rounds.events(session, made) if one.kind == "epoch"]
            assert epochs == list(range(1, len(epochs) + 1))
            assert session.scalars(select(ModelVersion.number).order_by(ModelVersion.number)).all() == [0, 1]
            sampled = session.scalars(select(CandidateSet).where(CandidateSet.source == CandidateSource.model)).all()
            # Those of the first version that nobody had claimed are replaced where the new one became active.
            ready = [one.prompt_id for one in sampled if one.state == CandidateSetState.ready]
            assert len(ready) == len(set(ready)) == self.WAITING
            assert all((one.fence, one.tries) == (1, 1) for one in sampled)
            texts = session.execute(select(Candidate.candidate_set_id, Candidate.position)).all()
            assert len(texts) == len(set(texts))

    def is_done(self, project_id: int) -> bool:
        """Whether the round has ended and the pool is full."""
        with session_scope() as session:
            states = session.scalars(select(Round.state)).all()
            project = session.get_one(Project, project_id)
            return states == [RoundState.succeeded] and pools.count_missing_sets(session, project) == 0
