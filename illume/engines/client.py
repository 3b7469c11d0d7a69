"""JSON requests to one model server: at most so many at a time, and fewer while it says that it has too much to do."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from illume.engines.errors import (
    EngineAway,
    EngineError,
    EngineRefused,
    EngineSlow,
    KeyRefused,
    ModelMissing,
    PromptTooLong,
)
from illume.phrases import _

IN_FLIGHT = 16
"""Requests to one server at a time, unless told otherwise."""
TRIES = 5
PAUSE = 1.0
"""Seconds before a request is tried again; each time twice as many."""
LONGEST_WAIT = 60.0
"""Seconds that a server may ask to wait, at most; beyond it the request fails as if the server were away."""
BUSY = (408, 425, 429, 502, 503, 504)
DIED = re.compile(r"\bEngineCore\b|engine process|engine is dead", re.IGNORECASE)
"""What vLLM says by 500, before it stops, of the requests that were in flight when its engine died."""
TOO_LONG = re.compile(r"context (length|size|window)|too long", re.IGNORECASE)
"""How servers say that a prompt does not fit: vLLM and others in OpenAI's words, llama.cpp in its own."""
SHOWN = 300
"""Characters of a server's message that are shown."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered. `retry_after` are the seconds that it asks to wait."""

    status: int
    body: bytes
    retry_after: float | None = None


class Send(Protocol):
    """Sends a request to a path below the server's address, with its key. Raises EngineAway without an answer."""

    async def __call__(self, method: str, path: str, body: bytes | None, *, seconds: float) -> Reply: ...


class InFlight:
    """How many requests may be in flight: half as many after a refusal, and slowly more again."""

    def __init__(self, most: int) -> None:
        self._most, self._limit, self._used = most, float(most), 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place and hold it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._used < max(1, int(self._limit)))
            self._used += 1
        try:
            yield
        finally:
            self._used -= 1
            async with self._changed:
                self._changed.notify_all()

    def pushed_back(self) -> None:
        """The server has too much to do."""
        self._limit = max(1.0, self._limit / 2)

    def answered(self) -> None:
        """The server answered."""
        self._limit = min(float(self._most), self._limit + 1 / max(1.0, self._limit))


class Client:
    """Requests to one server, within one event loop."""

    def __init__(self, send: Send, *, in_flight: int = IN_FLIGHT) -> None:
        """At most `in_flight` requests at a time."""
        self._send = send
        self._places = InFlight(in_flight)

    async def get(self, path: str, *, seconds: float = 20.0) -> Any:
        """The JSON at a path. Raises EngineError."""
        return _read_json(await self._request("GET", path, None, seconds))

    async def post(self, path: str, data: Any, *, seconds: float) -> Any:
        """Send JSON, and return the answer's. Raises EngineError."""
        return _read_json(await self._request("POST", path, json.dumps(data).encode(), seconds))

    async def post_text(self, path: str, data: Any, *, seconds: float) -> str:
        """Send JSON, and return the answer as text. Raises EngineError."""
        reply = await self._request("POST", path, json.dumps(data).encode(), seconds)
        return reply.body.decode(errors="replace")

    async def _request(self, method: str, path: str, body: bytes | None, seconds: float) -> Reply:
        """Send a request, again where the server was away or busy: what is asked of it may be done twice."""
        for number in range(1, TRIES + 1):
            wait = PAUSE * 2 ** (number - 1) * random.uniform(0.75, 1)
            try:
                async with self._places.place():
                    reply = await self._send(method, path, body, seconds=seconds)
            except EngineSlow:
                raise
            except EngineAway:
                if number == TRIES:
                    raise
            else:
                if not _is_busy(reply):
                    self._places.answered()
                    _raise_for_status(reply, path)
                    return reply
                self._places.pushed_back()
                wait = wait if reply.retry_after is None else reply.retry_after
                if number == TRIES or wait > LONGEST_WAIT:
                    raise EngineAway(
                        _("the server answered %(status)s: %(message)s", status=reply.status, message=message_of(reply))
                    )
            await asyncio.sleep(wait)
        raise AssertionError


def _is_busy(reply: Reply) -> bool:
    return reply.status in BUSY or (reply.status == 500 and DIED.search(message_of(reply)) is not None)


def _raise_for_status(reply: Reply, path: str) -> None:
    if reply.status < 300:
        return
    message = message_of(reply)
    if reply.status in (401, 403):
        raise KeyRefused(
            _("the server refuses the key (%(status)s): %(message)s", status=reply.status, message=message),
            status=reply.status,
        )
    if reply.status == 404 and path.endswith("/chat/completions"):
        raise ModelMissing(
            _("the server does not know what was asked for (404): %(message)s", message=message), status=404
        )
    if reply.status >= 500:
        raise EngineRefused(
            _("the server failed (%(status)s): %(message)s", status=reply.status, message=message), status=reply.status
        )
    refused = PromptTooLong if TOO_LONG.search(message) else EngineRefused
    raise refused(
        _("the server refuses the request (%(status)s): %(message)s", status=reply.status, message=message),
        status=reply.status,
    )


def message_of(reply: Reply) -> str:
    """What a server says of an error, in one line: OpenAI's form, FastAPI's, or plain text."""
    text = reply.body.decode(errors="replace")
    try:
        data = json.loads(text)
    except ValueError:
        data = text
    if isinstance(data, dict):
        inner = data.get("error", data)
        found = inner.get("message", inner.get("detail", inner)) if isinstance(inner, dict) else inner
        data = found if isinstance(found, str) else json.dumps(found)
    line = " ".join(re.sub(r"<[^>]{1,200}>", " ", str(data)).split())
    return line[:SHOWN] or "it says nothing more"


def _read_json(reply: Reply) -> Any:
    try:
        return json.loads(reply.body)
    except ValueError as error:
        raise EngineError(_("the server's answer is no JSON: %(message)s", message=message_of(reply))) from error
