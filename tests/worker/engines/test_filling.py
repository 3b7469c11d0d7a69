"""A project that samples from a model server: what is stored, what a failure costs, and what is said of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from app import queue
from app.db.sessions import session_scope
from app.models import (
    AdapterState,
    Candidate,
    CandidateSet,
    Engine,
    EngineAdapter,
    EngineState,
    Project,
    Prompt,
    SamplingPause,
)
from app.services import sweep
from app.services.candidates import candidates, pools
from app.services.engines import probing
from app.services.kernel.actors import SYSTEM
from app.services.kernel.store import get_store
from app.services.projects import pauses, projects
from app.services.read_models.supply import SupplyState, supply_of
from app.services.rounds import hand_over
from tests import factories
from tests.engines import FOUND, make_engine
from tests.model_server import MODEL, ModelServer
from tests.worker import loop
from worker.engines.filling import fill_from_engine
from worker.process import Stopping, WorkerProcess


def make_project(server: ModelServer, *, prompts: int = 3, capabilities: dict[str, object] | None = None) -> int:
    with session_scope() as session:
        make_engine(session, server, capabilities=FOUND.as_json() | (capabilities or {}))
        project = loop.make_project(session, Path(MODEL), engine="gpu")
        loop.add_prompts(session, project, count=prompts)
        return project.id


def states(project_id: int) -> list[str]:
    return [one.state for one in loop.sets_now(project_id)]


def reason_of(project_id: int) -> str:
    with session_scope() as session:
        found = pauses.current_pause(session, session.get_one(Project, project_id))
        return "" if found is None else found.reason


def served_models() -> list[str | None]:
    """What the server ran for each set, where that was not the version's base model."""
    with session_scope() as session:
        return list(session.scalars(select(CandidateSet.served_model).order_by(CandidateSet.id)))


def make_structured(server: ModelServer) -> int:
    with session_scope() as session:
        make_engine(session, server)
        template = "{policy} {question} {answer}"
        wanted = {"answer_fields": factories.ANSWER_FIELDS, "template": template}
        project = loop.make_project(session, Path(MODEL), engine="gpu", **wanted)
        loop.add_prompts(session, project, count=1, policy=factories.make_policy(session, project))
        return project.id


