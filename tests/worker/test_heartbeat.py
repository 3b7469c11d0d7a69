"""The heartbeat keeps a worker and what it holds alive, and harms nothing when it cannot."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from sqlalchemy import update

from app.db.sessions import session_scope
from app.models import CandidateSet, CriticJob, DeviceClaim, Project, Round, RoundState, Worker
from app.processes.connect import forget_settings
from app.services.candidates import candidates, pools
from app.services.kernel import workers
from app.services.machine_critics import jobs
from app.services.rounds import lease
from illume.phrases import Phrase
from tests import factories
from tests.conftest import CommittedDatabase
from tests.worker import loop
from worker.process import WorkerProcess, make_process
from worker.watch import Watch


class TestBeat:
    def test_keeps_the_job_of_a_machine_critic_while_its_worker_is_busy(self, process: WorkerProcess) -> None:
        with session_scope() as session:
            project = factories.make_project(session, machine_critic="verifier", auto_rounds=False)
            factories.make_round(session, project, state=RoundState.succeeded)
            jobs.list_due(session)
            claim = jobs.claim_job(session, worker=process.name)
        assert claim is not None
        for held in (True, False):
            (process.heartbeat.hold_critic if held else process.heartbeat.drop_critic)(claim)
            with session_scope() as session:
                session.execute(update(CriticJob).values(beats_at="2020-01-01T00:00:00Z"))
            process.heartbeat.beat()
            with session_scope() as session:
                assert jobs.is_waiting(session) is not held

    def test_keeps_everything_that_is_held(self, process: WorkerProcess, base: Path) -> None:
        project_id, _ = loop.project_with_a_round(base)
        with session_scope() as session:
            project = session.get_one(Project, project_id)
            candidates.claim_sampling_batch(session, project, worker=process.name, limit=1)
            workers.claim_device(session, process.device_key, worker=process.name, purpose="round")
            claim = lease.claim_round(session, worker=process.name)
        assert claim is not None
        heartbeat = process.heartbeat
        heartbeat.hold_round(claim)
        heartbeat.sampling = heartbeat.holds_device = True
        process.heartbeat.doing = "round 1"
        with session_scope() as session:
            for table in (CandidateSet, Round, DeviceClaim):
                session.execute(update(table).values(beats_at="2020-01-01T00:00:00Z"))
        process.heartbeat.beat()
        with session_scope() as session:
            assert pools.count_sampling(session, session.get_one(Project, project_id)) == 1
            assert not lease.is_round_waiting(session)
            assert workers.device_holder(session, process.device_key) is not None
            [alive] = workers.list_workers(session, queue="model")
            assert (alive.name, alive.doing, alive.device) == (process.name, "round 1", "cpu")
            assert alive.memory_mb > 10
        Watch(process, claim).report(3, 40)
        assert process.heartbeat.doing == f"writing explanations before {claim.name}: 3 of 40"
        assert isinstance(process.heartbeat.doing, Phrase)
        assert isinstance(process.heartbeat.doing.values["name"], Phrase)
        # What this process is done with lapses, though its rows still say that it is ours.
        heartbeat.drop_round(claim)
        heartbeat.sampling = heartbeat.holds_device = False
        with session_scope() as session:
            for table in (CandidateSet, Round, DeviceClaim):
                session.execute(update(table).values(beats_at="2020-01-01T00:00:00Z"))
        heartbeat.beat()
        with session_scope() as session:
            assert pools.count_sampling(session, session.get_one(Project, project_id)) == 0
            assert lease.is_round_waiting(session)
            assert workers.device_holder(session, process.device_key) is None

    def test_runs_by_itself_and_takes_the_worker_off_the_list(self, process: WorkerProcess) -> None:
        def is_listed() -> bool:
            with session_scope() as session:
                return process.name in workers.list_worker_names(session)

        process.heartbeat.start()
        loop.wait_until(is_listed)
        process.heartbeat.stop()
        assert not is_listed()

    def test_without_a_database_it_only_says_so(
        self, committed_db: CommittedDatabase, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("ILLUME_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
        forget_settings()
        process = make_process(("default",))
        with caplog.at_level(logging.WARNING):
            process.heartbeat.beat()
            process.heartbeat.stop()
        assert "no heartbeat" in caplog.text


class TestWorkerRow:
    def test_names_come_only_once(self, committed_db: CommittedDatabase) -> None:
        first, second = make_process(("default",)), make_process(("default",))
        assert first.name != second.name
        with session_scope() as session:
            assert session.get(Worker, first.name) is None
