"""Batches of prepared statements on psycopg's asynchronous connection: one message to the server, one answer.

In psycopg's own pipeline each statement is sent by itself when it is executed. Here the statements of a batch leave
together, through the functions of libpq that psycopg wraps. Decision 0007 has the figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import adapt, errors, generators
from psycopg.abc import PQGen, Transformer
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import AsyncRowFactory, TupleRow, tuple_row

Row = Mapping[str, Any]
Prepared = tuple[str, Sequence[bytes | None]]
"""A statement with numbered parameters, and their values as text; None is null."""

BEGIN: Prepared = ("BEGIN", ())
COMMIT: Prepared = ("COMMIT", ())


class BatchConnection(psycopg.AsyncConnection[TupleRow]):
    """A connection that knows which statements it has prepared."""

    def __init__(self, pgconn: PGconn, row_factory: AsyncRowFactory[TupleRow] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self._batch_names: dict[str, bytes] = {}
        self._batch_count = 0
        self._batch_is_out = False
        self._batch_transformer: Transformer | None = None

    async def send(self, *statements: Prepared, sync: bool = False) -> list[Row | None]:
        """Send the statements together: the first row of each, None where there is none.

        The connection is in pipeline mode. What was sent since the last `sync` is one transaction, with or without
        BEGIN. Raises `psycopg.Error`: the server then skips all statements until a `sync`.
        """
        pgconn = self.pgconn
        new: dict[str, tuple[int, bytes]] = {}
        executed: list[int] = []
        count = 0
        self._batch_is_out = True
        for sql, values in statements:
            name = self._batch_names.get(sql)
            if name is None and sql in new:
                name = new[sql][1]
            elif name is None:
                name = f"batch_{self._batch_count}".encode()
                self._batch_count += 1
                pgconn.send_prepare(name, sql.encode())
                new[sql] = count, name
                count += 1
            pgconn.send_query_prepared(name, values)
            executed.append(count)
            count += 1
        if sync:
            pgconn.pipeline_sync()
        else:
            pgconn.send_flush_request()
        results = await self.wait(exchange(pgconn, count + sync))
        self._batch_is_out = False
        for sql, (place, name) in new.items():
            if results[place].status == ExecStatus.COMMAND_OK:
                self._batch_names[sql] = name
        for result in results:
            if result.status == ExecStatus.FATAL_ERROR:
                raise errors.error_from_result(result)
        return [self._first_row(results[place]) for place in executed]

    def _first_row(self, result: PGresult) -> Row | None:
        """The first row of a result, if it has one."""
        if not result.ntuples:
            return None
        if self._batch_transformer is None:
            self._batch_transformer = adapt.Transformer(self)
        self._batch_transformer.set_pgresult(result)
        values = self._batch_transformer.load_row(0, tuple)
        return {(result.fname(n) or b"").decode(): value for n, value in enumerate(values or ())}

    async def abandon(self) -> None:
        """Roll back and leave pipeline mode. A connection whose answer was not waited for is closed instead."""
        if self._batch_is_out or self.closed:
            await self.close()
            return
        await self.send(sync=True)
        self.pgconn.exit_pipeline_mode()
        if self.pgconn.transaction_status != TransactionStatus.IDLE:
            await self.rollback()


def exchange(pgconn: PGconn, count: int) -> PQGen[list[PGresult]]:
    """Send what is in the connection's buffer, and wait for `count` results."""
    yield from generators.send(pgconn)
    results = []
    for _ in range(count):
        results.extend((yield from generators.fetch_many(pgconn)))
    return results
