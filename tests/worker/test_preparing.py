"""Preparing rounds beside a worker's tasks."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError, OperationalError

from app import queue
from app.db.sessions import session_scope
from app.models import Project, Prompt, Round, RoundState
from app.services.kernel.actors import SYSTEM
from app.services.rounds import preparing, rounds
from app.services.rounds.row_files import Report
from tests.worker import loop
from worker.celery_app import make_celery
from worker.preparing import prepare_rounds
from worker.process import WorkerProcess


@pytest.fixture
def round_id(process: WorkerProcess, base: Path) -> int:
    return loop.project_with_a_round(base, prepared=False)[1]


def interrupted(monkeypatch: pytest.MonkeyPatch, deed: object) -> None:
    """Let something happen while a snapshot is being made; an exception is raised."""

    def prepare(claim: object, *, report: Report) -> None:
        if isinstance(deed, Exception):
            raise deed
        assert callable(deed)
        deed()
        report(0.5)

    monkeypatch.setattr(preparing, "prepare", prepare)


class TestPrepareRounds:
    def test_all_that_wait_and_no_others(self, process: WorkerProcess, base: Path, round_id: int) -> None:
        _, other = loop.project_with_a_round(base, prepared=False)
        prepare_rounds(process)
        for one in (round_id, other):
            found = loop.round_now(one)
            assert (found.state, found.worker) == (RoundState.preparing, None)
            assert found.snapshot_id is not None
            assert found.progress == {"stage": "waiting", "fraction": 0.0, "eta_seconds": None}
        prepare_rounds(process)
        assert loop.round_now(round_id).fence == 1

    def test_the_task_does_it_in_a_thread(self, process: WorkerProcess, round_id: int) -> None:
        make_celery(process).tasks[queue.PREPARE_ROUND].apply(args=[round_id], throw=True)
        process.join_background(60)
        assert loop.round_now(round_id).snapshot_id is not None

    def test_says_how_far_it_is(self, process: WorkerProcess, round_id: int, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[object] = []
        interrupted(monkeypatch, lambda: None)
        real = preparing.prepare

        def prepare(claim: object, *, report: Report) -> None:
            real(claim, report=report)  # type: ignore[arg-type]
            seen.append(loop.round_now(round_id).progress)
            with session_scope() as session:
                session.execute(update(Round).values(snapshot_id=None, state=RoundState.failed))

        monkeypatch.setattr(preparing, "prepare", prepare)
        prepare_rounds(process)
        assert seen == [{"stage": "snapshot", "fraction": 0.5, "eta_seconds": None}]

    def test_cancelled_it_ends(self, process: WorkerProcess, round_id: int, monkeypatch: pytest.MonkeyPatch) -> None:
        def cancel() -> None:
            with session_scope() as session:
                assert rounds.cancel(session, SYSTEM, round_id).state == RoundState.cancelling

        interrupted(monkeypatch, cancel)
        prepare_rounds(process)
        assert loop.round_now(round_id).state == RoundState.cancelled

    def test_told_to_stop_it_gives_the_round_back(
        self, process: WorkerProcess, round_id: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        interrupted(monkeypatch, process.stop.set)
        prepare_rounds(process)
        found = loop.round_now(round_id)
        assert (found.state, found.worker, found.tries) == (RoundState.queued, None, 0)

    def test_what_cannot_be_prepared_fails_with_the_reason(self, process: WorkerProcess, round_id: int) -> None:
        with session_scope() as session:
            session.execute(update(Prompt).values(state="retired"))
        prepare_rounds(process)
        found = loop.round_now(round_id)
        assert (found.state, found.error) == (
            RoundState.failed,
            "Nothing to train on yet: 0 accepted explanations.",
        )
        with session_scope() as session:
            assert not rounds.start_if_due(session, found.project_id)
            session.execute(update(Prompt).values(state="judged"))
            assert rounds.retry(session, SYSTEM, round_id).state == RoundState.queued
        prepare_rounds(process)
        assert loop.round_now(round_id).snapshot_id is not None

    @pytest.mark.parametrize(
        "error", [IntegrityError("", {}, Exception("gone")), OperationalError("", {}, Exception())]
    )
    def test_what_may_go_better_is_tried_again_a_few_times(
        self,
        process: WorkerProcess,
        round_id: int,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        error: Exception,
    ) -> None:
        interrupted(monkeypatch, error)
        with caplog.at_level(logging.WARNING):
            for _ in range(6):
                prepare_rounds(process)
        found = loop.round_now(round_id)
        assert found.state == RoundState.failed
        assert found.error is not None
        assert found.error.startswith("Stopped 5 times without progress")
        with session_scope() as session:
            assert session.get_one(Project, found.project_id).active_version_id == found.parent_id
