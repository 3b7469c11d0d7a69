"""The engine: how we connect, how many connections a process has, and how a connection is checked before use."""

from __future__ import annotations

import functools
import time
from select import POLLIN, poll
from typing import Any

import psycopg
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from app.settings import get_settings

# Connections of a process beside the `pool_size` of its requests: for kinds with places of their own, and for health.
# A stream has one at its place and some that fetch its next pages.
# Some are the event loop's own (`app/fast_path/pg_pipeline.py`), for claims and verdicts.
IMAGE_CONNECTIONS, UPLOAD_CONNECTIONS, STREAM_SLOTS, FETCHERS_PER_STREAM, JUDGING_CONNECTIONS = 2, 2, 2, 2, 8
RESERVED_CONNECTIONS = IMAGE_CONNECTIONS + UPLOAD_CONNECTIONS + STREAM_SLOTS * (1 + FETCHERS_PER_STREAM) + 1
EXTRA_CONNECTIONS = RESERVED_CONNECTIONS + JUDGING_CONNECTIONS
IDLE_SECONDS = 0.05
"""A connection that was idle for so long is asked whether it still stands before it is used."""


# A server that is cut off says nothing: after 20 s without a sign of it a connection is given up. TCP only.
KEEPALIVES = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
}


def sqlalchemy_url(url: str) -> str:
    """`url` with the driver we use, whatever common spelling of PostgreSQL it has."""
    for prefix in ("postgresql+psycopg://", "postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg://" + url.removeprefix(prefix)
    raise ValueError("ILLUME_DATABASE_URL must start with postgresql://")


def libpq_url(url: str) -> str:
    """`url` as the driver and PostgreSQL's own programs take it."""
    return sqlalchemy_url(url).replace("postgresql+psycopg://", "postgresql://", 1)


def connect_args(more: str = "") -> dict[str, Any]:
    """How we connect: so that locks, statements that run away and servers that are cut off are given up."""
    options = "-c lock_timeout=2000 -c statement_timeout=10000 -c transaction_timeout=10000 -c timezone=UTC -c jit=off"
    named = {"application_name": "illume", "client_encoding": "utf8"}
    return {"connect_timeout": 3, "options": f"{options} {more}".strip(), **named, **KEEPALIVES}


def make_engine(url: str, *, pool_size: int) -> Engine:
    """An engine whose connections give up on locks and on statements that run away."""
    engine = create_engine(
        sqlalchemy_url(url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=5,
        pool_use_lifo=True,  # few connections that have their plans, rather than many that plan
        connect_args=connect_args(),
    )
    ping_after_idling(engine)
    return engine


def has_unread_data(connection: DBAPIConnection) -> bool:
    """Whether there is something to read on a connection that nobody uses: mostly that it is over."""
    waiting = poll()
    waiting.register(connection.fileno(), POLLIN)
    return bool(waiting.poll(0))


def ping_after_idling(engine: Engine) -> None:
    """Ask whether a connection still stands before it is used, where it was idle or the server said something on it.

    A server that closes a connection says so; only one that was cut off does not. Asking each time took longer than
    what many requests ask for.
    """

    def note(_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        record.info["idle_since"] = time.monotonic()

    def look(connection: DBAPIConnection, record: ConnectionPoolEntry, _fairy: PoolProxiedConnection) -> None:
        idle = time.monotonic() - record.info.get("idle_since", time.monotonic())
        if idle < IDLE_SECONDS and not has_unread_data(connection):
            return
        try:
            engine.dialect.do_ping(connection)
        except psycopg.Error as error:
            raise DisconnectionError from error

    event.listen(engine, "checkin", note)
    event.listen(engine, "checkout", look)


@functools.cache
def get_engine() -> Engine:
    """The engine of this process."""
    settings = get_settings()
    return make_engine(settings.database_url, pool_size=settings.pool_size + RESERVED_CONNECTIONS)
