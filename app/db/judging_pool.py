"""The connection pool of the event loop, for what critics do all day: claims and verdicts.

Statements are prepared on the server and sent in psycopg's pipeline mode: those that are run together need one round
trip, and so does the commit. `docs/decisions/0007-claims-and-verdicts-on-the-event-loop.md` says why.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import psycopg
from psycopg.adapt import Buffer, Loader
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import TextClause, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from app.db.engine import connect_args, has_unread_data, libpq_url

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
Row = Mapping[str, Any]
"""A row by column names. A value of type jsonb is the bytes of its text."""


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


class StatementRunner:
    """Runs statements on a connection of the pool: one after the other, or together if it is in pipeline mode."""

    def __init__(self, connection: psycopg.AsyncConnection[DictRow]) -> None:
        self._connection = connection

    async def run(self, *calls: Call) -> list[Row | None]:
        """Send the statements, and wait for the rows. Raises `DBAPIError`."""
        cursors = []
        try:
            for one, values in calls:
                cursor = self._connection.cursor()
                await cursor.execute(
                    cast(Any, one.sql), [as_parameter(values[name]) for name in one.names], prepare=True
                )
                cursors.append(cursor)
            return [await cursor.fetchone() for cursor in cursors]
        except psycopg.Error as error:
            raise wrap_driver_error(error) from error


class JudgingPool:
    """At most `size` connections, opened as they are needed; a request waits `wait` seconds for one."""

    def __init__(self, url: str, *, size: int, wait: float) -> None:
        self._url = url
        self._size = size
        self._wait = wait
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[DictRow]] | None = None

    async def open(self) -> None:
        """Get ready. No connection is made yet, so a database that is away does not matter here."""
        options = " ".join(f"-c {name}={value}" for name, value in PLANNER.items())
        self._pool = AsyncConnectionPool(
            libpq_url(self._url),
            kwargs={
                **connect_args(options),
                "autocommit": True,
                "cursor_factory": psycopg.AsyncRawCursor,
                "row_factory": dict_row,
            },
            configure=leave_json_as_bytes,
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

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A transaction that commits at the end of the block and rolls back on an error.

        Raises `DBAPIError`, also where no connection became free in time.
        """
        async with self._connection() as connection, connection.pipeline():
            # By hand, since `connection.transaction()` waits for BEGIN by itself.
            await connection.execute("BEGIN")
            try:
                yield StatementRunner(connection)
            except BaseException:
                await roll_back(connection)
                raise
            await connection.execute("COMMIT")

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[Transaction]:
        """The same for statements that stand alone: each is a transaction of its own, without BEGIN and COMMIT."""
        async with self._connection() as connection:
            yield StatementRunner(connection)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[psycopg.AsyncConnection[DictRow]]:
        """A connection that is nobody else's for the length of the block."""
        if self._pool is None:
            raise RuntimeError("The judging pool is not open: the application has not started.")
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._pool.connection() as connection:
                yield connection
        except psycopg.Error as error:
            raise wrap_driver_error(error) from error
        except TimeoutError as error:
            raise wrap_driver_error(psycopg.OperationalError("the database server does not answer")) from error


async def leave_json_as_bytes(connection: psycopg.AsyncConnection[DictRow]) -> None:
    """Set up a new connection."""
    connection.adapters.register_loader("jsonb", JsonBytesLoader)


async def roll_back(connection: psycopg.AsyncConnection[DictRow]) -> None:
    """Roll back, unless the connection is lost and the transaction with it."""
    if not connection.broken:
        with contextlib.suppress(psycopg.Error):
            await connection.rollback()


async def check_connection(connection: psycopg.AsyncConnection[DictRow]) -> None:
    """Raise `OperationalError` for a connection that the server has closed since its last use.

    A server that closes a connection says so, which needs no round trip to notice.
    """
    if connection.closed or has_unread_data(connection):
        await connection.close()  # else the pool would take it for a good one
        raise psycopg.OperationalError("the server closed the connection")


def as_parameter(value: Value) -> str | bool | None:
    """A value as it is sent: numbers as text whose type PostgreSQL infers from where it stands.

    The driver would choose among three integer types by size, and each mixture would be a prepared statement of its
    own. Raises `DBAPIError` for a text that is not valid Unicode.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise wrap_driver_error(psycopg.DataError("a text is not valid Unicode")) from error
    return str(value)


def wrap_driver_error(error: psycopg.Error) -> DBAPIError:
    """The driver's error as SQLAlchemy's, so that one place turns both into answers."""
    return cast(DBAPIError, DBAPIError.instance(None, None, error, psycopg.Error))