class TestStructuredAnswers:
    def test_are_asked_for_by_their_schema(self, worker: WorkerProcess, server: ModelServer) -> None:
        project_id = make_structured(server)
        assert fill_from_engine(worker, project_id) == 1
        schema = server.asked[0]["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["category"]["enum"] == [*factories.CATEGORIES, "NA"]
        with session_scope() as session:
            made = session.scalars(select(Candidate)).all()
            assert len(made) == 3
            assert served_models() == [None]
            for one in made:
                assert (one.fields, one.invalid) == (json.loads(one.text), None)
                assert list(json.loads(one.text)) == ["rating", "category", "rationale"]

    def test_what_a_server_writes_otherwise_is_counted_and_shown_to_nobody(
        self, worker: WorkerProcess, server: ModelServer
    ) -> None:
        project_id = make_structured(server)
        with session_scope() as session:
            session.execute(update(Engine).values(capabilities=FOUND.as_json() | {"json_schema": False}))
        server.behaviour.says = "```json\n{}\n```"
        fill_from_engine(worker, project_id)
        [refused] = loop.sets_now(project_id)
        assert (refused.state, refused.failure) == ("failed", "invalid")
        assert refused.error == "None of 3 answers is valid: fences (3)."
        with session_scope() as session:
            assert pools.count_invalid(session, session.get_one(Project, project_id)) == (3, 3)
        assert reason_of(project_id) == ""

    def test_say_what_the_server_ran_in_place_of_the_base_model(
        self, worker: WorkerProcess, server: ModelServer
    ) -> None:
        project_id = make_structured(server)
        with session_scope() as session:
            session.execute(update(Engine).values(revision="5fbcdcd"))
        assert fill_from_engine(worker, project_id) == 1
        assert served_models() == [f"{MODEL}@5fbcdcd"]


class TestFillFromEngine:
    def test_until_the_pool_is_full(self, worker: WorkerProcess, server: ModelServer) -> None:
        project_id = make_project(server, prompts=6)
        assert fill_from_engine(worker, project_id) == 4
        assert states(project_id) == ["ready"] * 4
        assert fill_from_engine(worker, project_id) == 0
        with session_scope() as session:
            offered = session.scalars(select(CandidateSet)).first()
            assert offered is not None
            made = session.scalars(select(Candidate).where(Candidate.candidate_set_id == offered.id)).all()
            assert [one.temperature for one in made] == [0.0, 1.0, 1.0]
            assert all((one.mean_logprob or 0) < 0 and one.n_tokens == 6 and one.seed is not None for one in made)
            assert offered.spread is not None
            assert offered.answer_source == "gold"
            assert offered.served_model is None

    def test_what_the_server_does_not_say_is_stored_as_unknown(
        self, worker: WorkerProcess, server: ModelServer
    ) -> None:
        project_id = make_project(server, prompts=1, capabilities={"logprobs": "none", "seeds": False})
        assert fill_from_engine(worker, project_id) == 1
        with session_scope() as session:
            assert set(session.scalars(select(Candidate.mean_logprob))) == {None}
            assert set(session.scalars(select(Candidate.seed))) == {None}
            assert session.scalars(select(CandidateSet.spread)).one() is None

    def test_one_lost_image_spoils_no_other_set(self, worker: WorkerProcess, server: ModelServer) -> None:
        project_id = make_project(server)
        with session_scope() as session:
            data = candidates.load_prompts_data(session, session.scalars(select(Prompt.id)).all())
        get_store().local_path(next(iter(data.values())).images[0], Path()).unlink()
        for _ in range(candidates.MAX_TRIES):
            fill_from_engine(worker, project_id)
        assert sorted(states(project_id)) == ["failed", "ready", "ready"]

    def test_the_wrong_model_stores_nothing_and_says_so(self, worker: WorkerProcess, server: ModelServer) -> None:
        project_id = make_project(server)
        server.behaviour.answers_as = "another"
        assert fill_from_engine(worker, project_id) == 0
        assert "answered as 'another'" in reason_of(project_id)
        with session_scope() as session:
            assert session.scalars(select(Candidate)).first() is None
            assert supply_of(session, session.get_one(Project, project_id)).state is SupplyState.unusable
        assert set(states(project_id)) == {"sampling"}  # given back

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"cuts": 99}, "cannot be reached"),
            ({"key": "needed"}, "refuses the key"),
            ({"says": ""}, "none of 3 prompts could be sampled: the model wrote no rationale"),
        ],
    )
    def test_a_server_that_cannot_be_used_pauses_the_project(
        self, worker: WorkerProcess, server: ModelServer, change: dict[str, object], said: str
    ) -> None:
        project_id = make_project(server)
        for name, value in change.items():
            setattr(server.behaviour, name, value)
        assert fill_from_engine(worker, project_id) == 0
        assert said in reason_of(project_id)
        asked = len(server.calls)
        assert fill_from_engine(worker, project_id) == 0
        assert len(server.calls) == asked

    def test_a_prompt_that_does_not_fit_waits_and_pauses_nobody(
        self, worker: WorkerProcess, server: ModelServer
    ) -> None:
        project_id = make_project(server, prompts=1)
        said = "This model's maximum context length is 4096 tokens. However, your request has 5120 input tokens."
        server.behaviour.refusals = [(400, {}, said)] * 2
        assert fill_from_engine(worker, project_id) == 0
        [refused] = loop.sets_now(project_id)
        assert (refused.state, refused.failure, reason_of(project_id)) == ("failed", "too_long", "")
        assert "5120 input tokens" in (refused.error or "")

    def test_it_goes_on_once_the_server_is_back(self, worker: WorkerProcess, server: ModelServer) -> None:
        project_id = make_project(server)
        server.behaviour.key = "needed"
        fill_from_engine(worker, project_id)
        server.behaviour.key = ""
        with session_scope() as session:
            pauses.try_now(session, SYSTEM, session.get_one(Project, project_id))
        assert fill_from_engine(worker, project_id) == 3
        assert reason_of(project_id) == ""

    def test_a_server_that_came_back_with_another_model_is_probed_again(
        self, worker: WorkerProcess, server: ModelServer
    ) -> None:
        project_id = make_project(server)
        server.behaviour.cuts = 99
        fill_from_engine(worker, project_id)
        server.behaviour.cuts, server.behaviour.root, asked = 0, "another/model", len(server.asked)
        with session_scope() as session:
            session.execute(update(SamplingPause).values(until=func.now()))
        assert fill_from_engine(worker, project_id) == 0
        assert len(server.asked) == asked
        assert "another model or context than when it was probed" in reason_of(project_id)
        with session_scope() as session:
            engine = session.scalars(select(Engine)).one()
            assert engine.state is EngineState.probing
            assert (queue.PROBE_ENGINE, engine.id) in sweep.sweep(session)
            engine_id = engine.id
        probing.probe_engine(engine_id, check=worker.check)
        with session_scope() as session:
            project = session.get_one(Project, project_id)
            assert "runs another/model" in (
                hand_over.why_rounds_are_off(session, projects.settings_of(session, project)) or ""
            )
            pauses.try_now(session, SYSTEM, project)
        assert fill_from_engine(worker, project_id) == 3
        assert served_models() == ["another/model"] * 3

    def test_before_the_probe_is_done(self, worker: WorkerProcess, server: ModelServer) -> None:
        project_id = make_project(server)
        with session_scope() as session:
            engine = session.scalars(select(Project)).one()
            found = make_engine(session, server, name="new", state=EngineState.probing, capabilities={})
            projects.update_project(session, SYSTEM, engine.slug, {"engine": found.name})
        fill_from_engine(worker, project_id)
        assert reason_of(project_id) == "The model server 'new' is being probed."
        assert not server.calls

    def test_told_to_stop_it_hangs_up_and_gives_back_what_it_samples(
        self, worker: WorkerProcess, server: ModelServer
    ) -> None:
        project_id = make_project(server)
        server.behaviour.seconds = 30
        stop = server.closed_early

        def check() -> None:
            if server.in_flight:
                raise Stopping

        worker.check = check  # type: ignore[method-assign]
        with pytest.raises(Stopping):
            fill_from_engine(worker, project_id)
        assert stop.wait(5)
        assert {(one.state, one.worker, one.tries) for one in loop.sets_now(project_id)} == {("sampling", None, 0)}

    def test_a_version_that_the_server_lost_is_handed_over_again(
        self, worker: WorkerProcess, server: ModelServer
    ) -> None:
        project_id = make_project(server)
        with session_scope() as session:
            project = session.get_one(Project, project_id)
            version = factories.make_version(session, project, number=1, base_model=MODEL, adapter="1" * 64)
            project.active_version_id = version.id
            engine_id = make_engine(session, server, name="other").id
            projects.update_project(session, SYSTEM, project.slug, {"engine": "other"})
            row = EngineAdapter(engine_id=engine_id, version_id=version.id, name="old", state=AdapterState.loaded)
            session.add(row)
        assert fill_from_engine(worker, project_id) == 0
        assert "does not know version 1 any more" in reason_of(project_id)
        with session_scope() as session:
            rows = session.scalars(select(EngineAdapter).order_by(EngineAdapter.id)).all()
            assert [one.state for one in rows] == ["unloaded", "waiting"]
            assert rows[1].name != "old"

    def test_of_no_project_is_nothing(self, worker: WorkerProcess) -> None:
        assert fill_from_engine(worker, 10**9) == 0


def test_the_sweep_asks_workers_of_the_other_queue(worker: WorkerProcess, server: ModelServer) -> None:
    project_id = make_project(server)
    with session_scope() as session:
        due = sweep.sweep(session)
    assert (queue.FILL_FROM_ENGINE, project_id) in due
    assert (queue.FILL_POOL, project_id) not in due


def test_a_project_with_a_server_does_without_torch() -> None:
    code = "import sys, worker.tasks, worker.engines.filling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_pause_is_left_behind(worker: WorkerProcess, server: ModelServer) -> None:
    project_id = make_project(server)
    fill_from_engine(worker, project_id)
    with session_scope() as session:
        assert session.scalars(select(SamplingPause)).all() == []
