"""Claims and verdicts as critics mostly make them, answered by the event loop itself, without a thread or a session.

Who bears a token is remembered, and asked again by each transaction: where anything about it changed, nothing is done
and the request goes the long way, which says what is wrong. So does whatever else is not usual: the long way decides.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from psycopg import DataError, Error
from sqlalchemy.exc import DBAPIError
from starlette.responses import Response
from starlette.types import Scope

from app.errors import Invalid, NotFound
from app.fast_path import pipelines
from app.fast_path.pg_pipeline import Call, Line, Lines, Row, Statement, Values, prepared
from app.fast_path.pipelines import Manner
from app.http import rate_limits
from app.http.responses import Json
from app.models import VerdictKind
from app.services.accounts.passwords import hash_secret
from app.services.accounts.users import token_parameters
from app.services.judging import assignments, claim_sql, open_claims
from app.services.judging import give as judging_give
from app.services.judging.give import VerdictIn
from app.services.judging.give_sql import give_values
from app.services.kernel.actors import Actor, parse_id

REMEMBERED = 10_000
"""How many tokens, and critics' manners, are remembered before all are forgotten."""
OF_THE_REQUEST = ("22", "23", "40")
"""Classes of errors for which the long way finds the words: values, keys used before, and what met something else."""

LOCK = prepared("lock", open_claims.LOCK_CRITIC)
CLAIM = prepared("claim", claim_sql.CLAIM_BY_TOKEN)
MANNER = prepared("manner", pipelines.MANNER)
GIVE_ALONE = prepared("give_alone", pipelines.GIVE_ALONE)
GIVE_ALONE_UNDER_KEY = prepared("give_alone_under_key", pipelines.GIVE_ALONE_UNDER_KEY)
GIVE_SHARED = prepared("give_shared", pipelines.GIVE_SHARED)
GIVE_SHARED_UNDER_KEY = prepared("give_shared_under_key", pipelines.GIVE_SHARED_UNDER_KEY)
ADAPT = prepared("adapt", pipelines.ADAPT)
CLOSE = prepared("close", pipelines.CLOSE)
COUNT_VOTES = prepared("count_votes", pipelines.COUNT_VOTES)
STATEMENTS: tuple[Statement, ...] = (
    LOCK,
    CLAIM,
    MANNER,
    GIVE_ALONE,
    GIVE_ALONE_UNDER_KEY,
    GIVE_SHARED,
    GIVE_SHARED_UNDER_KEY,
    ADAPT,
    CLOSE,
    COUNT_VOTES,
)

StartRound = Callable[[int], Awaitable[None]]
"""Starts a project's round if one is due, by the project's id."""


class Quick:
    """The short way. Each of its answers may be None: then nothing was done, and the request is for the long way."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._bearers: dict[str, Actor] = {}
        self._manners: dict[int, Manner] = {}

    def remember(self, token: str, actor: Actor) -> None:
        """Note who bears a token that may write. One with a limit of its own is always asked for."""
        if len(self._bearers) >= REMEMBERED:
            self._bearers.clear()
        if actor.requests_per_minute is None:
            self._bearers[hash_secret(token)] = actor
        else:
            self._bearers.pop(hash_secret(token), None)

    async def claim(self, scope: Scope, token: str, slug: str) -> Response | None:
        """Claim the next set. Raises `TooMany`, `NoPlaceError`, `DBAPIError`."""
        actor, hashed = self._bearer(scope, token)
        if actor is None:
            return None
        values = {**claim_sql.claim_values(actor, slug), **token_parameters(actor, hashed)}
        for _ in range(assignments.RETRIES):
            async with self._lines.one() as line:
                rows = await run(line, (LOCK, values), (CLAIM, values))
            row = None if rows is None else rows[1]
            if row is None or row["allowed"] != b"t":
                return None
            if row["id"] is not None:
                return Json(row["body"], status_code=200 if row["resumed"] == b"t" else 201)
            if row["found"] != b"t":
                break
            await asyncio.sleep(random.uniform(0, assignments.PAUSE))  # somebody else is taking the last sets
        return Response(status_code=204)

    async def give(
        self, scope: Scope, token: str, assignment: str, verdict: VerdictIn, key: str | None, start_round: StartRound
    ) -> Response | None:
        """Give a verdict, and start a round that is due by it. Raises `TooMany`, `NoPlaceError`, `DBAPIError`."""
        actor, hashed = self._bearer(scope, token)
        if actor is None or verdict.kind is VerdictKind.flagged or not (key is None or judging_give.is_key(key)):
            return None
        try:
            assignment_id = parse_id(assignment)
            values = {**give_values(actor, assignment_id, verdict), **token_parameters(actor, hashed)}
        except (Invalid, NotFound):
            return None
        if key is not None:
            values |= {"key": key, "fingerprint": judging_give.fingerprint(assignment_id, verdict)}
        async with self._lines.one() as line:
            rows = await self._given(line, actor.user_id, values)
        given = None if rows is None else rows[0]
        if rows is None or given is None:
            return None
        if given["is_due"] == b"t" or any(row is not None and row.get("became_fresh") == b"t" for row in rows):
            await start_round(int(given["project_id"] or 0))
        return Json(given["body"], status_code=201)

    def _bearer(self, scope: Scope, token: str) -> tuple[Actor | None, str]:
        """Who bore the token the last time, and its hash. Counts its use."""
        hashed = hash_secret(token)
        actor = self._bearers.get(hashed)
        if actor is not None:
            rate_limits.count_use(scope, actor)
        return actor, hashed

    async def _given(self, line: Line, critic: int, values: Values) -> list[Row | None] | None:
        """What came of a verdict; None where it was not given. A set is taken for one like the critic's last."""
        manner = self._manners.get(critic, Manner())
        rows = await run(line, *calls_of(manner, values))
        if rows is None or rows[0] is not None:
            return rows
        found = await run(line, (MANNER, values))
        other = None if found is None or found[0] is None else manner_of(found[0])
        if other is None or other == manner:
            return None
        if len(self._manners) >= REMEMBERED:
            self._manners.clear()
        self._manners[critic] = other
        return await run(line, *calls_of(other, values))

    def close(self) -> None:
        """Close its connections."""
        self._lines.close()


async def run(line: Line, *calls: Call) -> list[Row | None] | None:
    """Run the calls as one transaction; None where something in the request hinders it. Raises `DBAPIError`."""
    try:
        return await line.run(*calls)
    except DBAPIError as error:
        reason = error.orig
        if isinstance(reason, DataError) or (
            isinstance(reason, Error) and (reason.sqlstate or "")[:2] in OF_THE_REQUEST
        ):
            return None
        raise


def calls_of(manner: Manner, values: Values) -> list[Call]:
    """The statements of a verdict."""
    under_key = "key" in values
    if manner.is_alone:
        return [(GIVE_ALONE_UNDER_KEY if under_key else GIVE_ALONE, values)]
    values = {**values, "adaptive": manner.adaptive, "counts_votes": manner.counts_votes}
    after = [ADAPT] if manner.adaptive else []
    after += [CLOSE, COUNT_VOTES] if manner.counts_votes else [CLOSE]
    return [(GIVE_SHARED_UNDER_KEY if under_key else GIVE_SHARED, values), *((one, values) for one in after)]


def manner_of(row: Row) -> Manner:
    """How a set's verdicts are dealt with."""
    is_alone, adaptive, counts_votes = (row[name] == b"t" for name in ("is_alone", "adaptive", "counts_votes"))
    return Manner() if is_alone else Manner(is_alone=False, adaptive=adaptive, counts_votes=counts_votes)
