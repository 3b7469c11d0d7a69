"""Fills the pool of a project that samples from a model server: claim, ask the server, store each set as it comes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.db.sessions import session_scope
from app.errors import DomainError, NotFound
from app.models import AdapterState, Engine, EngineAdapter, EngineState, ModelVersion, Project, SamplingFailure
from app.services.candidates import candidates, pools
from app.services.candidates.batches import Batch, claim_batch, none_sampled, note_failure, store_set
from app.services.candidates.candidates import SamplingClaim
from app.services.engines import probing
from app.services.engines.reach import Connection, connection_of
from app.services.projects import pauses
from app.services.rounds import hand_over
from illume.engines.adapters import is_itself, list_models
from illume.engines.capabilities import Capabilities
from illume.engines.client import Client
from illume.engines.errors import EngineError, ModelMissing, PromptTooLong, ServerChanged
from illume.engines.probe import check_unchanged
from illume.engines.sampling import Server, run_watched, sample_sets
from illume.errors import VlmError
from illume.phrases import Phrase, _, kept, said_by
from illume.records import Example, Rationale
from worker.process import WorkerProcess

log = logging.getLogger(__name__)

SETS_PER_REQUEST = 2
"""Sets that are claimed together, for each request that may be in flight: enough to keep the server busy."""


class NotLoaded(Exception):
    """The version is not on the server, and is being handed over; or why it cannot be."""


@dataclass(frozen=True, slots=True)
class Source:
    """A version on a model server: `model` is its name there, `base` that of the base model.

    `served_model` is what the server runs, where that is another model than the version's base model.
    """

    engine: str
    engine_id: int
    connection: Connection
    base: str
    model: str
    capabilities: Capabilities
    version_id: int
    served_model: str | None


def fill_from_engine(process: WorkerProcess, project_id: int) -> int:
    """Sample until the pool is full. Returns the number of sets stored.

    A server that cannot be used pauses the project, which says why. Raises Stopping if this process should stop.
    """
    # The worker's other tasks may sample too, and their sets must not be released with these.
    worker = pools.engine_sampler(process.name, project_id)
    stored = 0
    process.heartbeat.hold_sampler(worker)
    try:
        while (made := _fill_or_pause(process, project_id, worker)) is not None:
            stored += made
    finally:
        process.heartbeat.drop_sampler(worker)
        with session_scope() as session:
            candidates.release_sampling(session, worker)
    return stored


def _fill_or_pause(process: WorkerProcess, project_id: int, worker: str) -> int | None:
    """Sample and store one batch. None if nothing is left to do, or the project is paused now."""
    process.check()
    with session_scope() as session:
        project = session.get(Project, project_id)
        if project is None or project.active_version_id is None or pauses.is_paused(session, project):
            return None
        version_id = project.active_version_id
        try:
            source = _find_source(session, project)
        except (DomainError, NotLoaded) as error:
            pauses.pause(session, project_id, version_id, said_by(error))
            return None
        if source is None:
            return None
        limit = SETS_PER_REQUEST * source.connection.in_flight
        batch = claim_batch(session, project, version_id, worker=worker, target=None, limit=limit)
    if batch is None:
        return None
    try:
        made = _sample(source, batch, process.check)
    except ModelMissing as error:
        _note_lost(project_id, source, worker, said_by(error))
        return None
    except VlmError as error:
        log.warning("sampling of project %s is paused: %s", project_id, error)
        if isinstance(error, ServerChanged):
            probing.note_change(source.engine_id)
        with session_scope() as session:
            candidates.release_sampling(session, worker)
            pauses.pause(session, project_id, version_id, _of_server(source.engine, said_by(error)))
        return None
    with session_scope() as session:
        pauses.resume(session, project_id, version_id)
    return made


def _find_source(session: Session, project: Project) -> Source | None:
    """The active version on the project's server. None if the project samples by itself, or its pool is full.

    Raises NotLoaded, `Conflict` for a key that cannot be read.
    """
    engine = hand_over.engine_of(session, project)
    if engine is None or pools.count_missing_sets(session, project) == 0:
        return None
    version = session.get_one(ModelVersion, project.active_version_id)
    if engine.state is EngineState.failed or not engine.capabilities:
        known = kept(engine.error, engine.error_phrase)
        raise NotLoaded(known or _("The model server '%(name)s' is being probed.", name=engine.name))
    model = hand_over.served_name(session, engine, version)
    if model is None:
        raise NotLoaded(_hand_over_again(session, project, engine, version))
    if (unfit := hand_over.why_unfit(engine, version)) is not None:
        raise NotLoaded(unfit)
    capabilities = Capabilities.from_json(engine.capabilities)
    return Source(
        engine.name,
        engine.id,
        connection_of(engine),
        engine.model,
        model,
        capabilities,
        version.id,
        hand_over.other_model(engine, version),
    )


def _hand_over_again(session: Session, project: Project, engine: Engine, version: ModelVersion) -> str:
    """Have the active version handed over, and return what is said of that: why it failed, where it did before.

    What made it fail may be mended by now, and it is asked for only when a pause has ended.
    """
    found = hand_over.newest_adapter(session, engine, version)
    failed = kept(found.error, found.error_phrase) if found is not None and found.state is AdapterState.failed else ""
    hand_over.request_hand_over(session, project, engine, version, activate=False)
    return failed or _(
        "Version %(number)s is being handed over to the model server '%(name)s'.",
        number=version.number,
        name=engine.name,
    )


def _of_server(name: str, error: str) -> Phrase:
    return _("Model server '%(name)s': %(error)s", name=name, error=error)


def _note_lost(project_id: int, source: Source, worker: str, error: str) -> None:
    """The server does not know a name any more: have the version handed over again, unless another one is active."""
    with session_scope() as session:
        candidates.release_sampling(session, worker)
        project = session.get_one(Project, project_id)
        engine = hand_over.engine_of(session, project)
        if engine is None or engine.name != source.engine or project.active_version_id != source.version_id:
            return
        version = session.get_one(ModelVersion, source.version_id)
        if version.adapter is None:
            pauses.pause(session, project_id, version.id, _of_server(engine.name, error))
            return
        found = hand_over.newest_adapter(session, engine, version)
        if isinstance(found, EngineAdapter) and found.name == source.model:
            found.state = AdapterState.unloaded
            session.flush()
        hand_over.request_hand_over(session, project, engine, version, activate=False)
        lost = _(
            "The model server '%(name)s' does not know version %(number)s any more: it was probably restarted. It is"
            " handed over again.",
            name=engine.name,
            number=version.number,
        )
        pauses.pause(session, project_id, version.id, lost)


def _sample(source: Source, batch: Batch, check: Callable[[], None]) -> int:
    """Sample a batch and store its sets as they come. Returns how many were stored."""
    claims, examples = _examples_of(batch)
    stored, failures = 0, []

    def store(index: int, made: list[Rationale]) -> None:
        nonlocal stored
        with session_scope() as session:
            stored += store_set(session, batch, claims[index], made, served_model=source.served_model)

    def fail(index: int, error: VlmError) -> None:
        if isinstance(error, PromptTooLong):
            note_failure(claims[index], error, SamplingFailure.too_long)
        else:
            failures.append(error)
            note_failure(claims[index], error)

    async def work() -> None:
        async with source.connection.open() as client:
            await check_unchanged(client, source.base, source.capabilities)
            await _check_name(client, source)
            await sample_sets(
                Server(client, source.model, source.capabilities),
                examples,
                batch.sampling,
                seed=batch.seed,
                on_set=store,
                on_failure=fail,
                in_flight=source.connection.in_flight,
            )

    run_watched(work(), check)
    if failures and not stored:
        raise EngineError(none_sampled(len(failures), failures[-1]))
    return stored


async def _check_name(client: Client, source: Source) -> None:
    """Raise ModelMissing where a server that answers under any name does not list the version's as its own."""
    if source.capabilities.any_name and not is_itself(await list_models(client), source.model):
        raise ModelMissing(
            _("the server answers under any name, and does not list '%(name)s' as its own", name=source.model),
            status=404,
        )


def _examples_of(batch: Batch) -> tuple[list[SamplingClaim], list[Example]]:
    """The claims with their examples, without those whose images are missing."""
    claims, examples = [], []
    for claim in batch.claims:
        try:
            examples.append(batch.example_of(claim))
        except NotFound as error:
            note_failure(claim, error)
        else:
            claims.append(claim)
    return claims, examples
