"""A project that samples elsewhere from now on: what the model server that it leaves has loaded for it is unloaded."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app import queue
from app.db.base import phrased
from app.db.sessions import session_scope
from app.models import CandidateSet, CandidateSetState, Engine, EngineAdapter, EngineState, Project
from app.services import sweep
from app.services.candidates.batches import store_set
from app.services.candidates.pools import engine_sampler
from app.services.engines import handing_over, probing, removing
from app.services.engines.copies import put_copy
from app.services.engines.loaded import PATIENCE, LoadedAdapter, Use, list_loaded
from app.services.kernel.actors import SYSTEM
from app.services.projects import pauses, projects
from tests import factories
from tests.engines import make_engine
from tests.model_server import ModelServer, running_server
from tests.worker.engines.adapters import activate, active_number, add_version, hand_over_all, remove_all, rows
from worker.engines import filling
from worker.engines.filling import fill_from_engine
from worker.process import WorkerProcess


def move(project_id: int, engine: str) -> None:
    """Let a project sample elsewhere."""
    with session_scope() as session:
        slug = session.get_one(Project, project_id).slug
        projects.update_project(session, SYSTEM, slug, {"engine": engine})


def due() -> list[int]:
    with session_scope() as session:
        return removing.list_due(session)


def shown() -> list[LoadedAdapter]:
    """What the page of model servers lists of the first server."""
    with session_scope() as session:
        return list_loaded(session, session.scalars(select(Engine).order_by(Engine.id)).first())  # type: ignore[arg-type]


def age(**values: Any) -> None:
    """Let it be long ago that adapters were last asked for."""
    with session_scope() as session:
        session.execute(update(EngineAdapter).values(requested_at=func.now() - 2 * PATIENCE, **values))


def address(url: str) -> None:
    """Let the one server have another address."""
    with session_scope() as session:
        session.execute(update(Engine).values(base_url=url))


@pytest.fixture
def loaded(worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str) -> EngineAdapter:
    """The hand-over of the active version, and another project's adapter on the same server."""
    server.adapters["of another project"] = "/adapters"
    activate(add_version(project_id, 1, adapter))
    hand_over_all(worker)
    [row] = rows()
    assert [one.use for one in shown()] == [Use.active]
    return row


@pytest.fixture
def other(project_id: int) -> Iterator[ModelServer]:
    """A second server, `other`."""
    with running_server() as found:
        with session_scope() as session:
            make_engine(session, found, name="other")
        yield found


def test_its_adapter_is_unloaded_and_the_copy_removed(
    worker: WorkerProcess, server: ModelServer, project_id: int, loaded: EngineAdapter, shared: Path
) -> None:
    assert due() == []
    move(project_id, "local")
    assert [one.use for one in shown()] == [Use.leaving]
    with session_scope() as session:
        assert (queue.REMOVE_ADAPTER, loaded.id) in sweep.sweep(session)
    assert loaded.name in server.adapters  # nothing is done in the request
    remove_all(worker)
    assert list(server.adapters) == ["of another project"]
    assert list(shared.iterdir()) == []
    assert ([row.state for row in rows()], due(), shown()) == (["unloaded"], [], [])
    assert active_number(project_id) == 1


def test_another_server_takes_its_place(
    worker: WorkerProcess, server: ModelServer, other: ModelServer, project_id: int, loaded: EngineAdapter
) -> None:
    move(project_id, "other")
    assert fill_from_engine(worker, project_id) == 0  # it is handed over first
    hand_over_all(worker)
    remove_all(worker)
    assert list(server.adapters) == ["of another project"]
    assert fill_from_engine(worker, project_id) == 2
    assert ({one["model"] for one in other.asked}, server.asked) == ({rows()[-1].name}, [])


