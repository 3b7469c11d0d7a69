"""Taking adapters off model servers, in a worker: those of erased projects, and of projects that sample elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app import queue
from app.db.base import phrased
from app.db.sessions import session_scope
from app.errors import DomainError
from app.models import AdapterState, Engine, EngineAdapter, ModelVersion
from app.services.candidates import pools
from app.services.engines.copies import remove_copy
from app.services.engines.loaded import IS_ERASED, PATIENCE, is_due, is_recent, with_projects
from app.services.engines.reach import Connection, connection_of
from illume.engines import adapters
from illume.engines.errors import EngineError
from illume.engines.sampling import run_watched
from illume.phrases import _, said_by

log = logging.getLogger(__name__)

LATE = timedelta(seconds=10)
"""How long after a project has left a server sets may be claimed for it: no transaction lasts longer."""


@dataclass(frozen=True, slots=True)
class Removal:
    """An adapter to be taken off a server. `problem`: why that cannot be connected to. `waits`: it is asked again."""

    row_id: int
    name: str
    engine: str
    connection: Connection | None
    problem: str
    requested_at: datetime
    is_erased: bool
    waits: bool


def request_removal(session: Session, project_id: int) -> None:
    """Have the adapters of a project, which the store has no longer, taken off their servers."""
    versions = select(ModelVersion.id).where(ModelVersion.project_id == project_id)
    asked = session.scalars(
        update(EngineAdapter)
        .where(EngineAdapter.version_id.in_(versions))
        .values(requested_at=func.now(), activate=False)
        .returning(EngineAdapter.id)
        .execution_options(synchronize_session=False)
    )
    for adapter_id in sorted(asked):
        queue.send(session, queue.REMOVE_ADAPTER, adapter_id)


def list_due(session: Session) -> list[int]:
    """The ids of the adapters to be taken off their servers."""
    return list(session.scalars(with_projects(select(EngineAdapter.id)).where(is_due()).order_by(EngineAdapter.id)))


def remove_adapter(adapter_id: int, *, check: Callable[[], None]) -> None:
    """Take an adapter off its server if that is due. A server that is away is asked again for a while.

    It needs no lease: every step can be repeated. `check` is called often, and raises to abort.
    """
    with session_scope() as session:
        found = _read(session, adapter_id)
    if found is None:
        return
    if found.problem:
        log.warning("model server %s: %s is not unloaded: %s", found.engine, found.name, found.problem)
    if found.is_erased:
        _erase(found, check)
    else:
        _unload(found, check)


def _read(session: Session, adapter_id: int) -> Removal | None:
    """What is to be taken off; None if that is not due, or if sets are still sampled with it."""
    query = with_projects(select(EngineAdapter, Engine, ModelVersion, IS_ERASED, is_recent()))
    known = session.execute(query.where(EngineAdapter.id == adapter_id, is_due())).one_or_none()
    if known is None:
        return None
    row, engine, version, is_erased, waits = known
    # What is sampled goes on for a while at most: a server that has the name no longer is not asked for more.
    if not is_erased and waits and pools.is_sampled_from_engine(session, version, until=row.requested_at + LATE):
        return None
    connection, problem = None, ""
    try:
        connection = connection_of(engine)
    except DomainError as error:
        problem = error.detail
    return Removal(row.id, row.name, engine.name, connection, problem, row.requested_at, is_erased, waits)


def _erase(found: Removal, check: Callable[[], None]) -> None:
    """Take the adapter of an erased project off, its copy first, and forget its name."""
    try:
        remove_copy(found.name)
        if found.connection is not None:
            take_off(found.connection, found.name, check=check)
    except OSError as error:
        log.warning("model server %s: the copy of %s is removed later: %s", found.engine, found.name, error)
        return
    except EngineError as error:
        log.warning("model server %s: %s was not unloaded: %s", found.engine, found.name, error)
        if found.waits:
            return
    with session_scope() as session:
        if (row := session.get(EngineAdapter, found.row_id)) is not None:
            session.delete(row)


def _unload(found: Removal, check: Callable[[], None]) -> None:
    """Unload an adapter whose project samples elsewhere, then remove its copy: a server that keeps it may read it."""
    if found.connection is None:
        _note_problem(found, found.problem)
        return
    try:
        if not take_off(found.connection, found.name, check=check):
            _note_problem(found, _why_not(_("the server unloads no adapters while it runs")), is_final=True)
            return
        remove_copy(found.name)
    except (EngineError, OSError) as error:
        log.warning("model server %s: %s was not unloaded: %s", found.engine, found.name, error)
        _note_problem(found, _why_not(said_by(error)))
        return
    with session_scope() as session:
        session.execute(
            update(EngineAdapter)
            .where(EngineAdapter.id == found.row_id, EngineAdapter.requested_at == found.requested_at)
            .values(state=AdapterState.unloaded, **phrased(error=None))
            .execution_options(synchronize_session=False)
        )
    log.info("model server %s: unloaded %s", found.engine, found.name)


def _why_not(reason: str) -> str:
    return _("It was not unloaded: %(reason)s.", reason=reason)


def _note_problem(found: Removal, reason: str, *, is_final: bool = False) -> None:
    """Note why an adapter is still loaded. The server is asked again for a while, from the first try on."""
    with session_scope() as session:
        row = session.get(EngineAdapter, found.row_id, with_for_update=True)
        if row is None or row.requested_at != found.requested_at or row.state is not AdapterState.loaded:
            return
        if is_final:
            row.requested_at = func.now() - PATIENCE
        elif row.error is None:
            row.requested_at = func.now()
        row.error = reason


def take_off(connection: Connection, name: str, *, check: Callable[[], None]) -> bool:
    """Unload an adapter that is no longer needed. Returns whether the server has it no longer. Raises EngineError."""

    async def work() -> bool:
        async with connection.open() as client:
            return await adapters.unload(client, name)

    is_gone = run_watched(work(), check)
    if not is_gone:
        log.warning("%s keeps %s until it is restarted: it unloads no adapters while it runs", connection.url, name)
    return is_gone
