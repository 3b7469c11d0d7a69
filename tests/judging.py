"""Claims and verdicts in tests: on the real judging pool, or in a session whose work is rolled back.

The second is for tests that only need verdicts to be there: the same code, on another kind of transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import orjson
from sqlalchemy.orm import Session

from app.db.batches import Row
from app.db.judging_pool import Call, JudgingPool, Transaction
from app.models import Project
from app.services.judging import claim as claims
from app.services.judging import give as giving
from app.services.judging.claim import Claim
from app.services.judging.give import VerdictOut
from app.services.judging.rows import start_round_if_due
from app.services.kernel.actors import Actor
from app.services.kernel.verdict_schema import VerdictIn

Result = TypeVar("Result")
RUNNER = "judging runner"


class SessionTransaction:
    """Runs judging statements in a session, so that a test can roll them back."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def run(self, *calls: Call) -> list[Row | None]:
        """The first row of each statement, with JSON as bytes."""
        self._session.flush()
        rows: list[Row | None] = []
        for one, values in calls:
            row = self._session.execute(one.clause, {name: values[name] for name in one.names}).mappings().first()
            rows.append(None if row is None else {name: as_stored(value) for name, value in row.items()})
        return rows


class SessionPool:
    """Stands where the application has its judging pool; all transactions are the test's own."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """The test's transaction; an error rolls back to where the block began."""
        with self._session.begin_nested():
            yield SessionTransaction(self._session)

    reading = transaction


def as_stored(value: Any) -> Any:
    """JSON as the bytes that the pool gives out."""
    return orjson.dumps(value) if isinstance(value, dict) else value


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run it to its end. In a browser test this thread has an event loop already, and it must not wait for others."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    try:
        work.send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    work.close()
    raise AssertionError("this waits for others: run it on the real pool")


@contextmanager
def on_the_pool(session: Session, url: str) -> Iterator[None]:
    """Let claims and verdicts of `session` run on a real judging pool, which sees what the session has committed."""
    with asyncio.Runner() as runner:
        pool = JudgingPool(url, size=1, wait=10)
        runner.run(pool.open())
        session.info[RUNNER] = (runner, pool)
        try:
            yield
        finally:
            runner.run(pool.close())
            del session.info[RUNNER]


def in_transaction(session: Session, work: Callable[[Transaction], Coroutine[Any, Any, Result]]) -> Result:
    """Run judging work: on the session's real pool if it has one, else in the session itself."""
    if RUNNER not in session.info:
        return run(work(SessionTransaction(session)))
    runner, pool = session.info[RUNNER]

    async def in_pool() -> Result:
        async with pool.transaction() as transaction:
            return await work(transaction)

    session.commit()
    result: Result = runner.run(in_pool())
    return result


def claim(session: Session, actor: Actor, project: Project, *, max_open: int | None = None) -> Claim | None:
    """Claim the next candidate set."""
    return in_transaction(
        session, lambda transaction: claims.claim(transaction, actor, project.slug, max_open=max_open)
    )


def give(
    session: Session, actor: Actor, assignment_id: int, verdict: VerdictIn, *, idempotency_key: str | None = None
) -> VerdictOut:
    """Give a verdict, and start the round that is due by it."""
    out = in_transaction(
        session,
        lambda transaction: giving.give(transaction, actor, assignment_id, verdict, idempotency_key=idempotency_key),
    )
    if out.due_project is not None:
        start_round_if_due(session, out.due_project)
    return out
