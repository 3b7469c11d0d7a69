"""Taking the adapters of erased projects off model servers, in a worker: remove the copy, unload, forget the name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app import queue
from app.db.sessions import session_scope
from app.errors import DomainError
from app.models import Engine, EngineAdapter, ModelVersion
from app.services.engines.copies import remove_copy
from app.services.engines.reach import Connection, connection_of
from illume.engines import adapters
from illume.engines.errors import EngineError
from illume.engines.sampling import run_watched

log = logging.getLogger(__name__)

PATIENCE = timedelta(minutes=15)
"""How long a server that is away is asked to unload an adapter. One that was restarted has none any more."""


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
    """The ids of the adapters to be taken off their servers: those whose version was erased."""
    query = select(EngineAdapter.id).join(ModelVersion, ModelVersion.id == EngineAdapter.version_id)
    return list(session.scalars(query.where(ModelVersion.adapter.is_(None)).order_by(EngineAdapter.id)))


def remove_adapter(adapter_id: int, *, check: Callable[[], None]) -> None:
    """Take an adapter off its server if that is due. A server that is away is asked again for a while.

    It needs no lease: every step can be repeated. `check` is called often, and raises to abort.
    """
    with session_scope() as session:
        row = session.get(EngineAdapter, adapter_id)
        if row is None or session.get_one(ModelVersion, row.version_id).adapter is not None:
            return
        name, engine = row.name, session.get_one(Engine, row.engine_id)
        engine_name = engine.name
        connection: Connection | None = None
        waits = session.scalar(
            select(EngineAdapter.requested_at > func.now() - PATIENCE).where(EngineAdapter.id == adapter_id)
        )
        try:
            connection = connection_of(engine)
        except DomainError as error:
            log.warning("model server %s: %s is not unloaded: %s", engine_name, name, error.detail)
    try:
        remove_copy(name)
        if connection is not None:
            take_off(connection, name, check=check)
    except OSError as error:
        log.warning("model server %s: the copy of %s is removed later: %s", engine_name, name, error)
        return
    except EngineError as error:
        log.warning("model server %s: %s was not unloaded: %s", engine_name, name, error)
        if waits:
            return
    with session_scope() as session:
        if (row := session.get(EngineAdapter, adapter_id)) is not None:
            session.delete(row)


def take_off(connection: Connection, name: str, *, check: Callable[[], None]) -> None:
    """Unload an adapter whose copy is gone. Raises EngineError."""

    async def work() -> bool:
        async with connection.open() as client:
            return await adapters.unload(client, name)

    if not run_watched(work(), check):
        log.warning("%s keeps %s until it is restarted: it unloads no adapters while it runs", connection.url, name)
