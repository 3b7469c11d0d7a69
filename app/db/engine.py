"""The database engine: connection options, the size of the pool, and the check of a connection before use."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from select import POLLIN, poll
from typing import Any, Protocol, cast

import psycopg
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from app.settings import get_settings

# Connections of a process beside the `pool_size` of its requests: for kinds with places of their own, for health and
# for scrapes of metrics. `CALLER_CONNECTIONS` find out who sends a large body before it is read.
# A stream has one at its place and some that fetch its next pages. `JUDGING_CONNECTIONS` are those of the
# event loop's own pool (`app/db/judging_pool.py`), for claims and verdicts.
IMAGE_CONNECTIONS, UPLOAD_CONNECTIONS, STREAM_SLOTS, FETCHERS_PER_STREAM, JUDGING_CONNECTIONS = 2, 2, 2, 2, 8
CALLER_CONNECTIONS = SCRAPE_CONNECTIONS = HEALTH_CONNECTIONS = 1
RESERVED_CONNECTIONS = (
    UPLOAD_CONNECTIONS + STREAM_SLOTS * (1 + FETCHERS_PER_STREAM) + SCRAPE_CONNECTIONS + HEALTH_CONNECTIONS
)
ASYNC_CONNECTIONS = JUDGING_CONNECTIONS + IMAGE_CONNECTIONS + CALLER_CONNECTIONS
EXTRA_CONNECTIONS = RESERVED_CONNECTIONS + ASYNC_CONNECTIONS
IDLE_SECONDS = 0.05
"""A connection that was idle for longer than this is pinged before it is used."""


# A server that is cut off sends nothing. A connection is given up after 20 s of silence. This applies to TCP only.
KEEPALIVES = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
}


def sqlalchemy_url(url: str) -> str:
    """Return `url` with the driver we use, whichever common spelling of PostgreSQL it has."""
    for prefix in ("postgresql+psycopg://", "postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg://" + url.removeprefix(prefix)
    raise ValueError("ILLUME_DATABASE_URL must start with postgresql://")


def libpq_url(url: str) -> str:
    """Return `url` in the form that the driver and PostgreSQL's own programs accept."""
    return sqlalchemy_url(url).replace("postgresql+psycopg://", "postgresql://", 1)


# They are set by a statement on each new connection: poolers such as PgBouncer do not pass on those of the start.
SERVER_SETTINGS = {
    "lock_timeout": "2s",
    "statement_timeout": "10s",
    "transaction_timeout": "10s",
    "timezone": "UTC",
    "jit": "off",
}
CONNECT_ARGS: dict[str, Any] = {
    "connect_timeout": 3,
    "application_name": "illume",
    "client_encoding": "utf8",
    **KEEPALIVES,
}


def set_all(settings: Mapping[str, str]) -> bytes:
    """A statement that gives a connection these settings; the names and values are ours."""
    calls = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in settings.items())
    return f"SELECT {calls}".encode()


def make_engine(url: str, *, pool_size: int) -> Engine:
    """Create an engine whose connections give up on locks and on runaway statements."""
    engine = create_engine(
        sqlalchemy_url(url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=5,
        pool_use_lifo=True,  # a few connections with cached plans beat many that have to plan
        connect_args=CONNECT_ARGS,
    )
    limit_statements(engine)
    ping_after_idling(engine)
    return engine


def limit_statements(engine: Engine) -> None:
    """Give each new connection of `engine` the limits for locks and runaway statements."""
    statement = set_all(SERVER_SETTINGS)

    def set_up(connection: psycopg.Connection[Any], _record: ConnectionPoolEntry) -> None:
        connection.autocommit = True  # one round trip, and no rollback takes it back
        connection.execute(statement)
        connection.autocommit = False

    event.listen(engine, "connect", set_up)


class Socket(Protocol):
    """Something with a file descriptor, such as a connection."""

    def fileno(self) -> int:
        """The descriptor."""


def has_unread_data(connection: Socket) -> bool:
    """Whether an idle connection has something to read: mostly the server's word that it has closed it."""
    waiting = poll()
    waiting.register(connection.fileno(), POLLIN)
    return bool(waiting.poll(0))


def ping_after_idling(engine: Engine) -> None:
    """Ping a connection before use if it was idle for a while or has unread data.

    A server that closes a connection says so; only one that is cut off stays silent. Pinging every time took longer
    than the queries of many requests.
    """

    def note(_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        record.info["idle_since"] = time.monotonic()

    def look(connection: DBAPIConnection, record: ConnectionPoolEntry, _fairy: PoolProxiedConnection) -> None:
        idle = time.monotonic() - record.info.get("idle_since", time.monotonic())
        if idle < IDLE_SECONDS and not has_unread_data(cast(Socket, connection)):
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
