"""Fills a project's pool of candidate sets: claim, sample, store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy.orm import Session

from app import queue
from app.db.sessions import session_scope
from app.errors import DomainError, NotFound
from app.models import ModelVersion, Project
from app.services.candidates import candidates, pools
from app.services.candidates.candidates import NewCandidate, PromptData, SamplingClaim
from app.services.kernel.store import get_store
from app.services.projects import pauses, trials
from app.services.projects.projects import ProjectSettings, settings_of
from app.services.rounds import lease
from app.settings import get_settings
from illume.errors import UNEXPECTED_ERRORS, VlmError
from illume.model.vlm import Vlm
from illume.parts import join_texts
from illume.records import Example, Rationale, stable_seed
from illume.sampling.generation import sample_rationales
from illume.settings import SamplingSettings
from worker.device import hold_device
from worker.model_cache import ModelCache
from worker.process import StepTimeoutError, WorkerProcess, step_deadline

log = logging.getLogger(__name__)

FIRST_BATCH = 2
BATCH = {"cpu": 8}
BATCH_ON_ACCELERATOR = 32
TURN_SECONDS = 45.0
"""How long a task fills one pool before other projects get a turn."""

Report = Callable[[int, int], None]
"""Called with the number of ready sets and the target."""

Watch = Callable[[], None]
"""Called often; raises to abort."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The claims that are sampled together, outside any transaction."""

    claims: Sequence[SamplingClaim]
    prompts: dict[int, PromptData]
    settings: ProjectSettings


def fill_pool(process: WorkerProcess, models: ModelCache, project_id: int) -> int:
    """Sample until the pool is full, a round waits, or the turn is over. Returns the number of sets stored."""
    with session_scope() as session:
        project = session.get(Project, project_id)
        if project is None or pools.count_missing_sets(session, project) == 0 or pauses.is_paused(session, project):
            return 0
    with hold_device(process, purpose="sampling") as held:
        return _fill_for_a_turn(process, models, project_id) if held else 0


def _fill_for_a_turn(process: WorkerProcess, models: ModelCache, project_id: int) -> int:
    until = time.monotonic() + TURN_SECONDS
    stored, limit = 0, FIRST_BATCH
    while not _is_round_waiting():
        made = _fill_or_pause(process, models, project_id, target=None, limit=limit, watch=process.check)
        if made is None:
            return stored
        stored, limit = stored + made, batch_size(process)
        if time.monotonic() > until:
            queue.send_now(queue.FILL_POOL, project_id)
            break
    return stored


def fill_for_round(
    process: WorkerProcess, models: ModelCache, project_id: int, *, report: Report, watch: Watch
) -> None:
    """Sample until the pool has enough ready sets for critics while a round runs.

    Prompts that cannot be sampled do not fail the round: sampling is paused then, and the round goes on.
    """
    with session_scope() as session:
        project = session.get_one(Project, project_id)
        target = settings_of(session, project).pool_for_round
        made: int | None = None if pauses.is_paused(session, project) else 0
    while made is not None:
        with session_scope() as session:
            missing = pools.count_missing_sets(session, session.get_one(Project, project_id), target=target)
        report(target - missing, target)
        if missing == 0:
            return
        made = _fill_or_pause(process, models, project_id, target=target, limit=batch_size(process), watch=watch)


def fill_others(process: WorkerProcess, models: ModelCache, project_id: int, *, watch: Watch) -> None:
    """Sample for other projects whose critics have nothing, each for a turn at most, while a round holds the device."""
    with session_scope() as session:
        waiting = pools.list_starving(session, without=project_id)
    for other_id in waiting:
        with session_scope() as session:
            target = settings_of(session, session.get_one(Project, other_id)).pool_for_round
        until, limit = time.monotonic() + TURN_SECONDS, FIRST_BATCH
        made: int | None = 0
        while made is not None and time.monotonic() < until:
            made = _fill_or_pause(process, models, other_id, target=target, limit=limit, watch=watch)
            limit = batch_size(process)


def _fill_or_pause(
    process: WorkerProcess, models: ModelCache, project_id: int, *, target: int | None, limit: int, watch: Watch
) -> int | None:
    """As `_fill_once`; a project whose model cannot be used is paused with the reason, and None returned."""
    with session_scope() as session:
        version_id = session.get_one(Project, project_id).active_version_id
        if version_id is None:
            return None
        trials.begin(session, project_id, version_id, worker=process.name)
    try:
        made = _fill_once(process, models, project_id, target=target, limit=limit, watch=watch)
    except (DomainError, StepTimeoutError, *UNEXPECTED_ERRORS) as error:
        reason = str(error) or type(error).__name__
        log.warning("sampling of project %s is paused: %s", project_id, reason)
        models.drop()
        with session_scope() as session:
            pauses.pause(session, project_id, version_id, reason)
        return None
    finally:
        with session_scope() as session:
            trials.end(session, worker=process.name)
    if made:
        with session_scope() as session:
            trials.succeed(session, project_id)
    return made


def batch_size(process: WorkerProcess) -> int:
    """The number of prompts that are sampled together."""
    return BATCH.get(process.device, BATCH_ON_ACCELERATOR)


def _is_round_waiting() -> bool:
    with session_scope() as session:
        return lease.is_round_waiting(session)


