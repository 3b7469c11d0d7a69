"""Erasing a project takes its adapters off model servers, and their copies out of the folder that both share."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import update

from app import queue
from app.db.sessions import session_scope
from app.models import Engine, EngineAdapter, Project
from app.services import sweep
from app.services.engines import engines, handing_over, removing
from app.services.erasure import erasures, running
from app.services.kernel.actors import SYSTEM
from app.services.projects import projects
from illume.engines import adapters
from tests.model_server import ModelServer
from tests.worker.engines.adapters import activate, add_version, hand_over_all, rows
from worker.process import WorkerProcess


def erase(project_id: int) -> None:
    with session_scope() as session:
        asked = erasures.erase_project(session, SYSTEM, session.get_one(Project, project_id).slug).id
    running.run_erasure(asked)


def remove_all(worker: WorkerProcess) -> None:
    with session_scope() as session:
        due = removing.list_due(session)
    for adapter_id in due:
        removing.remove_adapter(adapter_id, check=worker.check)


@pytest.fixture
def loaded(worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str) -> list[EngineAdapter]:
    """The hand-overs of a project: one that is loaded, one that failed, and one that waits."""
    activate(add_version(project_id, 1, adapter))
    hand_over_all(worker)
    server.behaviour.load_error = (500, "the rank is too high")
    activate(add_version(project_id, 2, adapter))
    hand_over_all(worker)
    server.behaviour.load_error = None
    activate(add_version(project_id, 3, adapter))
    found = rows()
    assert [row.state for row in found] == ["loaded", "failed", "waiting"]
    return found


def test_nothing_of_an_erased_project_is_left(
    worker: WorkerProcess, server: ModelServer, project_id: int, loaded: list[EngineAdapter], shared: Path
) -> None:
    assert {copy.name for copy in shared.iterdir()} == {loaded[0].name, loaded[1].name}
    server.adapters["of another project"] = "/adapters"
    erase(project_id)
    with session_scope() as session:
        assert removing.list_due(session) == [row.id for row in loaded]
        assert handing_over.list_due(session) == []
        asked = sweep.sweep(session)
        assert {(queue.REMOVE_ADAPTER, row.id) for row in loaded} <= set(asked)
    remove_all(worker)
    assert list(server.adapters) == ["of another project"]
    assert list(shared.iterdir()) == []
    assert rows() == []


def test_others_keep_what_they_have(
    worker: WorkerProcess, server: ModelServer, project_id: int, loaded: list[EngineAdapter], shared: Path
) -> None:
    removing.remove_adapter(loaded[0].id, check=worker.check)
    assert list(server.adapters) == [loaded[0].name]
    assert len(rows()) == 3
    assert (shared / loaded[0].name).exists()


def test_a_server_that_is_away_is_asked_again_for_a_while(
    worker: WorkerProcess, server: ModelServer, project_id: int, loaded: list[EngineAdapter], shared: Path
) -> None:
    erase(project_id)
    with session_scope() as session:
        session.execute(update(Engine).values(base_url="http://127.0.0.1:9"))
    remove_all(worker)
    assert list(shared.iterdir()) == []  # what can be removed is removed
    assert len(rows()) == 3
    with session_scope() as session:
        session.execute(update(EngineAdapter).values(requested_at=EngineAdapter.requested_at - removing.PATIENCE))
    remove_all(worker)
    assert rows() == []


def test_a_server_that_unloads_nothing_is_not_asked_for_ever(
    worker: WorkerProcess,
    server: ModelServer,
    project_id: int,
    loaded: list[EngineAdapter],
    shared: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.behaviour.swaps = False
    erase(project_id)
    remove_all(worker)
    assert (rows(), list(shared.iterdir())) == ([], [])
    assert f"keeps {loaded[0].name} until it is restarted" in caplog.text


def test_a_hand_over_that_was_under_way_is_taken_back(
    worker: WorkerProcess,
    server: ModelServer,
    project_id: int,
    adapter: str,
    shared: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = adapters.load

    async def load_meanwhile(*given: object) -> None:
        await load(*given)  # type: ignore[arg-type]
        with session_scope() as session:  # as an erasure does that is through before the hand-over is
            session.delete(session.get_one(EngineAdapter, rows()[0].id))

    monkeypatch.setattr(adapters, "load", load_meanwhile)
    activate(add_version(project_id, 1, adapter))
    hand_over_all(worker)
    assert (rows(), server.adapters, list(shared.iterdir())) == ([], {}, [])


def test_copies_of_a_server_that_is_removed_go_with_it(
    project_id: int, loaded: list[EngineAdapter], shared: Path
) -> None:
    (shared / "of another server").mkdir()
    with session_scope() as session:
        projects.update_project(session, SYSTEM, session.get_one(Project, project_id).slug, {"engine": "local"})
        engines.remove_engine(session, SYSTEM, loaded[0].engine_id)
    assert [copy.name for copy in shared.iterdir()] == ["of another server"]
    assert rows() == []
