"""The connection pool of the event loop, for what critics do all day: claims and verdicts.

Statements are prepared on the server and sent in batches: those that are run together need one round trip, and so does
the commit. `docs/decisions/0007-claims-and-verdicts-on-the-event-loop.md` says why.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import psycopg
from psycopg.adapt import Buffer, Loader
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import TextClause, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from app.db.batches import BEGIN, COMMIT, BatchConnection, Row
from app.db.engine import CONNECT_ARGS, SERVER_SETTINGS, has_unread_data, libpq_url, set_all

# Every lookup here is by key, so one generic plan serves all values. A plan that was made while a table was nearly
# empty would scan the whole table until the next ANALYZE.
PLANNER = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
ANSWER_SECONDS = 15.0
"""How long a server that sends nothing is waited for. The server's own limit on a transaction is shorter."""
RECONNECT_SECONDS = 1.0
"""After a failed attempt to connect for so long, the next request starts a new one."""
NUMBERED = postgresql.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]

Value = str | int | float | bool | None
Values = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement with numbered parameters; `names` are those of its values, in the order of the numbers."""

    clause: TextClause
    sql: str
    names: tuple[str, ...]


Call = tuple[Statement, Values]


class Transaction(Protocol):
    """A transaction in which judging statements run."""

    async def run(self, *calls: Call) -> list[Row | None]:
        """Run the statements one after the other: the first row of each, None where there is none."""


def statement(sql: str) -> Statement:
    """Prepare `sql`, whose parameters are written `:name`, for the pool and for a session alike."""
    clause = text(sql)
    compiled = clause.compile(dialect=NUMBERED)
    return Statement(clause, str(compiled), tuple(compiled.positiontup or ()))


class JsonBytesLoader(Loader):
    """Leaves JSON as PostgreSQL wrote it: most of it is passed on as it is."""

    def load(self, data: Buffer) -> bytes:
        """The bytes of the value."""
        return bytes(data)


class PooledTransaction:
    """Runs statements on a connection of the pool; those that are run together need one round trip."""

    def __init__(self, connection: BatchConnection, *, is_one: bool) -> None:
        self._connection = connection
        self._is_one = is_one
        self._began = False

    async def run(self, *calls: Call) -> list[Row | None]:
        """Send the statements together, and wait for the rows. Raises `DBAPIError`."""
        statements = [(one.sql, [as_parameter(values[name]) for name in one.names]) for one, values in calls]
        try:
            if not self._is_one:
                return await self._connection.send(*statements, sync=True)
            if self._began:
                return await self._connection.send(*statements)
            self._began = True
            return (await self._connection.send(BEGIN, *statements))[1:]
        except psycopg.Error as error:
            raise wrap_driver_error(error) from error

    async def commit(self) -> None:
        """Commit, if anything was run in one transaction. Raises `psycopg.Error`."""
        if self._began:
            await self._connection.send(COMMIT, sync=True)


class JudgingPool:
    """At most `size` connections, opened as they are needed; a request waits `wait` seconds for one."""

    def __init__(self, url: str, *, size: int, wait: float) -> None:
        self._url = url
        self._size = size
        self._wait = wait
        self._pool: AsyncConnectionPool[BatchConnection] | None = None

    async def open(self) -> None:
        """Get ready. No connection is made yet, so a database that is away does not matter here."""
        self._pool = AsyncConnectionPool(
            libpq_url(self._url),
            connection_class=BatchConnection,
            kwargs={**CONNECT_ARGS, "autocommit": True},
            configure=set_up,
            check=check_connection,
            min_size=0,
            max_size=self._size,
            timeout=self._wait,
            reconnect_timeout=RECONNECT_SECONDS,
            name="judging",
            open=False,
        )
        await self._pool.open()

    async def close(self) -> None:
        """Close all connections."""
        if self._pool is not None:
            await self._pool.close()

    def transaction(self) -> contextlib.AbstractAsyncContextManager[Transaction]:
        """A transaction that commits at the end of the block and rolls back on an error.

        BEGIN goes with the first statements. Raises `DBAPIError`, also where no connection became free in time.
        """
        return self._running(is_one=True)

    def reading(self) -> contextlib.AbstractAsyncContextManager[Transaction]:
        """The same without BEGIN and COMMIT: what is run together is a transaction of its own."""
        return self._running(is_one=False)

    @contextlib.asynccontextmanager
    async def _running(self, *, is_one: bool) -> AsyncIterator[Transaction]:
        """A connection that is nobody else's for the length of the block."""
        if self._pool is None:
            raise RuntimeError("The judging pool is not open: the application has not started.")
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._pool.connection() as connection:
                connection.pgconn.enter_pipeline_mode()
                transaction = PooledTransaction(connection, is_one=is_one)
                try:
                    yield transaction
                    await transaction.commit()
                    connection.pgconn.exit_pipeline_mode()
                except BaseException:
                    await connection.abandon()
                    raise
        except psycopg.Error as error:
            raise wrap_driver_error(error) from error
        except TimeoutError as error:
            raise wrap_driver_error(psycopg.OperationalError("the database server does not answer")) from error


async def set_up(connection: BatchConnection) -> None:
    """Set up a new connection: its limits and its planner, and JSON as bytes."""
    await connection.execute(set_all({**SERVER_SETTINGS, **PLANNER}))
    connection.adapters.register_loader("jsonb", JsonBytesLoader)


async def check_connection(connection: BatchConnection) -> None:
    """Raise `OperationalError` for a connection that the server has closed since its last use.

    A server that closes a connection says so, which needs no round trip to notice.
    """
    if connection.closed or has_unread_data(connection):
        await connection.close()  # else the pool would take it for a good one
        raise psycopg.OperationalError("the server closed the connection")


def as_parameter(value: Value) -> bytes | None:
    """A value as the text that is sent: PostgreSQL infers its type from where it stands.

    Raises `DBAPIError` for a text that cannot be stored.
    """
    if value is None:
        return None
    try:
        encoded = str(value).encode()
    except UnicodeEncodeError as error:
        raise wrap_driver_error(psycopg.DataError("a text is not valid Unicode")) from error
    if b"\0" in encoded:
        raise wrap_driver_error(psycopg.DataError("a text has a NUL character"))
    return encoded


def wrap_driver_error(error: psycopg.Error) -> DBAPIError:
    """The driver's error as SQLAlchemy's, so that one place turns both into answers."""
    return cast(DBAPIError, DBAPIError.instance(None, None, error, psycopg.Error))