def _fill_once(
    process: WorkerProcess,
    models: ModelCache,
    project_id: int,
    *,
    target: int | None,
    limit: int,
    watch: Watch,
) -> int | None:
    """Claim, sample and store one batch. Returns the number of sets stored, or None if nothing is left to do."""
    watch()
    with session_scope() as session:
        project = session.get_one(Project, project_id)
        version = session.get_one(ModelVersion, project.active_version_id)
    process.heartbeat.doing = f"loading version {version.number} of {project.slug}"
    seconds = get_settings().step_seconds
    try:
        with step_deadline(seconds, what=f"version {version.number} of {project.slug}") as begin_step:
            vlm = models.get(version.base_model, version.adapter)
            batch = _claim(process, project_id, version, target=target, limit=limit)
            if batch is None:
                return None
            process.heartbeat.doing = f"writing explanations for {project.slug}, {len(batch.claims)} at a time"

            def advance() -> None:
                begin_step()
                watch()

            advance()
            return _sample_and_store(process, vlm, batch, watch=advance)
    finally:
        process.heartbeat.doing = ""


def _claim(
    process: WorkerProcess, project_id: int, version: ModelVersion, *, target: int | None, limit: int
) -> Batch | None:
    """Claim the next sets to sample with `version`. None if there are none, or another version is active by now."""
    with session_scope() as session:
        project = session.get_one(Project, project_id)
        if project.active_version_id != version.id:
            return None
        wanted = min(limit, pools.count_missing_sets(session, project, target=target))
        claims = candidates.claim_sampling_batch(session, project, worker=process.name, limit=wanted)
        prompts = candidates.load_prompts_data(session, [claim.prompt_id for claim in claims])
        return Batch(claims, prompts, settings_of(session, project)) if claims else None


def _sample_and_store(process: WorkerProcess, vlm: Vlm, batch: Batch, *, watch: Watch) -> int:
    """Sample and store a batch. Returns the number of sets stored. If aborted, it releases the others at once."""
    is_done, process.heartbeat.sampling = False, True
    try:
        stored = _try_batch(vlm, batch, watch=watch)
        is_done = True
        return stored
    finally:
        process.heartbeat.sampling = False
        if not is_done:
            with session_scope() as session:
                candidates.release_sampling(session, process.name)


def _try_batch(vlm: Vlm, batch: Batch, *, watch: Watch) -> int:
    try:
        sets = _sample(vlm, batch, watch=watch)
    except (DomainError, *UNEXPECTED_ERRORS) as error:
        # One broken image must not fail the whole batch: each set is retried alone.
        if len(batch.claims) > 1:
            singles = [Batch([claim], batch.prompts, batch.settings) for claim in batch.claims]
            stored = sum(_try_batch(vlm, single, watch=watch) for single in singles)
            if not stored:
                raise VlmError(f"none of {len(singles)} prompts could be sampled: {error}") from error
            return stored
        _note_failure(batch.claims[0], error)
        return 0
    with session_scope() as session:
        kept = [_store(session, claim, made) for claim, made in zip(batch.claims, sets, strict=True)]
    log.info("stored %s candidate sets", sum(kept))
    return sum(kept)


def _note_failure(claim: SamplingClaim, error: Exception) -> None:
    log.warning("no candidates for prompt %s: %s", claim.prompt_id, error)
    with session_scope() as session:
        candidates.fail_sampling(session, claim.set_id, claim.fence, error=str(error) or type(error).__name__)


def _sample(vlm: Vlm, batch: Batch, *, watch: Watch) -> list[list[Rationale]]:
    settings = batch.settings
    return sample_rationales(
        vlm,
        # Seeds derive from the set's id, so that a prompt sampled again with the same version gets new candidates.
        [replace(make_example(batch.prompts[claim.prompt_id]), id=f"set {claim.set_id}") for claim in batch.claims],
        SamplingSettings(
            temperatures=tuple((float(temperature), count) for temperature, count in settings.temperatures),
            top_k_share=settings.top_k_share,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
            redraws=settings.redraws,
            template=settings.template,
        ),
        seed=stable_seed("candidates", batch.claims[0].version_id),
        progress=lambda _done, _total: watch(),
    )


def make_example(prompt: PromptData) -> Example:
    """Convert a prompt to an example with local image files. Raises NotFound if an image is missing."""
    cache = get_settings().data_dir / "cache" / "images"
    if not prompt.images:
        raise NotFound("The prompt has no image.")
    return Example(
        id=str(prompt.id),
        images=tuple(str(get_store().local_path(sha256, cache)) for sha256 in prompt.images),
        question=join_texts(prompt.parts) if prompt.parts else prompt.question,
        answer=prompt.answer,
        references=prompt.references,
        split=prompt.split.value,
        metadata=prompt.metadata,
        parts=prompt.parts,
    )


def _store(session: Session, claim: SamplingClaim, made: list[Rationale]) -> bool:
    return candidates.store_candidates(
        session,
        claim.set_id,
        claim.fence,
        answer=made[0].answer if made else None,
        answer_source=made[0].answer_source if made else None,
        rationales=[NewCandidate(one.text, one.temperature, one.seed, one.mean_logprob, one.n_tokens) for one in made],
    )