def test_sets_that_are_being_sampled_with_it_come_first(
    worker: WorkerProcess,
    server: ModelServer,
    project_id: int,
    loaded: EngineAdapter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    was_loaded: list[bool] = []

    def store_after_the_move(*given: Any, **options: Any) -> bool:
        if not was_loaded:
            move(project_id, "local")
        remove_all(worker)
        was_loaded.append(loaded.name in server.adapters)
        return store_set(*given, **options)

    monkeypatch.setattr(filling, "store_set", store_after_the_move)
    assert fill_from_engine(worker, project_id) == 2
    assert was_loaded == [True, True]
    assert {one["model"] for one in server.asked} == {loaded.name}
    remove_all(worker)
    assert loaded.name not in server.adapters


@pytest.mark.parametrize(
    ("by_server", "earlier", "asked_long_ago", "waits"),
    [
        (True, True, False, True),
        (False, True, False, False),  # by a worker of the installation's own
        (True, False, False, False),  # claimed since, for the server that the project moved to
        (True, True, True, False),  # no worker samples one batch for so long
    ],
)
def test_but_no_others(
    worker: WorkerProcess,
    server: ModelServer,
    project_id: int,
    loaded: EngineAdapter,
    by_server: bool,
    earlier: bool,
    asked_long_ago: bool,
    waits: bool,
) -> None:
    move(project_id, "local")
    with session_scope() as session:
        offered = factories.make_candidate_set(session, session.get_one(Project, project_id))
        offered.state, offered.beats_at, offered.version_id = CandidateSetState.sampling, func.now(), loaded.version_id
        offered.worker = engine_sampler("one", project_id) if by_server else "one"
        offered.created_at = func.now() - timedelta(hours=1) if earlier else func.now() + timedelta(hours=1)
    if asked_long_ago:
        age()
    remove_all(worker)
    assert (loaded.name in server.adapters) is waits


def test_what_was_left_before_this_was_known_is_unloaded_however_late(
    worker: WorkerProcess, server: ModelServer, project_id: int, loaded: EngineAdapter
) -> None:
    move(project_id, "local")
    age()
    remove_all(worker)
    assert loaded.name not in server.adapters


class TestAServerThatIsAway:
    @pytest.fixture(autouse=True)
    def away(self, worker: WorkerProcess, project_id: int, loaded: EngineAdapter) -> None:
        address("http://127.0.0.1:9")
        move(project_id, "local")
        age()  # no worker ran for a while
        remove_all(worker)

    def test_is_asked_again_for_a_while_from_the_first_try_on(
        self, worker: WorkerProcess, server: ModelServer, loaded: EngineAdapter
    ) -> None:
        assert due() == [loaded.id]
        [line] = shown()
        assert (line.use, "cannot be reached" in line.reason) == (Use.leaving, True)
        address(server.url)
        remove_all(worker)
        assert (loaded.name in server.adapters, shown()) == (False, [])

    def test_and_once_more_when_it_was_probed(
        self, worker: WorkerProcess, server: ModelServer, loaded: EngineAdapter
    ) -> None:
        age()
        assert due() == []
        [line] = shown()
        assert (line.use, line.name, line.number) == (Use.stuck, loaded.name, 1)
        address(server.url)
        assert due() == []
        with session_scope() as session:
            session.execute(update(Engine).values(state=EngineState.probing))
        probing.probe_engine(loaded.engine_id, check=worker.check)
        remove_all(worker)
        assert (loaded.name in server.adapters, shown()) == (False, [])

    def test_has_it_still_for_a_project_that_comes_back(
        self, worker: WorkerProcess, server: ModelServer, project_id: int, loaded: EngineAdapter
    ) -> None:
        address(server.url)
        move(project_id, "gpu")
        assert due() == []
        assert [(one.use, one.reason) for one in shown()] == [(Use.active, "")]
        assert fill_from_engine(worker, project_id) == 2
        assert {one["model"] for one in server.asked} == {loaded.name}


def test_a_key_that_cannot_be_read_is_said(
    worker: WorkerProcess, server: ModelServer, project_id: int, loaded: EngineAdapter
) -> None:
    with session_scope() as session:
        session.execute(update(Engine).values(sealed_key="by another secret"))
    move(project_id, "local")
    remove_all(worker)
    [line] = shown()
    assert "enter it again" in line.reason
    assert loaded.name in server.adapters


def test_what_a_server_cannot_unload_stays_with_its_copy_and_is_not_asked_for_again(
    worker: WorkerProcess, server: ModelServer, project_id: int, loaded: EngineAdapter, shared: Path
) -> None:
    server.behaviour.swaps = False
    move(project_id, "local")
    remove_all(worker)
    [line] = shown()
    assert (line.use, line.reason) == (Use.stuck, "It was not unloaded: the server unloads no adapters while it runs.")
    assert (due(), [copy.name for copy in shared.iterdir()]) == ([], [loaded.name])


def test_a_project_that_comes_back_later_gets_it_under_a_new_name(
    worker: WorkerProcess, server: ModelServer, project_id: int, loaded: EngineAdapter
) -> None:
    move(project_id, "local")
    remove_all(worker)
    move(project_id, "gpu")
    assert fill_from_engine(worker, project_id) == 0
    hand_over_all(worker)
    assert fill_from_engine(worker, project_id) == 2
    assert [row.state for row in rows()] == ["unloaded", "loaded"]
    assert {one["model"] for one in server.asked} == {rows()[-1].name} != {loaded.name}


def test_one_that_comes_back_while_it_is_unloaded_gets_it_again(
    worker: WorkerProcess,
    server: ModelServer,
    project_id: int,
    loaded: EngineAdapter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take_off = removing.take_off

    def come_back_meanwhile(*given: Any, **options: Any) -> bool:
        move(project_id, "gpu")
        return take_off(*given, **options)

    monkeypatch.setattr(removing, "take_off", come_back_meanwhile)
    move(project_id, "local")
    remove_all(worker)
    for _ in range(2):
        fill_from_engine(worker, project_id)
        hand_over_all(worker)
    with session_scope() as session:
        project = session.get_one(Project, project_id)
        assert pauses.current_pause(session, project) is None
        assert set(session.scalars(select(CandidateSet.state))) == {CandidateSetState.ready}
    assert {row.name: row.state for row in rows()}[rows()[-1].name] == "loaded"


class TestAHandOverThatWaits:
    """The project leaves the server before the version is loaded there."""

    @pytest.fixture(autouse=True)
    def waiting(self, worker: WorkerProcess, project_id: int, adapter: str) -> None:
        activate(add_version(project_id, 1, adapter))

    def test_makes_the_version_active_where_the_project_samples_now(
        self, worker: WorkerProcess, server: ModelServer, project_id: int
    ) -> None:
        move(project_id, "local")
        hand_over_all(worker)
        assert (active_number(project_id), server.calls) == (1, [])
        [row] = rows()
        assert row.error == "Version 1 was not loaded: the project no longer samples from this server."
        with session_scope() as session:
            assert handing_over.list_due(session) == []

    def test_goes_on_on_another_server(
        self, worker: WorkerProcess, server: ModelServer, other: ModelServer, project_id: int
    ) -> None:
        move(project_id, "other")
        hand_over_all(worker)
        assert active_number(project_id) == 0
        hand_over_all(worker)
        assert (active_number(project_id), server.calls) == (1, [])
        assert list(other.adapters) == [rows()[-1].name]

    def test_that_was_being_loaded_is_undone(
        self, worker: WorkerProcess, server: ModelServer, project_id: int, shared: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def leave_meanwhile(*given: Any) -> None:
            move(project_id, "local")
            put_copy(*given)

        monkeypatch.setattr(handing_over, "put_copy", leave_meanwhile)
        hand_over_all(worker)
        assert active_number(project_id) == 1
        remove_all(worker)
        assert (server.adapters, list(shared.iterdir()), due()) == ({}, [], [])

    def test_that_failed_leaves_no_copy(
        self, worker: WorkerProcess, server: ModelServer, project_id: int, shared: Path
    ) -> None:
        server.behaviour.load_error = (500, "the rank is too high")
        hand_over_all(worker)
        assert len(list(shared.iterdir())) == 1
        move(project_id, "local")
        remove_all(worker)
        assert (list(shared.iterdir()), [row.state for row in rows()]) == ([], ["unloaded"])


def test_an_erased_project_is_not_named(session: Session) -> None:
    engine = make_engine(session)
    project = factories.make_project(session, engine="gpu")
    for number, adapter in ((1, "1" * 64), (2, "2" * 64), (3, None)):
        version = factories.make_version(session, project, number=number, adapter=adapter)
        row = EngineAdapter(engine_id=engine.id, version_id=version.id, name=f"illume-{number}", state="loaded")
        session.add(row)
    project.active_version_id = version.id - 1
    session.flush()
    found = [(one.slug, one.number, one.use) for one in list_loaded(session, engine)]
    assert found == [(project.slug, 1, Use.spare), (project.slug, 2, Use.active), (None, 3, Use.leaving)]
    session.execute(update(EngineAdapter).values(requested_at=func.now() - PATIENCE, **phrased(error="It is away.")))
    assert [(one.use, one.reason) for one in list_loaded(session, engine)] == [
        (Use.spare, ""),
        (Use.active, ""),
        (Use.stuck, "It is away."),
    ]
