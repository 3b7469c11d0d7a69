"""A machine critic from the round before it to the scores of candidates, with a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from app.db.sessions import session_scope
from app.models import (
    Candidate,
    CandidateScore,
    CandidateSet,
    CriticJob,
    CriticState,
    Image,
    ModelTrial,
    ModelVersion,
    Project,
    Round,
    RoundState,
)
from app.services.kernel.actors import SYSTEM
from app.services.kernel.leases import LeaseLostError
from app.services.kernel.store import get_store
from app.services.machine_critics import jobs, scores
from app.services.projects import pauses, projects
from app.services.projects.machine_critic import newest_critic
from app.services.projects.projects import settings_of
from illume.model.vlm import Vlm
from tests import factories
from tests.worker import loop
from worker.critics import fitting
from worker.critics.fitting import fit_next_critic
from worker.critics.scoring import score_candidates
from worker.model_cache import ModelCache
from worker.process import Stopping, WorkerProcess

SETTINGS: dict[str, Any] = {"machine_critic": "verifier", "epochs": 1, "show": {"of": 4, "select": "spread"}}


@pytest.fixture
def project_id(process: WorkerProcess, base: Path) -> int:
    """A project whose round has succeeded, with a set of candidates that nobody judged."""
    project_id, round_id = loop.project_with_a_round(base, waiting=0, **SETTINGS)
    with session_scope() as session:
        session.execute(update(Round).where(Round.id == round_id).values(state=RoundState.succeeded))
        project = session.get_one(Project, project_id)
        [prompt] = loop.add_prompts(session, project, count=1, external_id="unjudged")
        factories.make_candidate_set(session, project, prompt=prompt, shown=2)
        jobs.list_due(session)
    return project_id


def job_now() -> CriticJob:
    with session_scope() as session:
        return session.scalars(select(CriticJob)).one()


def test_from_verdicts_to_scores(process: WorkerProcess, models: ModelCache, project_id: int) -> None:
    fit_next_critic(process, models)
    done = job_now()
    assert (done.state, done.error) == (CriticState.succeeded, None)
    with session_scope() as session:
        version = session.get_one(ModelVersion, done.version_id)
        active = session.get_one(Project, project_id).active_version_id
    assert (version.metrics["picked"], version.metrics["turned_down"]) == (4, 4)
    assert set(version.metrics["quality"]["all"]) >= {"critic", "permuted labels", "length"}
    assert active != version.id
    assert list(fitting.critics_dir().iterdir()) == []
    assert score_candidates(process, models, project_id) == 1
    assert score_candidates(process, models, project_id) == 0
    with session_scope() as session:
        rows = session.execute(
            select(Candidate.id, CandidateScore.score, Candidate.text, CandidateScore.version_id).join(
                Candidate, Candidate.id == CandidateScore.candidate_id
            )
        ).all()
    assert {row.text for row in rows} == {"it stands in the sand", "it is red", "umbrellas are umbrellas"}
    assert all(row.score is not None and row.version_id == version.id for row in rows)
    with session_scope() as session:
        [chosen] = session.scalars(select(CandidateSet).where(CandidateSet.selected_by == version.id))
        spare = set(session.scalars(select(Candidate.text).where(Candidate.spare)))
    ranked = sorted(rows, key=lambda row: row.score or 0.0)
    assert spare == ({"umbrellas are umbrellas"} if chosen.selection == "unselected" else {ranked[1].text})
    # What it was fitted with stays, as the threshold does that was measured with it.
    with session_scope() as session:
        project = session.get_one(Project, project_id)
        template = settings_of(session, project).template
        projects.update_project(session, SYSTEM, project.slug, {"template": f"Please: {template}"})
        session.execute(delete(CandidateScore))
        session.execute(update(CandidateSet).values(rated_by=0))
    assert score_candidates(process, models, project_id) == 1
    with session_scope() as session:
        scored = session.execute(select(CandidateScore.candidate_id, CandidateScore.score))
        again = {one.candidate_id: one.score for one in scored}
    assert again == pytest.approx({row.id: row.score for row in rows})


def test_a_broken_image_leaves_the_others_their_scores(
    process: WorkerProcess, models: ModelCache, project_id: int
) -> None:
    fit_next_critic(process, models)
    with session_scope() as session:
        project = session.get_one(Project, project_id)
        sha256 = get_store().put_bytes(b"no picture")
        broken = factories.add(session, Image(sha256=sha256, media_type="image/png", width=9, height=9, size=10))
        prompt = factories.make_prompt(session, project, images=[broken])
        made = factories.make_candidate_set(session, project, prompt=prompt)
        ids = [one.id for one in factories.candidates_of(session, made)]
    assert score_candidates(process, models, project_id) == 2
    with session_scope() as session:
        found = {row.candidate_id: row.score for row in session.scalars(select(CandidateScore))}
    assert [found[one] for one in ids] == [None] * 3
    assert sum(score is not None for score in found.values()) == 3


def test_it_makes_room_and_goes_on(
    process: WorkerProcess, models: ModelCache, project_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(fitting, "_comes_somebody_first", lambda: True)
    fit_next_critic(process, models)
    assert (job_now().state, job_now().tries) == (CriticState.queued, 0)
    folder = fitting.critics_dir() / str(job_now().id)
    marked = (folder / "job.json").stat().st_mtime_ns
    process.stop.set()
    with pytest.raises(Stopping):
        fit_next_critic(process, models)
    process.stop.clear()
    assert (job_now().state, job_now().tries) == (CriticState.queued, 0)
    assert (folder / "job.json").stat().st_mtime_ns == marked
    with session_scope() as session:
        claimed = jobs.claim_job(session, worker="dead")
        assert claimed is not None
        session.execute(update(CriticJob).values(beats_at=None))
        jobs.cancel(session, SYSTEM, session.get_one(Project, project_id))
    assert folder.exists()
    fit_next_critic(process, models)
    assert job_now().state is CriticState.cancelled
    with session_scope() as session:
        assert newest_critic(session, session.get_one(Project, project_id)) is None


@pytest.mark.parametrize("is_erased", [False, True])
def test_what_people_wrote_stays_nowhere_once_the_job_has_ended_or_is_erased(
    process: WorkerProcess, models: ModelCache, project_id: int, monkeypatch: pytest.MonkeyPatch, *, is_erased: bool
) -> None:
    folder = fitting.critics_dir() / str(job_now().id)

    def end(*_: object) -> int:
        assert (folder / "job.json").exists()
        if not is_erased:
            raise RuntimeError("the disk is full")
        with session_scope() as session:
            session.execute(delete(CriticJob).where(CriticJob.project_id == project_id))
        raise LeaseLostError

    monkeypatch.setattr(fitting, "_watch_child", end)
    fit_next_critic(process, models)
    assert not folder.exists()
    if not is_erased:
        assert (job_now().state, job_now().error) == (CriticState.failed, "the disk is full")


def test_a_rating_that_fails_leaves_the_base_model_behind(
    process: WorkerProcess, models: ModelCache, project_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_next_critic(process, models)
    with session_scope() as session:
        base_model = session.get_one(ModelVersion, session.get_one(Project, project_id).active_version_id).base_model
    asked = []

    def fail(vlm: Vlm, *_: object) -> list[float]:
        asked.append(vlm.adapter)
        raise RuntimeError("out of memory")

    monkeypatch.setattr("illume.critics.scoring._score", fail)
    assert score_candidates(process, models, project_id) == 1
    assert all(asked)  # it had an adapter of the critic
    assert models.get(base_model, None).adapter is None


def test_a_critic_that_cannot_be_used_waits_and_says_why(
    process: WorkerProcess, models: ModelCache, project_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_next_critic(process, models)
    asked = []

    def fail(*_: object) -> None:
        asked.append(1)
        raise RuntimeError("the device has no memory")

    with session_scope() as session:
        project = session.get_one(Project, project_id)
        [prompt] = loop.add_prompts(session, project, count=1, external_id="another")
        factories.make_candidate_set(session, project, prompt=prompt)
    monkeypatch.setattr("illume.critics.scoring._score", fail)
    assert score_candidates(process, models, project_id) == 0
    with session_scope() as session:
        project = session.get_one(Project, project_id)
        found = pauses.current_pause(session, project, job_now().version_id)
        assert found is not None
        assert found.reason == "none of the explanations could be rated: the device has no memory"
        assert session.scalars(select(CandidateScore)).all() == []  # they are rated once it works
        assert scores.list_due(session) == []
        assert not pauses.is_paused(session, project)
    n = len(asked)
    assert score_candidates(process, models, project_id) == 0
    assert len(asked) == n


def test_what_a_worker_is_about_to_rate_with_is_noted_first(
    process: WorkerProcess, models: ModelCache, project_id: int
) -> None:
    fit_next_critic(process, models)
    version_id = job_now().version_id
    assert version_id is not None
    seen: list[int] = []

    class Watched(ModelCache):
        def get(self, base_model: str, adapter: str | None) -> Vlm:
            with session_scope() as session:
                seen.extend(session.scalars(select(ModelTrial.version_id)))
            return models.get(base_model, adapter)

    assert score_candidates(process, Watched(), project_id) == 1
    assert seen == [version_id]
    with session_scope() as session:
        assert session.scalars(select(ModelTrial)).all() == []
