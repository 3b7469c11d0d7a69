"""Handing an adapter over to a model server: load, wait, switch, unload; and what goes wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from app.db.sessions import session_scope
from app.models import AdapterState, Engine, EngineAdapter, EngineState, Project
from app.services.engines import handing_over, probing
from app.services.projects import pauses, projects
from app.services.rounds import hand_over
from tests.engines import FOUND, make_engine
from tests.model_server import MODEL, ModelServer
from tests.worker import loop
from tests.worker.engines.adapters import activate, active_number, add_version, hand_over_all, rows
from worker.engines.filling import fill_from_engine
from worker.process import WorkerProcess

COMMIT = "5fbcdcd0" * 5


def test_a_version_becomes_active_once_it_is_loaded(
    worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str, shared: Path
) -> None:
    version_id = add_version(project_id, 1, adapter)
    server.behaviour.lists_late = 1
    activate(version_id)
    assert active_number(project_id) == 0
    hand_over_all(worker)
    assert active_number(project_id) == 1
    [row] = rows()
    assert server.adapters == {row.name: str(shared / row.name)}
    assert oct((shared / row.name).stat().st_mode)[-3:] == "755"
    assert fill_from_engine(worker, project_id) == 2
    assert {body["model"] for body in server.asked} == {row.name}


def test_the_one_before_is_unloaded_and_names_are_never_used_twice(
    worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str, shared: Path
) -> None:
    first, second = add_version(project_id, 1, adapter), add_version(project_id, 2, adapter)
    for version_id in (first, second, first):
        activate(version_id)
        hand_over_all(worker)
    assert active_number(project_id) == 1
    found = rows()
    assert [one.state for one in found] == ["unloaded", "unloaded", "loaded"]
    assert len({one.name for one in found}) == 3
    assert list(server.adapters) == [found[-1].name] == [copy.name for copy in shared.iterdir()]


def test_a_copy_stays_as_long_as_the_server_has_the_adapter(
    worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str, shared: Path
) -> None:
    def load_by_hand(version_id: int) -> str:
        activate(version_id)
        hand_over_all(worker)
        name = rows()[-1].name
        server.adapters[name] = "by --lora-modules"
        activate(version_id)
        hand_over_all(worker)
        return name

    def copies() -> set[str]:
        return {copy.name for copy in shared.iterdir()}

    server.behaviour.swaps = False
    one = load_by_hand(add_version(project_id, 1, adapter))
    two = load_by_hand(add_version(project_id, 2, adapter))
    assert [row.state for row in rows()] == ["unloaded", "loaded"]
    assert copies() == {one, two}
    del server.adapters[one]
    three = load_by_hand(add_version(project_id, 3, adapter))
    assert copies() == {two, three}


def test_the_base_model_needs_no_hand_over(
    worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str
) -> None:
    with session_scope() as session:
        base = session.get_one(Project, project_id).active_version_id
        assert base is not None
    activate(add_version(project_id, 1, adapter))
    hand_over_all(worker)
    activate(base)
    assert active_number(project_id) == 0


def test_done_twice_it_is_done_once(worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str) -> None:
    activate(add_version(project_id, 1, adapter))
    [row] = rows()
    server.adapters[row.name] = "loaded by another worker"
    server.behaviour.lists_late = 2
    hand_over_all(worker)
    assert active_number(project_id) == 1
    handing_over.hand_over(row.id, check=worker.check)
    assert [path for path, _ in server.calls].count("/v1/load_lora_adapter") == 1


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"load_error": (500, "LoRA rank 64 is greater than max_lora_rank 16.")}, "rank 64 is greater"),
        ({"key": "other"}, "refuses the key"),
        ({"swaps": False, "cannot_list": True}, "loads no adapters while it runs"),
        (
            {"swaps": False},
            "Load this one by hand, for vLLM by restarting it with --enable-lora",
        ),
    ],
)
def test_a_failure_keeps_the_version_before_and_says_why(
    worker: WorkerProcess,
    server: ModelServer,
    project_id: int,
    adapter: str,
    behaviour: dict[str, object],
    reason: str,
) -> None:
    for name, value in behaviour.items():
        setattr(server.behaviour, name, value)
    activate(add_version(project_id, 1, adapter))
    hand_over_all(worker)
    [row] = rows()
    assert (active_number(project_id), row.state) == (0, AdapterState.failed)
    assert reason in (row.error or "")


def test_one_that_was_loaded_by_hand_is_found(
    worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str
) -> None:
    server.behaviour.swaps = False
    version_id = add_version(project_id, 1, adapter)
    activate(version_id)
    hand_over_all(worker)
    [row] = rows()
    server.adapters[row.name] = "by --lora-modules"
    activate(version_id)
    hand_over_all(worker)
    assert active_number(project_id) == 1
    assert [one.name for one in rows()] == [row.name]


def test_a_server_that_finds_adapters_in_the_folder_by_itself(
    worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str, shared: Path
) -> None:
    server.behaviour.swaps, server.behaviour.resolves = False, shared
    activate(add_version(project_id, 1, adapter))
    hand_over_all(worker)
    assert active_number(project_id) == 1


class TestAServerThatAnswersUnderAnyName:
    @pytest.fixture(autouse=True)
    def found(self, project_id: int, server: ModelServer) -> None:
        server.behaviour.any_name, server.behaviour.swaps = True, False
        with session_scope() as session:
            engine = hand_over.engine_of(session, session.get_one(Project, project_id))
            assert engine is not None
            engine.capabilities = FOUND.as_json() | {"any_name": True, "adapters": False}

    @pytest.mark.parametrize("beside", [False, True])
    def test_a_version_is_not_active_for_an_answer_in_its_name(
        self, worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str, beside: bool
    ) -> None:
        version_id = add_version(project_id, 1, adapter)
        activate(version_id)
        [row] = rows()
        if beside:  # as SGLang lists adapters, which it does not choose by this name
            server.adapters[row.name] = "/adapters"
        hand_over_all(worker)
        [row] = rows()
        assert (active_number(project_id), row.state) == (0, AdapterState.failed)
        assert f"lists under the name {row.name}, then activate version 1 again" in (row.error or "")
        assert fill_from_engine(worker, project_id) == 2
        assert {body["model"] for body in server.asked} == {MODEL}

    def test_but_once_the_server_lists_the_name_as_its_own(
        self, worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str
    ) -> None:
        version_id = add_version(project_id, 1, adapter)
        activate(version_id)
        hand_over_all(worker)
        [row] = rows()
        server.behaviour.alias = row.name
        activate(version_id)
        hand_over_all(worker)
        assert active_number(project_id) == 1
        assert fill_from_engine(worker, project_id) == 2
        assert {body["model"] for body in server.asked} == {row.name}
        with session_scope() as session:
            [engine] = session.scalars(update(Engine).values(state=EngineState.probing).returning(Engine))
            engine_id = engine.id
        probing.probe_engine(engine_id, check=worker.check)
        with session_scope() as session:
            found = session.get_one(Engine, engine_id)
            assert (found.state, found.error) == (EngineState.ready, None)

    def test_nothing_is_sampled_in_the_name_of_what_it_does_not_list(
        self, worker: WorkerProcess, server: ModelServer, project_id: int
    ) -> None:
        server.behaviour.alias = "another"
        assert fill_from_engine(worker, project_id) == 0
        assert not server.asked
        with session_scope() as session:
            found = pauses.current_pause(session, session.get_one(Project, project_id))
            assert found is not None
            assert f"does not list '{MODEL}' as its own" in found.reason


def test_a_server_with_another_model_is_probed_before_it_gets_an_adapter(
    worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str
) -> None:
    with session_scope() as session:
        project = session.get_one(Project, project_id)
        assert hand_over.why_rounds_are_off(session, projects.settings_of(session, project)) is None
        engine = hand_over.engine_of(session, project)
        assert engine is not None
        engine_id = engine.id
    server.behaviour.root = "another/model"
    activate(add_version(project_id, 1, adapter))
    for _ in range(2):  # it waits for the probe
        hand_over_all(worker)
        [row] = rows()
        assert (row.state, server.adapters, server.asked) == (AdapterState.waiting, {}, [])
        assert "it is probed again" in (row.error or "")
    probing.probe_engine(engine_id, check=worker.check)
    with session_scope() as session:
        project = session.get_one(Project, project_id)
        off = hand_over.why_rounds_are_off(session, projects.settings_of(session, project))
        assert "runs another/model, and the base model of this project is tiny/model" in (off or "")


def test_a_server_with_another_context_gets_it_after_the_probe(
    worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str
) -> None:
    with session_scope() as session:
        engine = hand_over.engine_of(session, session.get_one(Project, project_id))
        assert engine is not None
        engine.capabilities = FOUND.as_json() | {"max_tokens": 512}
        engine_id = engine.id
    activate(add_version(project_id, 1, adapter))
    hand_over_all(worker)
    assert not server.adapters
    probing.probe_engine(engine_id, check=worker.check)
    hand_over_all(worker)
    assert active_number(project_id) == 1
    assert rows()[0].error is None


def test_a_server_that_cannot_be_used_gets_nothing(
    worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str
) -> None:
    with session_scope() as session:
        session.execute(update(Engine).values(state=EngineState.failed, error="model: it lists others"))
    activate(add_version(project_id, 1, adapter))
    hand_over_all(worker)
    [row] = rows()
    assert (row.state, row.error) == (AdapterState.failed, "Version 1 was not loaded: model: it lists others.")
    assert not server.calls


def test_a_server_that_sees_the_folder_elsewhere(
    worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str
) -> None:
    with session_scope() as session:
        engine = hand_over.engine_of(session, session.get_one(Project, project_id))
        assert engine is not None
        engine.adapters_path = "/adapters"
    activate(add_version(project_id, 1, adapter))
    hand_over_all(worker)
    [row] = rows()
    assert f"No adapter found for /adapters/{row.name}" in (row.error or "")


def test_a_server_that_is_away_is_waited_for_and_then_given_up(
    worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str
) -> None:
    activate(add_version(project_id, 1, adapter))
    with session_scope() as session:
        engine = hand_over.engine_of(session, session.get_one(Project, project_id))
        assert engine is not None
        engine.base_url = "http://127.0.0.1:9"
    hand_over_all(worker)
    [row] = rows()
    assert (row.state, "cannot be reached" in (row.error or "")) == ("waiting", True)
    with session_scope() as session:
        session.execute(update(EngineAdapter).values(requested_at=EngineAdapter.requested_at - handing_over.PATIENCE))
    hand_over_all(worker)
    assert rows()[0].state is AdapterState.failed


def test_the_last_choice_counts(worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str) -> None:
    first, second = add_version(project_id, 1, adapter), add_version(project_id, 2, adapter)
    activate(first)
    activate(second)
    hand_over_all(worker)
    assert active_number(project_id) == 2


class TestRoundsAreOff:
    @pytest.mark.parametrize(
        ("values", "base_model", "said"),
        [
            ({}, MODEL, None),
            ({"model": "served-name"}, MODEL, None),
            ({"capabilities": FOUND.as_json() | {"root": "/models/one"}}, MODEL, None),
            ({"capabilities": FOUND.as_json() | {"root": "another/model"}}, MODEL, "runs another/model, and the base"),
            ({}, "another/model", "runs tiny/model, and the base model of this project is another/model"),
            ({"revision": "main"}, MODEL, None),
            ({"revision": "5fbcdcd"}, MODEL, "runs revision 5fbcdcd of tiny/model, and the workers load the newest"),
            ({"revision": COMMIT}, f"{MODEL}@{COMMIT}", None),
            ({"revision": COMMIT[:7]}, f"{MODEL}@{COMMIT}", None),
            ({"revision": COMMIT, "model": "served-name"}, f"{MODEL}@{COMMIT}", None),
            ({"revision": "a1b2c3d"}, f"{MODEL}@{COMMIT}", f"of tiny/model, and the workers load {COMMIT}"),
            ({}, f"{MODEL}@{COMMIT}", f"runs revision main of tiny/model, and the workers load {COMMIT}"),
            ({}, f"another/model@{COMMIT}", "runs tiny/model, and the base model of this project is another/model"),
            ({"capabilities": {}}, MODEL, "nobody knows yet what"),
        ],
    )
    def test_where_the_server_runs_another_model(
        self, worker: WorkerProcess, values: dict[str, Any], base_model: str, said: str | None
    ) -> None:
        with session_scope() as session:
            make_engine(session, None, **values)
            project = loop.make_project(session, Path(base_model), engine="gpu")
            found = hand_over.why_rounds_are_off(session, projects.settings_of(session, project))
            assert found is None if said is None else said in (found or "")
