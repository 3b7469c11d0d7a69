"""`transformers serve` with the starter model as a real server: probe, sample, judge, a round, and no swap."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from app.db.sessions import session_scope
from app.main import create_app
from app.models import (
    AdapterState,
    Candidate,
    CandidateSet,
    Engine,
    EngineAdapter,
    EngineState,
    ModelVersion,
    Project,
    Role,
    Scope,
)
from app.processes.connect import forget_settings
from app.services.accounts import users
from app.services.engines import handing_over, probing
from app.services.kernel.actors import SYSTEM
from app.services.projects.base_models import starter_model
from app.services.projects.projects import settings_of
from app.services.rounds import hand_over, rounds, versions
from tests import factories
from tests.engines import serving
from tests.worker import loop
from worker.engines.filling import fill_from_engine
from worker.model_cache import ModelCache
from worker.process import WorkerProcess
from worker.rounds import run_next_round

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="needs transformers[serving]"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The starter model, told to sample: `transformers serve` takes the likeliest token otherwise."""
    copy = tmp_path / "model"
    shutil.copytree(starter_model(), copy)
    path = copy / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": True}))
    return copy


@pytest.fixture
def url(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A running `transformers serve` with that model."""
    monkeypatch.setenv("ILLUME_ENGINE_ADDRESSES", "127.0.0.1")
    forget_settings()
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", str(folder), "--device", "cpu"]
    with serving(command, tmp_path / "serve.log", seconds=180) as address:
        yield address


def register(url: str, model: str) -> int:
    """Add the server over REST, as an admin of the installation does; its id."""
    with session_scope() as session:
        admin = factories.make_user(session, role=Role.admin)
        _row, token = users.create_token(session, SYSTEM, user_id=admin.id, scope=Scope.admin)
    with TestClient(create_app(), headers={"Authorization": f"Bearer {token}"}) as client:
        added = client.post("/api/v1/engines", json={"name": "gpu", "base_url": url, "model": model})
    assert added.status_code == 201, added.text
    assert added.json()["state"] == "probing"
    return int(added.json()["id"])


def test_the_whole_walk(process: WorkerProcess, models: ModelCache, folder: Path, url: str) -> None:
    engine_id = register(url, str(folder))
    probing.probe_engine(engine_id, check=process.check)
    with session_scope() as session:
        found = session.get_one(Engine, engine_id)
        assert (found.state, found.error) == (EngineState.ready, None)
        assert {
            name: found.capabilities[name] for name in ("n", "varies", "logprobs", "json_schema", "adapters", "seeds")
        } == {
            "n": False,
            "varies": True,
            "logprobs": "none",
            "json_schema": False,
            "adapters": False,
            "seeds": True,
        }
        project = loop.make_project(session, folder, engine="gpu", pool_target=2, max_new_tokens=24, epochs=1)
        assert hand_over.why_rounds_are_off(session, settings_of(session, project)) is None
        loop.add_prompts(session, project, count=2)
        project_id, before = project.id, project.active_version_id
    assert fill_from_engine(process, project_id) == 2
    with session_scope() as session:
        made = session.scalars(select(Candidate)).all()
        assert len(made) >= 4
        assert {one.mean_logprob for one in made} == {None}
        assert all(one.text for one in made)
        project = session.get_one(Project, project_id)
        loop.judge_prompts(session, project, loop.add_prompts(session, project, count=4))
        round_id = rounds.start(session, SYSTEM, project).id
    loop.prepare(round_id)
    run_next_round(process, models)
    with session_scope() as session:
        done = session.get_one(type(loop.round_now(round_id)), round_id)
        assert done.error is None
        version = session.get_one(ModelVersion, done.version_id)
        versions.activate(session, SYSTEM, version.id)
        [due] = handing_over.list_due(session)
    handing_over.hand_over(due, check=process.check)
    with session_scope() as session:
        row = session.scalars(select(EngineAdapter)).one()
        assert row.state is AdapterState.failed
        assert "loads no adapters while it runs" in (row.error or "")
        assert session.get_one(Project, project_id).active_version_id == before
        sets = session.scalars(select(CandidateSet.version_id).where(CandidateSet.project_id == project_id)).all()
        assert version.id not in sets
