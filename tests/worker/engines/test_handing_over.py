"""Handing an adapter over to a model server: load, wait, switch, unload; and what goes wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from app.db.sessions import session_scope
from app.errors import Conflict
from app.models import AdapterState, Engine, EngineAdapter, EngineState, ModelVersion, Project, RoundState
from app.processes.connect import forget_settings
from app.services.engines import copies, handing_over, probing
from app.services.kernel.actors import SYSTEM
from app.services.projects import pauses, projects
from app.services.rounds import hand_over, rounds
from tests import factories
from tests.engines import FOUND, make_engine
from tests.model_server import MODEL, ModelServer
from tests.worker import loop
from tests.worker.engines.adapters import activate, active_number, add_version, hand_over_all, rows
from worker.engines.filling import fill_from_engine
from worker.process import WorkerProcess

COMMIT = "5fbcdcd0" * 5


def only_engine() -> int:
    """The id of the one server."""
    with session_scope() as session:
        return session.scalars(select(Engine.id)).one()


def set_capabilities(**found: Any) -> None:
    """Let the probe have found something else."""
    with session_scope() as session:
        session.execute(update(Engine).values(capabilities=FOUND.as_json() | found))


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


class TestTheSharedFolder:
    """Workers create what only their own account can read, and a model server has another one."""

    @pytest.fixture(autouse=True)
    def private(self) -> Iterator[None]:
        before = os.umask(0o077)
        yield
        os.umask(before)

    def modes(self, folder: Path) -> set[str]:
        return {oct(path.stat().st_mode)[-3:] for path in (folder, *folder.rglob("*"))}

    def test_is_made_for_any_account_to_enter(self, shared: Path, adapter: str) -> None:
        copies.put_copy(adapter, "illume-one")
        assert self.modes(shared) == {"755", "644"}

    def test_of_an_admin_keeps_its_mode(self, shared: Path, adapter: str) -> None:
        shared.mkdir()
        shared.chmod(0o750)
        copies.put_copy(adapter, "illume-one")
        assert self.modes(shared) == {"750", "755", "644"}

    def test_in_the_data_folder_is_opened(self, adapter: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("ILLUME_ADAPTERS_DIR", raising=False)
        forget_settings()
        folder = copies.adapters_dir()
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # as an earlier release made it
        copies.put_copy(adapter, "illume-one")
        assert self.modes(folder) == {"755", "644"}


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


class TestAVersionOfAnotherBase:
    """The server runs another model than the one that the version was tuned on."""

    SAID = (
        "Version 1 cannot be used: the model server 'gpu' runs another/model, and the base model of this project is"
        " tiny/model. What is tuned here would not fit there: let both be the same."
    )

    @pytest.fixture
    def another(self, server: ModelServer, project_id: int) -> None:
        server.behaviour.root = "another/model"
        set_capabilities(root="another/model")

    @pytest.mark.usefixtures("another")
    @pytest.mark.parametrize("swaps", [True, False])
    def test_is_not_handed_over(
        self, worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str, shared: Path, swaps: bool
    ) -> None:
        server.behaviour.swaps, server.behaviour.resolves = swaps, None if swaps else shared
        activate(add_version(project_id, 1, adapter))
        hand_over_all(worker)
        [row] = rows()
        assert (active_number(project_id), row.state, row.error) == (0, AdapterState.failed, self.SAID)
        assert (server.adapters, server.calls, shared.exists()) == ({}, [], False)
        with session_scope() as session:
            assert self.SAID in hand_over.notes_of(session, session.get_one(Project, project_id))

    def test_is_not_handed_over_where_the_model_changed_after_a_round(
        self, worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str
    ) -> None:
        server.behaviour.root = "another/model"
        activate(add_version(project_id, 1, adapter))
        hand_over_all(worker)
        assert rows()[0].state is AdapterState.waiting
        probing.probe_engine(only_engine(), check=worker.check)
        hand_over_all(worker)
        assert (rows()[0].state, rows()[0].error, server.adapters) == (AdapterState.failed, self.SAID, {})

    def test_samples_nothing_though_its_name_is_still_there(
        self, worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str
    ) -> None:
        activate(add_version(project_id, 1, adapter))
        hand_over_all(worker)
        server.behaviour.root = "another/model"
        set_capabilities(root="another/model")
        assert fill_from_engine(worker, project_id) == 0
        assert not server.asked
        with session_scope() as session:
            found = pauses.current_pause(session, session.get_one(Project, project_id))
            assert found is not None
            assert found.reason == self.SAID

    @pytest.mark.usefixtures("another")
    def test_is_handed_over_once_the_server_runs_its_base_again(
        self, worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str
    ) -> None:
        version_id = add_version(project_id, 1, adapter)
        activate(version_id)
        hand_over_all(worker)
        server.behaviour.root = MODEL
        set_capabilities(root=MODEL)
        activate(version_id)
        hand_over_all(worker)
        assert (active_number(project_id), len(server.adapters)) == (1, 1)

    @pytest.mark.usefixtures("another")
    def test_a_round_of_before_is_neither_resumed_nor_rerun(self, project_id: int) -> None:
        with session_scope() as session:
            project = session.get_one(Project, project_id)
            ended = factories.make_round(session, project, state=RoundState.failed)
            for start in (rounds.retry, rounds.rerun):
                with pytest.raises(Conflict, match="Training rounds are off: the model server 'gpu' runs another/mo"):
                    start(session, SYSTEM, ended.id)


class TestTheActiveVersionThatCannotBeLoadedAgain:
    """The server lost it, and the hand-over that followed failed."""

    @pytest.fixture
    def version_id(self, worker: WorkerProcess, server: ModelServer, project_id: int, adapter: str) -> int:
        version_id = add_version(project_id, 1, adapter)
        activate(version_id)
        hand_over_all(worker)
        server.adapters.clear()
        server.behaviour.load_error = (500, "the disk is full")
        fill_from_engine(worker, project_id)
        hand_over_all(worker)
        assert rows()[-1].state is AdapterState.failed
        return version_id

    @pytest.mark.usefixtures("version_id")
    def test_is_tried_again_when_the_pause_ends(
        self, worker: WorkerProcess, server: ModelServer, project_id: int
    ) -> None:
        for _ in range(2):  # says why as long as it fails
            self.end_pause(project_id)
            assert fill_from_engine(worker, project_id) == 0
            with session_scope() as session:
                found = pauses.current_pause(session, session.get_one(Project, project_id))
                assert found is not None
                assert "the disk is full" in found.reason
            hand_over_all(worker)
        server.behaviour.load_error = None
        self.end_pause(project_id)
        fill_from_engine(worker, project_id)
        hand_over_all(worker)
        assert fill_from_engine(worker, project_id) == 2
        assert {body["model"] for body in server.asked[-2:]} == {rows()[-1].name}

    def test_or_when_an_admin_activates_it_again(
        self, worker: WorkerProcess, server: ModelServer, project_id: int, version_id: int
    ) -> None:
        server.behaviour.load_error = None
        activate(version_id)
        hand_over_all(worker)
        assert (active_number(project_id), rows()[-1].state) == (1, AdapterState.loaded)

    @staticmethod
    def end_pause(project_id: int) -> None:
        with session_scope() as session:
            pauses.try_now(session, SYSTEM, session.get_one(Project, project_id))


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

    @pytest.mark.parametrize(
        ("values", "base_model", "expected"),
        [
            ({}, MODEL, None),
            ({}, "starter", MODEL),
            ({"revision": "5fbcdcd"}, MODEL, f"{MODEL}@5fbcdcd"),
            ({"capabilities": {"root": "another/model"}}, MODEL, "another/model"),
            ({"model": "served-name", "capabilities": {"root": "/models/one"}}, MODEL, "served-name"),
            ({"model": "model.gguf", "capabilities": {"n": True}}, MODEL, "model.gguf"),
        ],
    )
    def test_what_writes_there_is_named_as_what_it_is(
        self, worker: WorkerProcess, values: dict[str, Any], base_model: str, expected: str | None
    ) -> None:
        with session_scope() as session:
            engine = make_engine(session, None, **values)
            project = loop.make_project(session, Path(base_model), engine="gpu")
            version = session.get_one(ModelVersion, project.active_version_id)
            assert hand_over.other_model(engine, version) == expected
