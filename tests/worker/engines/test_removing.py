"""Erasing a project takes its adapters off model servers, and their copies out of the folder that both share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sqlalchemy import select, update

from app import queue
from app.db.sessions import session_scope
from app.models import Engine, EngineAdapter, Project, StoreRemoval
from app.services import sweep
from app.services.engines import engines, handing_over, removing
from app.services.engines.loaded import PATIENCE
from app.services.erasure import erasures, running
from app.services.kernel.actors import SYSTEM
from app.services.projects import projects
from illume.engines import adapters
from tests.model_server import ModelServer
from tests.worker.engines.adapters import activate, add_version, hand_over_all, remove_all, rows
from worker.process import WorkerProcess


def erase(project_id: int) -> None:
    with session_scope() as session:
        asked = erasures.erase_project(session, SYSTEM, session.get_one(Project, project_id).slug).id
    running.run_erasure(asked)


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
        session.execute(update(EngineAdapter).values(requested_at=EngineAdapter.requested_at - PATIENCE))
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


class TestCopiesOfAServerThatIsRemoved:
    @pytest.fixture(autouse=True)
    def leave(self, project_id: int, loaded: list[EngineAdapter]) -> None:
        with session_scope() as session:
            projects.update_project(session, SYSTEM, session.get_one(Project, project_id).slug, {"engine": "local"})

    def test_go_once_that_is_committed(self, loaded: list[EngineAdapter], shared: Path) -> None:
        (shared / "of another server").mkdir()
        with session_scope() as session:
            engines.remove_engine(session, SYSTEM, loaded[0].engine_id)
        assert rows() == []
        assert len(list(shared.iterdir())) == 3  # no file is removed in a web request
        sweep.run()
        assert [copy.name for copy in shared.iterdir()] == ["of another server"]
        with session_scope() as session:
            assert session.scalars(select(StoreRemoval)).all() == []

    def test_stay_if_it_is_not(self, loaded: list[EngineAdapter], shared: Path) -> None:
        with session_scope() as session:
            engines.remove_engine(session, SYSTEM, loaded[0].engine_id)
            session.rollback()
        sweep.run()
        assert {copy.name for copy in shared.iterdir()} == {loaded[0].name, loaded[1].name}
        assert len(rows()) == 3

    def test_one_that_cannot_be_removed_holds_nothing_up_and_is_tried_again(
        self, loaded: list[EngineAdapter], shared: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        stuck, other = (shared / one.name for one in loaded[:2])
        shutil.rmtree(stuck)
        stuck.write_text("no folder")
        with session_scope() as session:
            engines.remove_engine(session, SYSTEM, loaded[0].engine_id)
            session.add(StoreRemoval(key="0" * 64))
        sweep.run()
        assert (stuck.exists(), other.exists()) == (True, False)
        assert "a copy of an adapter is removed later" in caplog.text
        with session_scope() as session:
            assert session.scalars(select(StoreRemoval.key)).all() == [f"adapters/{stuck.name}"]
        stuck.unlink()
        sweep.run()
        with session_scope() as session:
            assert session.scalars(select(StoreRemoval.key)).all() == []
