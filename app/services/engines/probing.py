"""Probing a model server, in a worker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.db.base import phrased
from app.db.sessions import session_scope
from app.errors import DomainError
from app.models import Engine, EngineAdapter, EngineState
from app.services.engines import engines
from app.services.engines.loaded import try_again
from app.services.engines.reach import Connection, connection_of
from app.services.kernel.actors import SYSTEM
from illume.engines.capabilities import Capabilities
from illume.engines.errors import EngineAway, EngineError
from illume.engines.probe import probe
from illume.engines.sampling import run_watched
from illume.phrases import said_by

log = logging.getLogger(__name__)

PATIENCE = timedelta(minutes=15)
"""How long a server may take to start: until then its probe is tried again."""


def list_due(session: Session) -> list[int]:
    """The ids of the servers whose probe is due."""
    return list(session.scalars(select(Engine.id).where(Engine.state == EngineState.probing).order_by(Engine.id)))


def note_change(engine_id: int) -> None:
    """Have a server probed that is another one than its probe found, unless its probe is due already."""
    with session_scope() as session:
        found = session.get(Engine, engine_id, with_for_update=True)
        if found is not None and found.state is not EngineState.probing:
            log.warning("model server %s: it runs something else than when it was probed", found.name)
            engines.request_probe(session, SYSTEM, engine_id)


def probe_engine(engine_id: int, *, check: Callable[[], None]) -> None:
    """Probe a server if that is due, and keep what was found. One that is away is tried again for a while.

    It needs no lease: probing twice does no harm. `check` is called often, and raises to abort.
    """
    with session_scope() as session:
        found = session.get(Engine, engine_id)
        if found is None or found.state is not EngineState.probing:
            return
        name, model, requested_at = found.name, found.model, found.requested_at
        adapters = session.scalars(select(EngineAdapter.name).where(EngineAdapter.engine_id == engine_id)).all()
        try:
            connection = connection_of(found)
        except DomainError as error:
            found.state, found.error = EngineState.failed, error.detail
            return
    try:
        capabilities = run_watched(_probe(connection, model, adapters), check)
    except EngineAway as error:
        log.info("model server %s: %s", name, error)
        _store(engine_id, requested_at, error=said_by(error), patient=True)
    except EngineError as error:
        log.warning("model server %s: %s", name, error)
        _store(engine_id, requested_at, error=said_by(error))
    else:
        _store(engine_id, requested_at, capabilities=capabilities)


async def _probe(connection: Connection, model: str, adapters: Sequence[str]) -> Capabilities:
    async with connection.open() as client:
        return await probe(client, model, adapters=adapters)


def _store(
    engine_id: int,
    requested_at: object,
    *,
    capabilities: Capabilities | None = None,
    error: str | None = None,
    patient: bool = False,
) -> None:
    """Store the result, unless the server was changed meanwhile. `patient`: it may still start."""
    values: dict[str, object] = {**phrased(error=error), "probed_at": func.now()}
    if capabilities is not None:
        values |= {"state": EngineState.ready, "capabilities": capabilities.as_json()}
    with session_scope() as session:
        is_same = (Engine.id == engine_id, Engine.requested_at == requested_at)
        waits = patient and session.scalar(select(Engine.requested_at > func.now() - PATIENCE).where(*is_same))
        if error is not None and not waits:
            values["state"] = EngineState.failed
        session.execute(update(Engine).where(*is_same).values(**values).execution_options(synchronize_session=False))
        if capabilities is not None:
            try_again(session, engine_id)
