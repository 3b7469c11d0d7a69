"""Handing a version's adapter over to a model server, in a worker: load, wait, switch, unload the one before."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app import queue
from app.db.base import phrased
from app.db.sessions import session_scope
from app.errors import DomainError
from app.models import AdapterState, Engine, EngineAdapter, EngineState, ModelVersion, Project
from app.services.engines import probing
from app.services.engines.copies import adapters_dir, has_copy, put_copy, remove_copy
from app.services.engines.reach import Connection, connection_of
from app.services.engines.removing import take_off
from app.services.kernel.actors import SYSTEM
from app.services.kernel.store import StoreAway
from app.services.projects import pauses
from app.services.rounds import versions
from app.services.rounds.hand_over import engine_of, why_unfit
from illume.engines import adapters
from illume.engines.capabilities import Capabilities
from illume.engines.completions import complete, request_body
from illume.engines.errors import EngineAway, EngineError, ServerChanged
from illume.engines.probe import check_unchanged
from illume.engines.sampling import run_watched
from illume.phrases import _, kept, said_by

log = logging.getLogger(__name__)

PATIENCE = timedelta(minutes=15)
"""How long a server that is away is waited for."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """What is handed over: an adapter of the store, its name on the server, and the folder as the server sees it."""

    row_id: int
    project_id: int
    version_id: int
    number: int
    engine: str
    engine_id: int
    name: str
    key: str
    path: str
    model: str
    capabilities: Capabilities


def list_due(session: Session) -> list[int]:
    """The ids of the hand-overs that are due."""
    query = select(EngineAdapter.id).join(ModelVersion, ModelVersion.id == EngineAdapter.version_id)
    is_due = (EngineAdapter.state == AdapterState.waiting, ModelVersion.adapter.is_not(None))
    return list(session.scalars(query.where(*is_due).order_by(EngineAdapter.id)))


def hand_over(adapter_id: int, *, check: Callable[[], None]) -> None:
    """Hand an adapter over if that is due. A failure keeps the version that is active, and says why.

    A server that runs something else than when it was probed is probed first. The hand-over waits for that. One whose
    model is not the version's base model gets no adapter.

    It needs no lease: a server refuses a second load of the same name, which counts as the first. `check` is called
    often, and raises to abort.
    """
    with session_scope() as session:
        found = _read(session, adapter_id)
        if found is None:
            return
        engine = session.get_one(Engine, found.engine_id)
        if _is_left(session, found):
            return
        if engine.state is EngineState.probing:
            return  # The sweep asks again: first it has to be known what the server is.
        if engine.state is EngineState.failed:
            _fail(session, adapter_id, _why_not_loaded(found, kept(engine.error, engine.error_phrase)))
            return
        if (unfit := why_unfit(engine, session.get_one(ModelVersion, found.version_id))) is not None:
            _fail(session, adapter_id, unfit)
            return
        try:
            connection = connection_of(engine)
        except DomainError as error:
            _fail(session, adapter_id, error.detail)
            return
    try:
        put_copy(found.key, found.name)
        run_watched(_load(connection, found), check)
    except adapters.CannotSwap:
        _give_up(found, _how_by_hand(found))
    except ServerChanged as error:
        probing.note_change(found.engine_id)
        _give_up(found, _why_not_loaded(found, said_by(error)), patient=True)
    except (EngineAway, StoreAway) as error:
        _give_up(found, _why_not_loaded(found, said_by(error)), patient=True)
    except (EngineError, DomainError, OSError) as error:
        _give_up(found, _why_not_loaded(found, said_by(error)))
    else:
        _switch(found)
        run_watched(_unload_others(connection, found), check)
    _clean_up_if_erased(connection, found, check)


def _read(session: Session, adapter_id: int) -> HandOver | None:
    """What is to be handed over; None if that is not due."""
    row = session.get(EngineAdapter, adapter_id)
    if row is None or row.state is not AdapterState.waiting:
        return None
    engine, version = session.get_one(Engine, row.engine_id), session.get_one(ModelVersion, row.version_id)
    if version.adapter is None:
        return None
    path = f"{engine.adapters_path.rstrip('/')}/{row.name}" if engine.adapters_path else str(adapters_dir() / row.name)
    return HandOver(
        row.id,
        version.project_id,
        version.id,
        version.number,
        engine.name,
        engine.id,
        row.name,
        version.adapter,
        path,
        engine.model,
        Capabilities.from_json(engine.capabilities),
    )


def _is_left(session: Session, found: HandOver) -> bool:
    """Whether the project samples elsewhere now. Then nothing is loaded, and a version that waits becomes active there.

    The adapter counts as one that failed: its copy is removed, and the server asked to unload what it may have loaded.
    """
    project = session.get_one(Project, found.project_id)
    versions.lock_project(session, project)
    engine = engine_of(session, project)
    row = session.get(EngineAdapter, found.row_id, with_for_update=True, populate_existing=True)
    if row is None or row.state is not AdapterState.waiting:
        return True  # another worker was faster
    if engine is not None and engine.id == found.engine_id:
        return False
    activate = row.activate
    row.state, row.activate, row.requested_at = AdapterState.failed, False, func.now()
    row.error = _why_not_loaded(found, _("the project no longer samples from this server"))
    session.flush()
    queue.send(session, queue.REMOVE_ADAPTER, row.id)
    if activate:
        versions.put_in_force(session, SYSTEM, project, session.get_one(ModelVersion, found.version_id))
    return True


async def _load(connection: Connection, found: HandOver) -> None:
    """Load the adapter; a server that resolves names by itself does so with the first request for one.

    One that answers under any name has to list the adapter's as its own, since its answers do not say what wrote them.
    """
    async with connection.open() as client:
        await check_unchanged(client, found.model, found.capabilities)
        if found.capabilities.any_name:
            if not adapters.is_itself(await adapters.list_models(client), found.name):
                raise adapters.CannotSwap(_("the server answers under any name"))
            return
        try:
            await adapters.load(client, found.name, found.path)
        except adapters.CannotSwap:
            message = {"role": "user", "content": [{"type": "text", "text": "Hello."}]}
            try:
                await complete(client, request_body(found.name, [message], temperature=0.0, max_tokens=1))
            except EngineAway:
                raise
            except EngineError as error:
                raise adapters.CannotSwap(said_by(error)) from error


def _switch(found: HandOver) -> None:
    """Note that the adapter is loaded, and make its version active if it was meant to be."""
    with session_scope() as session:
        project = session.get_one(Project, found.project_id)
        versions.lock_project(session, project)
        row = session.get(EngineAdapter, found.row_id, with_for_update=True, populate_existing=True)
        if row is None:
            return
        row.state, row.error = AdapterState.loaded, None
        session.flush()
        if row.activate:
            row.activate = False
            versions.put_in_force(session, SYSTEM, project, session.get_one(ModelVersion, found.version_id))
        if project.active_version_id == found.version_id:
            pauses.resume(session, project.id, found.version_id)
            queue.send(session, queue.FILL_FROM_ENGINE, project.id)
    log.info("model server %s: loaded version %s as %s", found.engine, found.number, found.name)


def _clean_up_if_erased(connection: Connection, found: HandOver, check: Callable[[], None]) -> None:
    """Take the adapter off again if its project was erased meanwhile, after the erasure had it taken off."""
    with session_scope() as session:
        if session.get(EngineAdapter, found.row_id) is not None:
            return
    try:
        remove_copy(found.name)
        take_off(connection, found.name, check=check)
    except (EngineError, OSError) as error:
        log.warning("model server %s: %s of an erased project stays: %s", found.engine, found.name, error)


async def _unload_others(connection: Connection, found: HandOver) -> None:
    """Unload the other adapters of the project on this server, unless they are active, and remove their copies.

    Those that the server lost are among them: they have a copy still.
    """
    with session_scope() as session:
        active = session.get_one(Project, found.project_id).active_version_id
        rows = session.scalars(
            select(EngineAdapter)
            .join(ModelVersion, ModelVersion.id == EngineAdapter.version_id)
            .where(
                ModelVersion.project_id == found.project_id,
                EngineAdapter.engine_id == found.engine_id,
                EngineAdapter.state.in_((AdapterState.loaded, AdapterState.unloaded)),
                EngineAdapter.id != found.row_id,
            )
        )
        old = [
            (row.id, row.name)
            for row in rows
            if (row.version_id == found.version_id or row.version_id != active)
            and (row.state is AdapterState.loaded or has_copy(row.name))
        ]
    async with connection.open() as client:
        for row_id, name in old:
            try:
                if await adapters.unload(client, name):
                    remove_copy(name)
            except (EngineError, OSError) as error:
                log.warning("model server %s: %s was not unloaded: %s", found.engine, name, error)
                continue
            with session_scope() as session:
                if (row := session.get(EngineAdapter, row_id)) is not None:
                    row.state = AdapterState.unloaded


def _how_by_hand(found: HandOver) -> str:
    """What a person has to do so that the server has the adapter."""
    if found.capabilities.any_name:
        return _(
            "The model server '%(engine)s' answers under any name, so that its answers do not say which version wrote"
            " them. Start it with the adapter in %(path)s, as the model that it lists under the name %(name)s, then"
            " activate version %(number)s again. Until then the version that was active stays.",
            engine=found.engine,
            name=found.name,
            path=found.path,
            number=found.number,
        )
    return _(
        "The model server '%(engine)s' loads no adapters while it runs. Load this one by hand, for vLLM by"
        " restarting it with --enable-lora --lora-modules %(name)s=%(path)s, then activate version %(number)s"
        " again. Until then the version that was active stays.",
        engine=found.engine,
        name=found.name,
        path=found.path,
        number=found.number,
    )


def _why_not_loaded(found: HandOver, reason: str) -> str:
    return _("Version %(number)s was not loaded: %(reason)s.", number=found.number, reason=reason)


def _give_up(found: HandOver, reason: str, *, patient: bool = False) -> None:
    log.warning("model server %s: %s", found.engine, reason)
    with session_scope() as session:
        _fail(session, found.row_id, reason, patient=patient)


def _fail(session: Session, adapter_id: int, reason: str, *, patient: bool = False) -> None:
    """Note why a hand-over failed; a `patient` one goes on waiting for a while."""
    is_due = (EngineAdapter.id == adapter_id, EngineAdapter.state == AdapterState.waiting)
    waits = patient and session.scalar(select(EngineAdapter.requested_at > func.now() - PATIENCE).where(*is_due))
    values: dict[str, object] = phrased(error=reason)
    if not waits:
        values |= {"state": AdapterState.failed, "activate": False}
    session.execute(update(EngineAdapter).where(*is_due).values(**values).execution_options(synchronize_session=False))
