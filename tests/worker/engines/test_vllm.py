"""vLLM with the starter model as a real server: probe, sample, judge, a round, and its adapter handed over."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from app.db.sessions import session_scope
from app.models import (
    AdapterState,
    Candidate,
    CandidateSet,
    Engine,
    EngineAdapter,
    EngineState,
    ModelVersion,
    Project,
)
from app.processes.connect import forget_settings
from app.services.engines import handing_over, probing
from app.services.kernel.actors import SYSTEM
from app.services.projects.base_models import starter_model
from app.services.projects.projects import settings_of
from app.services.rounds import hand_over, rounds, versions
from illume.starter.architecture import name_for_servers
from tests.engines import make_engine, serving
from tests.worker import loop
from worker.engines.filling import fill_from_engine
from worker.model_cache import ModelCache
from worker.process import WorkerProcess
from worker.rounds import run_next_round

VLLM = os.environ.get("ILLUME_VLLM", "")
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
RANK = 8
"""The highest rank that the server takes."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not VLLM, reason="needs vLLM: name its program in ILLUME_VLLM"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The starter model with a configuration by which vLLM takes the likeliest token, unless a request overrides it."""
    copy = tmp_path / "model"
    shutil.copytree(starter_model(), copy)
    name_for_servers(copy / "model.safetensors")
    path = copy / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": True, "top_k": 1, "top_p": 0.01}))
    return copy


@pytest.fixture
def url(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A running vLLM with that model."""
    monkeypatch.setenv("ILLUME_ENGINE_ADDRESSES", "127.0.0.1")
    monkeypatch.setenv("ILLUME_ADAPTERS_DIR", str(tmp_path / "shared"))
    forget_settings()
    command = [VLLM, "serve", str(folder), "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"]
    adapters = ["--enable-lora", "--max-lora-rank", str(RANK)]
    log = tmp_path / "serve.log"
    with serving([*command, *adapters], log, seconds=1200, environment=ENVIRONMENT) as address:
        yield address


def hand_over_all(process: WorkerProcess) -> list[EngineAdapter]:
    with session_scope() as session:
        due = handing_over.list_due(session)
    for adapter_id in due:
        handing_over.hand_over(adapter_id, check=process.check)
    with session_scope() as session:
        return list(session.scalars(select(EngineAdapter).order_by(EngineAdapter.id)))


def tune(process: WorkerProcess, models: ModelCache, project_id: int) -> int:
    """The id of the version that a round makes."""
    with session_scope() as session:
        project = session.get_one(Project, project_id)
        loop.judge_prompts(session, project, loop.add_prompts(session, project, count=4))
        round_id = rounds.start(session, SYSTEM, project).id
    loop.prepare(round_id)
    run_next_round(process, models)
    done = loop.round_now(round_id)
    assert done.error is None
    assert done.version_id is not None
    return done.version_id


def activate(version_id: int) -> None:
    with session_scope() as session:
        versions.activate(session, SYSTEM, version_id)


def test_the_whole_walk(process: WorkerProcess, models: ModelCache, folder: Path, url: str) -> None:
    with session_scope() as session:
        engine_id = make_engine(session, base_url=url, model=str(folder), state=EngineState.probing, capabilities={}).id
    probing.probe_engine(engine_id, check=process.check)
    with session_scope() as session:
        found = session.get_one(Engine, engine_id)
        assert (found.state, found.error) == (EngineState.ready, None)
        assert found.capabilities["order"] in ("kept", "pictures_first")
        assert found.capabilities == {
            **found.capabilities,
            "n": True,
            "varies": True,
            "seeds": True,
            "logprobs": "before",
            "pictures": 2,
            "json_schema": True,
            "adapters": True,
            "thinking": "none",
            "overrides": True,
            "any_name": False,
            "root": str(folder),
            "max_tokens": 1024,
        }
        project = loop.make_project(
            session, folder, engine="gpu", pool_target=2, max_new_tokens=24, epochs=1, lora_rank=RANK
        )
        assert hand_over.why_rounds_are_off(session, settings_of(session, project)) is None
        loop.add_prompts(session, project, count=2)
        project_id = project.id
    assert fill_from_engine(process, project_id) == 2
    with session_scope() as session:
        made = session.scalars(select(Candidate)).all()
        assert len(made) > 4  # at least one set has more than one text of the temperature 1
        assert all(one.text and one.mean_logprob is not None and one.mean_logprob < 0 for one in made)
    first = tune(process, models, project_id)
    activate(first)
    [row] = hand_over_all(process)
    assert (row.state, row.error) == (AdapterState.loaded, None)
    with session_scope() as session:
        project = session.get_one(Project, project_id)
        assert project.active_version_id == first
        loop.add_prompts(session, project, count=2)
    assert fill_from_engine(process, project_id) > 0
    with session_scope() as session:
        assert session.scalar(select(CandidateSet.id).where(CandidateSet.version_id == first).limit(1))
        higher = loop.make_project(session, folder, engine="gpu", slug="higher", epochs=1, lora_rank=2 * RANK)
        higher_id, before = higher.id, higher.active_version_id
    activate(tune(process, models, higher_id))
    row = hand_over_all(process)[-1]
    assert row.state is AdapterState.failed
    assert f"LoRA rank {2 * RANK} is greater than max_lora_rank {RANK}" in (row.error or "")
    with session_scope() as session:
        assert session.get_one(Project, higher_id).active_version_id == before
        assert session.get_one(ModelVersion, first).adapter
