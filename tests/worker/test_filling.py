"""Filling the pool: what is sampled and stored, when it stops, and what a failure costs."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app import queue
from app.db.sessions import database_now, session_scope
from app.models import Candidate, CandidateSet, ModelTrial, Project, Prompt, SamplingPause
from app.processes.connect import forget_settings
from app.services import sweep
from app.services.candidates import candidates, pools
from app.services.kernel import workers
from app.services.kernel.actors import SYSTEM
from app.services.kernel.store import get_store
from app.services.projects import pauses, policies, projects
from app.services.read_models.supply import supply_of
from app.services.rounds import versions
from illume.sampling.generation import sample_rationales
from tests import factories
from tests.illume.sampling.test_constraint import write_quotes_often
from tests.worker import loop
from worker import filling
from worker.filling import fill_pool
from worker.model_cache import ModelCache
from worker.process import Stopping, WorkerProcess, expire_dead_workers


def committed_project(base: Path, *, prompts: int, **settings: object) -> int:
    with session_scope() as session:
        project = loop.make_project(session, base, **settings)
        loop.add_prompts(session, project, count=prompts)
        return project.id


def states(project_id: int) -> list[str]:
    return [one.state for one in loop.sets_now(project_id)]


HANGING_LOAD = """
import functools, itertools, sys
from worker import filling, model_cache
from worker.process import make_process, step_deadline

def hang(*_, **__):
    all(itertools.repeat(True))  # sees no signal, as code outside Python

