"""A store that is away for a while: work that needs it waits, blames nobody, and goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from app import queue
from app.db.sessions import session_scope
from app.models import Project
from app.processes.connect import forget_settings
from app.processes.embedded import free_port
from app.services import sweep
from app.services.kernel.store import AWAY
from app.services.projects import pauses
from tests.worker import loop
from tests.worker.test_filling import committed_project, states
from worker.celery_app import make_celery
from worker.preparing import prepare_rounds
from worker.process import WorkerProcess

GoAway = Callable[[], Callable[[], None]]


@pytest.fixture
def go_away(monkeypatch: pytest.MonkeyPatch) -> GoAway:
    """Lets the store go away; what that returns brings it back."""

    def come_back() -> None:
        monkeypatch.delenv("ILLUME_STORE_URL")
        forget_settings()

    def go() -> Callable[[], None]:
        monkeypatch.setenv("ILLUME_STORE_URL", f"ftp://127.0.0.1:{free_port()}/store")
        forget_settings()
        return come_back

    return go


def test_the_preparation_of_a_round_waits(
    process: WorkerProcess, base: Path, go_away: GoAway, caplog: pytest.LogCaptureFixture
) -> None:
    _, round_id = loop.project_with_a_round(base, prepared=False)
    come_back = go_away()
    prepare_rounds(process)
    found = loop.round_now(round_id)
    assert (found.state, found.worker, found.tries, found.error) == ("queued", None, 0, AWAY)
    assert "no store, the sweep sends it again" in caplog.text
    with session_scope() as session:
        assert (queue.PREPARE_ROUND, round_id) in sweep.sweep(session)
    come_back()
    prepare_rounds(process)
    assert loop.round_now(round_id).snapshot_id is not None


def test_a_round_waits(process: WorkerProcess, base: Path, go_away: GoAway) -> None:
    _, round_id = loop.project_with_a_round(base, waiting=0)
    go_away()
    make_celery(process).tasks[queue.RUN_ROUND].apply(args=[round_id], throw=True)
    found = loop.round_now(round_id)
    assert (found.state, found.worker, found.tries, found.error) == ("queued", None, 0, AWAY)
    with session_scope() as session:
        assert (queue.RUN_ROUND, round_id) in sweep.sweep(session)


def test_sampling_waits(process: WorkerProcess, base: Path, go_away: GoAway) -> None:
    fill = make_celery(process).tasks[queue.FILL_POOL]
    project_id = committed_project(base, prompts=2)
    come_back = go_away()
    fill.apply(args=[project_id], throw=True)
    with session_scope() as session:
        assert not pauses.is_paused(session, session.get_one(Project, project_id))
        assert (queue.FILL_POOL, project_id) in sweep.sweep(session)
    assert {one.failure for one in loop.sets_now(project_id)} == {None}
    come_back()
    fill.apply(args=[project_id], throw=True)
    assert states(project_id) == ["ready", "ready"]
