"""Fills a project's pool of candidate sets: claim, sample, store."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from app import queue
from app.db.sessions import session_scope
from app.errors import DomainError, NotFound
from app.models import ModelVersion, Project, SamplingFailure
from app.services.candidates import candidates, pools
from app.services.candidates.batches import (
    Batch,
    claim_batch,
    make_example,
    none_sampled,
    note_failure,
    store_set,
)
from app.services.kernel.store import StoreAway
from app.services.projects import pauses, trials
from app.services.projects.choice import LOCAL
from app.services.projects.projects import settings_of
from app.services.rounds import lease
from app.settings import get_settings
from illume.errors import UNEXPECTED_ERRORS, VlmError
from illume.model.encodable import TOO_LONG, list_unreadable
from illume.model.vlm import Vlm
from illume.phrases import _, said_by
from illume.records import Rationale
from illume.sampling.generation import sample_rationales
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


def fill_pool(process: WorkerProcess, models: ModelCache, project_id: int) -> int:
    """Sample until the pool is full, a round waits, or the turn is over. Returns the number of sets stored."""
    with session_scope() as session:
        project = session.get(Project, project_id)
        if project is None or pools.count_missing_sets(session, project) == 0 or pauses.is_paused(session, project):
            return 0
        if settings_of(session, project).engine != LOCAL:  # that needs no device
            queue.send(session, queue.FILL_FROM_ENGINE, project_id)
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
        settings = settings_of(session, project)
        target = settings.pool_for_round
        # A model server goes on sampling while the round runs.
        made: int | None = None if settings.engine != LOCAL or pauses.is_paused(session, project) else 0
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
    except StoreAway:
        raise  # no fault of the model
    except (DomainError, StepTimeoutError, *UNEXPECTED_ERRORS) as error:
        reason = said_by(error)
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
            trials.succeed(session, project_id, version_id)
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
    process.heartbeat.doing = _("loading version %(number)s of %(slug)s", number=version.number, slug=project.slug)
    seconds = get_settings().step_seconds
    try:
        with step_deadline(seconds, what=f"version {version.number} of {project.slug}") as begin_step:
            vlm = models.get(version.base_model, version.adapter)
            with session_scope() as session:
                batch = claim_batch(
                    session,
                    session.get_one(Project, project_id),
                    version.id,
                    worker=process.name,
                    target=target,
                    limit=limit,
                )
            if batch is None:
                return None
            process.heartbeat.doing = _(
                "writing explanations for %(slug)s, %(n)s at a time", slug=project.slug, n=len(batch.claims)
            )

            def advance() -> None:
                begin_step()
                watch()

            advance()
            return _sample_and_store(process, vlm, batch, watch=advance)
    finally:
        process.heartbeat.doing = ""


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
    batch = _without_long_policies(vlm, batch, watch=watch)
    if not batch.claims:
        return 0
    try:
        sets = _sample(vlm, batch, watch=watch)
    except StoreAway:
        raise
    except (DomainError, *UNEXPECTED_ERRORS) as error:
        # One broken image must not fail the whole batch: each set is retried alone.
        if len(batch.claims) > 1:
            singles = [replace(batch, claims=[claim]) for claim in batch.claims]
            stored = sum(_try_batch(vlm, single, watch=watch) for single in singles)
            if not stored:
                raise VlmError(none_sampled(len(singles), error)) from error
            return stored
        note_failure(batch.claims[0], error)
        return 0
    with session_scope() as session:
        kept = [store_set(session, batch, claim, made) for claim, made in zip(batch.claims, sets, strict=True)]
    log.info("stored %s candidate sets", sum(kept))
    return sum(kept)


def _without_long_policies(vlm: Vlm, batch: Batch, *, watch: Watch) -> Batch:
    """The batch without prompts that do not fit the model with their policies. They are never cut: they wait."""
    under_policies = {one.prompt_id: one for one in batch.claims if batch.prompts[one.prompt_id].policy is not None}
    examples = []
    for prompt_id in under_policies:
        with contextlib.suppress(NotFound):  # of an image: sampling says so
            examples.append(make_example(batch.prompts[prompt_id]))
    template, structured = batch.settings.template, bool(batch.settings.answer_fields)
    unreadable = list_unreadable(vlm, examples, template=template, explained=not structured, check=watch)
    reasons = {int(example.id): reason for example, reason in unreadable}
    for prompt_id, reason in reasons.items():
        failure = SamplingFailure.too_long if TOO_LONG in reason else SamplingFailure.other
        note_failure(under_policies[prompt_id], reason, failure)
    return replace(batch, claims=[one for one in batch.claims if one.prompt_id not in reasons])


def _sample(vlm: Vlm, batch: Batch, *, watch: Watch) -> list[list[Rationale]]:
    return sample_rationales(
        vlm,
        [batch.example_of(claim) for claim in batch.claims],
        batch.sampling,
        seed=batch.seed,
        progress=lambda _done, _total: watch(),
    )