model_cache.load_vlm = hang
model_cache.ModelCache.check = lambda *_: None
filling.step_deadline = functools.partial(step_deadline, hang=0.3)
process = make_process(("model",), device="cpu")
process.heartbeat.beat()
filling.fill_pool(process, model_cache.ModelCache(), int(sys.argv[1]))
"""


class TestFillPool:
    def test_until_it_is_full(self, process: WorkerProcess, models: ModelCache, base: Path) -> None:
        project_id = committed_project(base, prompts=6)
        assert fill_pool(process, models, project_id) == 4
        assert states(project_id) == ["ready"] * 4
        assert fill_pool(process, models, project_id) == 0
        with session_scope() as session:
            offered = session.scalars(select(CandidateSet)).first()
            assert offered is not None
            texts = session.scalars(select(Candidate).where(Candidate.candidate_set_id == offered.id)).all()
            assert len({one.text for one in texts}) == len(texts) > 1
            assert {one.temperature for one in texts} == {0.0, 1.0}
            assert all((one.mean_logprob or 0) < 0 and (one.n_tokens or 0) > 0 for one in texts)
            assert all(one.seed is not None for one in texts)
            prompt = session.get_one(Prompt, offered.prompt_id)
            assert (offered.answer, offered.answer_source) == (prompt.answer, "gold")
            assert workers.device_holder(session, process.device_key) is None

    def test_the_models_own_answer_where_there_is_none(
        self, process: WorkerProcess, models: ModelCache, base: Path
    ) -> None:
        with session_scope() as session:
            project = loop.make_project(session, base)
            factories.make_prompt(session, project, answer=None)
            project_id = project.id
        fill_pool(process, models, project_id)
        [offered] = loop.sets_now(project_id)
        assert offered.answer_source == "own"

    def test_the_next_version_samples_otherwise_and_so_does_the_first_when_it_is_back(
        self, process: WorkerProcess, models: ModelCache, base: Path
    ) -> None:
        project_id = committed_project(base, prompts=1)
        with session_scope() as session:
            project = session.get_one(Project, project_id)
            first = project.active_version_id
            assert first is not None
            second = factories.make_version(session, project, number=1, base_model=str(base)).id
        for version_id in (first, second, first):
            with session_scope() as session:
                versions.activate(session, SYSTEM, version_id)
            fill_pool(process, models, project_id)
        assert states(project_id) == ["replaced", "replaced", "ready"]
        with session_scope() as session:
            seeds = session.scalars(select(Candidate.seed).where(Candidate.temperature > 0)).all()
            assert len(set(seeds)) == len(seeds) >= 3

    def test_one_lost_image_spoils_no_other_set(self, process: WorkerProcess, models: ModelCache, base: Path) -> None:
        project_id = committed_project(base, prompts=4)
        with session_scope() as session:
            broken = session.scalars(select(Prompt).where(Prompt.project_id == project_id)).first()
            assert broken is not None
            sha256 = candidates.load_prompt_data(session, broken.id).images[0]
        get_store().local_path(sha256, Path()).unlink()
        for _ in range(candidates.MAX_TRIES):
            fill_pool(process, models, project_id)
        assert sorted(states(project_id)) == ["failed", "ready", "ready", "ready"]
        [failed] = [one for one in loop.sets_now(project_id) if one.state == "failed"]
        assert failed.prompt_id == broken.id
        assert failed.error == "An image is missing in the store that this machine uses (ILLUME_STORE_URL)."

    def test_lets_a_waiting_round_go_first(self, process: WorkerProcess, models: ModelCache, base: Path) -> None:
        project_id, _ = loop.project_with_a_round(base)
        before = len(loop.sets_now(project_id))
        assert fill_pool(process, models, project_id) == 0
        assert len(loop.sets_now(project_id)) == before

    def test_leaves_a_device_in_use_alone(self, process: WorkerProcess, models: ModelCache, base: Path) -> None:
        project_id = committed_project(base, prompts=1)
        with session_scope() as session:
            workers.claim_device(session, process.device_key, worker="another", purpose="round")
        assert fill_pool(process, models, project_id) == 0
        assert states(project_id) == []

    def test_of_no_project_is_nothing(self, process: WorkerProcess, models: ModelCache) -> None:
        assert fill_pool(process, models, 10**9) == 0

    def test_told_to_stop_it_gives_back_what_it_samples(
        self, process: WorkerProcess, models: ModelCache, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        project_id = committed_project(base, prompts=2)

        def stop_under_way(*arguments: object, **more: object) -> object:
            process.stop.set()
            return sample_rationales(*arguments, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(filling, "sample_rationales", stop_under_way)
        with pytest.raises(Stopping):
            fill_pool(process, models, project_id)
        assert states(project_id) == ["sampling", "sampling"]
        with session_scope() as session:
            project = session.get_one(Project, project_id)
            assert pools.count_sampling(session, project) == 0
            assert len(candidates.claim_sampling_batch(session, project, worker="b", limit=5)) == 2
            assert workers.device_holder(session, process.device_key) is None


class TestStructuredAnswers:
    def structured(self, base: Path, **settings: object) -> int:
        """A project with a prompt under a short policy and one under a long one."""
        with session_scope() as session:
            template = "{policy} {question} {answer}"
            wanted = {"answer_fields": factories.ANSWER_FIELDS, "template": template, **settings}
            project = loop.make_project(session, base, **wanted)
            short = factories.make_policy(session, project)
            given = factories.policy_json("Long")
            given["categories"][0]["texts"]["default"] = "no red water " * 400
            long, _ = policies.add_policy(session, SYSTEM, project, policies.PolicyIn.model_validate(given))
            loop.add_prompts(session, project, count=1, policy=short)
            loop.add_prompts(session, project, count=1, policy=long.version)
            return project.id

    def test_are_written_under_their_policy_and_what_is_too_long_waits_with_the_reason(
        self, process: WorkerProcess, models: ModelCache, base: Path
    ) -> None:
        project_id = self.structured(base, max_new_tokens=200, top_k_share=1.0, temperatures=[[1.0, 4]])
        undo = write_quotes_often(models.get(str(base), None))
        try:
            assert fill_pool(process, models, project_id) == 1
        finally:
            undo()
        ready, refused = loop.sets_now(project_id)
        assert (ready.state, refused.state, refused.failure) == ("ready", "failed", "too_long")
        assert re.fullmatch(r"\d,\d{3} tokens with its images, this model reads 512", refused.error or "")
        with session_scope() as session:
            project = session.get_one(Project, project_id)
            assert session.get_one(Prompt, refused.prompt_id).state == "waiting"
            assert pools.count_failures(session, project) == {"too_long": 1}
            made = session.scalars(select(Candidate).where(Candidate.candidate_set_id == ready.id)).all()
            assert len(made) == 4
            valid = [one for one in made if one.invalid is None]
            assert valid
            for one in valid:
                assert one.fields == json.loads(one.text)
                assert (one.fields or {})["category"] in (*factories.CATEGORIES, "NA")
            assert all(one.fields is None for one in made if one.invalid is not None)
            assert pools.count_invalid(session, project) == (4 - len(valid), 4)

    def test_a_set_without_a_valid_one_is_kept_and_offered_to_nobody(
        self, process: WorkerProcess, models: ModelCache, base: Path
    ) -> None:
        project_id = self.structured(base, max_new_tokens=3)
        assert fill_pool(process, models, project_id) == 1  # stored, and refused
        cut = loop.sets_now(project_id)[0]
        assert (cut.state, cut.failure, cut.error) == ("failed", "invalid", "None of 3 answers is valid: cut off (3).")
        with session_scope() as session:
            project = session.get_one(Project, project_id)
            assert pools.count_failures(session, project) == {"too_long": 1, "invalid": 1}
            assert pools.count_invalid(session, project) == (3, 3)
            assert not pools.has_unsampled(session, project)
            projects.update_project(session, SYSTEM, project.slug, {"max_new_tokens": 100})
            assert pools.has_unsampled(session, project)  # both are tried again


def pause_of(session: Session, project_id: int) -> SamplingPause:
    found = pauses.current_pause(session, session.get_one(Project, project_id))
    assert found is not None
    return found


class TestPauses:
    def test_a_model_that_cannot_be_opened_pauses_its_project_only(
        self, process: WorkerProcess, models: ModelCache, base: Path, tmp_path: Path
    ) -> None:
        broken = committed_project(tmp_path / "nowhere", prompts=2)
        sound = committed_project(base, prompts=2)
        assert fill_pool(process, models, broken) == 0
        assert fill_pool(process, models, sound) == 2
        with session_scope() as session:
            stopped = pauses.current_pause(session, session.get_one(Project, broken))
            assert stopped is not None
            assert "there is no model folder" in stopped.reason
            assert pauses.current_pause(session, session.get_one(Project, sound)) is None
            assert (queue.FILL_POOL, broken) not in sweep.sweep(session)
        # The next try waits, so that nobody tries every five seconds.
        assert fill_pool(process, models, broken) == 0
        with session_scope() as session:
            assert pause_of(session, broken).tries == 1
            pause_of(session, broken).until = database_now(session)
        assert fill_pool(process, models, broken) == 0
        with session_scope() as session:
            stopped = pause_of(session, broken)
            assert stopped.tries == 2
            assert 90 < (stopped.until - database_now(session)).total_seconds() <= 120

    def test_it_ends_with_the_first_set_and_with_another_version(
        self, process: WorkerProcess, models: ModelCache, base: Path
    ) -> None:
        project_id = committed_project(base, prompts=2)
        with session_scope() as session:
            project = session.get_one(Project, project_id)
            assert project.active_version_id is not None
            pauses.pause(session, project_id, project.active_version_id, "broken")
            assert pauses.is_paused(session, project)
            pause_of(session, project_id).until = database_now(session)
            assert not pauses.is_paused(session, project)
        assert fill_pool(process, models, project_id) == 2
        with session_scope() as session:
            assert session.scalars(select(SamplingPause)).all() == []
            pauses.pause(session, project_id, project.active_version_id, "broken")
            version = factories.make_version(session, session.get_one(Project, project_id), number=1)
            session.get_one(Project, project_id).active_version_id = version.id
            session.flush()
            assert pauses.current_pause(session, session.get_one(Project, project_id)) is None

    def test_a_step_that_never_ends_is_ended(
        self, process: WorkerProcess, models: ModelCache, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        project_id = committed_project(base, prompts=2)
        models.get(str(base), None)
        monkeypatch.setenv("ILLUME_STEP_SECONDS", "0.5")
        forget_settings()

        def loop_for_ever(*_: object, **__: object) -> None:
            while True:
                pass

        monkeypatch.setattr(filling, "sample_rationales", loop_for_ever)
        assert fill_pool(process, models, project_id) == 0
        with session_scope() as session:
            stopped = pause_of(session, project_id)
            assert stopped.reason.endswith("made no progress for 0 s and was ended")
            assert candidates.claim_sampling_batch(session, session.get_one(Project, project_id), worker="b", limit=5)

    def test_a_model_that_hangs_outside_python_as_it_loads_pauses_its_project_only(
        self, process: WorkerProcess, models: ModelCache, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hanging, sound = (committed_project(base, prompts=2) for _ in range(2))
        monkeypatch.setenv("ILLUME_STEP_SECONDS", "1")
        forget_settings()
        command = [sys.executable, "-c", HANGING_LOAD, str(hanging)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, "most recent call first" in done.stderr) == (1, True), done.stderr
        assert states(hanging) == [], "it had claimed nothing"
        expire_dead_workers(process)
        monkeypatch.delenv("ILLUME_STEP_SECONDS")
        forget_settings()
        with session_scope() as session:
            project = session.get_one(Project, hanging)
            assert pauses.is_paused(session, project)
            assert supply_of(session, project).reason.startswith("version 0 made no progress for over 1 s and ended")
            assert session.scalar(select(func.count()).select_from(ModelTrial)) == 0
        assert (fill_pool(process, models, hanging), fill_pool(process, models, sound)) == (0, 2)

    def test_where_every_prompt_fails_the_reason_is_said(
        self, process: WorkerProcess, models: ModelCache, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        project_id = committed_project(base, prompts=2)

        def fail(*_: object, **__: object) -> None:
            raise KeyError("pixel_values")

        monkeypatch.setattr(filling, "sample_rationales", fail)
        assert fill_pool(process, models, project_id) == 0
        with session_scope() as session:
            reason = pause_of(session, project_id).reason
        assert reason == "none of 2 prompts could be sampled: 'pixel_values'"


class TestFillOthers:
    def test_only_those_whose_critics_have_nothing(
        self, process: WorkerProcess, models: ModelCache, base: Path, tmp_path: Path
    ) -> None:
        mine = committed_project(base, prompts=2)
        broken = committed_project(tmp_path / "nowhere", prompts=2)
        other = committed_project(base, prompts=4, pool_for_round=3)
        filling.fill_others(process, models, mine, watch=process.check)
        assert (states(mine), states(broken), states(other)) == ([], [], ["ready"] * 3)
        with session_scope() as session:
            assert pools.list_starving(session, without=mine) == []
            assert pools.list_starving(session, without=other) == [mine]


class TestTurns:
    @pytest.fixture(autouse=True)
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Batches of two, and 20 s between two looks at the clock."""
        looks = itertools.count()
        monkeypatch.setattr(filling, "time", SimpleNamespace(monotonic=lambda: 20.0 * next(looks)))
        monkeypatch.setattr(filling, "BATCH", {"cpu": 2})

    def test_a_project_gives_way_after_its_turn_and_asks_for_another(
        self, process: WorkerProcess, models: ModelCache, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent: list[tuple[object, ...]] = []
        monkeypatch.setattr(queue, "send_now", lambda *what, **_: sent.append(what))
        project_id = committed_project(base, prompts=10, pool_target=10)
        assert fill_pool(process, models, project_id) == 6
        assert sent == [(queue.FILL_POOL, project_id)]

    def test_others_get_one_each_while_a_round_has_the_device(
        self, process: WorkerProcess, models: ModelCache, base: Path
    ) -> None:
        mine = committed_project(base, prompts=2)
        others = [committed_project(base, prompts=10, pool_for_round=10) for _ in range(2)]
        filling.fill_others(process, models, mine, watch=process.check)
        assert [states(one) for one in (mine, *others)] == [[], ["ready"] * 4, ["ready"] * 4]


class TestFillForRound:
    def test_up_to_what_a_round_wants(self, process: WorkerProcess, models: ModelCache, base: Path) -> None:
        project_id = committed_project(base, prompts=5, pool_for_round=3)
        told: list[tuple[int, int]] = []
        filling.fill_for_round(
            process, models, project_id, report=lambda *count: told.append(count), watch=process.check
        )
        assert states(project_id) == ["ready"] * 3
        assert told == [(0, 3), (3, 3)]

    def test_a_round_does_not_try_a_model_that_is_paused(
        self, process: WorkerProcess, models: ModelCache, base: Path
    ) -> None:
        project_id = committed_project(base, prompts=2)
        with session_scope() as session:
            version_id = session.get_one(Project, project_id).active_version_id
            assert version_id is not None
            pauses.pause(session, project_id, version_id, "it hangs")
        filling.fill_for_round(process, models, project_id, report=lambda *_: None, watch=process.check)
        assert states(project_id) == []
