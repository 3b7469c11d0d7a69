"""How bodies arrive: at a minimum rate, a few at a time from one address."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope

from app.http.minimum_rate import MinimumRate
from illume.phrases import _

TOO_SLOW = _("The request's body arrived too slowly: try again on a better connection.")
CLIENT_LEFT = _("The client went away before its request was complete.")
TOO_MANY_AT_ONCE = _("Too many uploads from this address are still running: wait until some of them are complete.")
BODIES_PER_ADDRESS = 64
"""How many small bodies of one address may be arriving at once. A critic's body comes with its head."""
UPLOADS_PER_ADDRESS = 8


class ClientLeft(HTTPException):
    """The client went away: nobody waits for the answer."""

    def __init__(self) -> None:
        super().__init__(400, CLIENT_LEFT)


class Arrivals:
    """Counts the bodies that are arriving, by the address of their sender."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    @contextlib.contextmanager
    def one(self, scope: Scope, *, limit: int) -> Iterator[None]:
        """Count a body while the block runs. Raises `HTTPException` (429) where `limit` are arriving already."""
        address = address_of(scope)
        if self._counts[address] >= limit:
            raise HTTPException(429, TOO_MANY_AT_ONCE, headers={"Retry-After": "2"})
        self._counts[address] += 1
        try:
            yield
        finally:
            self._counts[address] -= 1
            if not self._counts[address]:
                del self._counts[address]


def address_of(scope: Scope) -> str:
    """The network address of the sender, as a trusted proxy names it."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def timed(receive: Receive, rate: MinimumRate) -> Receive:
    """`receive` for a body. Raises `ClientLeft`, and `HTTPException` (408) where it arrives too slowly."""

    async def receiving() -> Message:
        began = time.monotonic()
        try:
            async with asyncio.timeout(rate.allowance()):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, TOO_SLOW, headers={"Connection": "close"}) from error
        if message["type"] != "http.request":
            raise ClientLeft
        rate.moved(len(message.get("body", b"")), time.monotonic() - began)
        return message

    return receiving
