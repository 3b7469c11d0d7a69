"""Connections of the event loop's own, on which prepared statements are sent together and answered together.

What critics ask for all day needs no thread and no session. A `Line` sends some statements at once, as one transaction:
PostgreSQL runs one after the other, each seeing what was committed before it began, and commits at the end; where one
fails, the rest is not run and nothing stays. The answer is here only after the commit. Why this is so, and not with the
driver's own cursors, stands in docs/decisions/0007-claims-and-verdicts-on-the-event-loop.md.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result
from sqlalchemy import TextClause
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from app.db.engine import connect_args, libpq_url
from app.http.gate import take

NUMBERED = postgresql.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]
GOOD = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)
# What is asked here is found by its key: one plan is right for all values, and never reads a whole table. A plan made
# while tables are small would else do so until they are analysed.
PLANS = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
PATIENCE = 15.0
"""Seconds until a server that says nothing is given up; its own limit on a transaction is shorter."""

Value = str | int | float | bool | None
Values = Mapping[str, Value]
Row = dict[str, bytes | None]
"""A row as PostgreSQL writes it: each value as text, by the name of its column."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement as PostgreSQL prepares it; `values` names what it is run with, in the order of their numbers."""

    name: bytes
    sql: bytes
    values: tuple[str, ...]


Call = tuple[Statement, Values]


def prepared(name: str, clause: TextClause) -> Statement:
    """A statement, with numbers instead of the names of its values."""
    compiled = clause.compile(dialect=NUMBERED)
    return Statement(name.encode(), str(compiled).encode(), tuple(compiled.positiontup or ()))


class Line:
    """One connection in pipeline mode, with `statements` prepared. It is used by one task at a time."""

    def __init__(self, connection: psycopg.AsyncConnection) -> None:
        self._connection = connection
        self._raw = connection.pgconn
        self._loop = asyncio.get_running_loop()
        self._found: list[pq.abc.PGresult] = []
        self._waiting: asyncio.Future[list[pq.abc.PGresult]] | None = None
        self._columns: dict[bytes, list[str]] = {}
        self.is_open = True
        self._raw.nonblocking = 1
        self._raw.enter_pipeline_mode()
        self._socket = self._raw.socket
        self._loop.add_reader(self._socket, self._read)

    @classmethod
    async def connect(cls, url: str, statements: Sequence[Statement]) -> Line:
        """A line to the database at `url`. Raises `DBAPIError`."""
        arguments = connect_args(" ".join(f"-c {name}={value}" for name, value in PLANS.items()))
        try:
            line = cls(await psycopg.AsyncConnection.connect(libpq_url(url), autocommit=True, **arguments))
        except psycopg.Error as error:
            raise told(error) from error

        def prepare() -> None:
            for one in statements:
                line._raw.send_prepare(one.name, one.sql)

        await line._send(prepare)
        return line

    async def run(self, *calls: Call) -> list[Row | None]:
        """Run the calls as one transaction: the first row of each, None where it has none. Raises `DBAPIError`."""
        texts = [[as_text(values[name]) for name in statement.values] for statement, values in calls]

        def send() -> None:
            for (statement, _), of_statement in zip(calls, texts, strict=True):
                self._raw.send_query_prepared(statement.name, of_statement)

        results = await self._send(send)
        return [self._row(call[0], result) for call, result in zip(calls, results, strict=True)]

    async def _send(self, send: Callable[[], object]) -> list[pq.abc.PGresult]:
        """Send something, and wait for its results and for the commit."""
        waiting = self._waiting = self._loop.create_future()
        impatient = self._loop.call_later(PATIENCE, self._fail, psycopg.OperationalError("the server says nothing"))
        try:
            send()
            self._raw.pipeline_sync()
            self._write()
            results: list[pq.abc.PGresult] = await waiting
        except psycopg.Error as error:
            self.close()
            raise told(error) from error
        except BaseException:  # cancelled: what is still to come belongs to nobody
            self.close()
            raise
        finally:
            impatient.cancel()
            self._waiting = None
        for result in results:
            if result.status not in GOOD:
                reason = error_from_result(result)
                raise told(reason) from reason
        return results

    def _row(self, statement: Statement, result: pq.abc.PGresult) -> Row | None:
        if result.ntuples == 0:
            return None
        columns = self._columns.get(statement.name)
        if columns is None:
            columns = [(result.fname(place) or b"").decode() for place in range(result.nfields)]
            self._columns[statement.name] = columns
        return {name: result.get_value(0, place) for place, name in enumerate(columns)}

    def _write(self) -> None:
        """Send what is not sent yet, the rest of it as soon as the server takes more."""
        try:
            if self._raw.flush():
                self._loop.add_writer(self._socket, self._write)
            else:
                self._loop.remove_writer(self._socket)
        except psycopg.Error as error:
            self._fail(error)

    def _read(self) -> None:
        """Take in what the server said. On a line that nobody uses that is mostly that it is over."""
        raw, nothing = self._raw, 0
        try:
            raw.consume_input()
            while self._waiting is not None and nothing < 2 and not raw.is_busy():
                result = raw.get_result()
                if result is None:  # once between two results; twice where there are none
                    nothing += 1
                    continue
                nothing = 0
                if result.status == pq.ExecStatus.PIPELINE_SYNC:
                    found, self._found = self._found, []
                    if not self._waiting.done():
                        self._waiting.set_result(found)
                    return
                self._found.append(result)
        except psycopg.Error as error:
            self._fail(error)
            return
        if raw.status != pq.ConnStatus.OK:
            self._fail(psycopg.OperationalError("the server closed the connection"))

    def _fail(self, error: psycopg.Error) -> None:
        waiting = self._waiting
        self.close()
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)

    def close(self) -> None:
        """Let the connection go; harmless where it is gone."""
        if self.is_open:
            self.is_open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._raw.finish()


def as_text(value: Value) -> bytes | None:
    """A value as PostgreSQL reads it; of which type it is follows from where it stands.

    Raises `DataError` for a text that cannot be stored: libpq would end it at a NUL.
    """
    if value is None:
        return None
    try:
        text = str(value).encode()
    except UnicodeEncodeError as error:
        raise told(psycopg.DataError("a text that is no Unicode")) from error
    if b"\0" in text:
        raise told(psycopg.DataError("a text with a NUL"))
    return text


def told(error: psycopg.Error) -> DBAPIError:
    """An error of the driver's as everybody else here knows it."""
    return cast(DBAPIError, DBAPIError.instance(None, None, error, psycopg.Error))


class Lines:
    """At most `size` lines, made as they are needed. The one used last is taken first: it has its plans."""

    def __init__(self, url: str, statements: Sequence[Statement], *, size: int, wait: float) -> None:
        self._url = url
        self._statements = statements
        self._wait = wait
        self._idle: list[Line] = []
        self._free = asyncio.Semaphore(size)

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[Line]:
        """A line for the block. Raises `NoPlaceError` after `wait` seconds, `DBAPIError` where none can be made."""
        await take(self._free, self._wait)
        try:
            line = self._open_one() or await Line.connect(self._url, self._statements)
            try:
                yield line
            finally:
                if line.is_open:
                    self._idle.append(line)
        finally:
            self._free.release()

    def _open_one(self) -> Line | None:
        while self._idle:
            line = self._idle.pop()
            if line.is_open:
                return line
        return None

    def close(self) -> None:
        """Close those that nobody uses."""
        while self._idle:
            self._idle.pop().close()
