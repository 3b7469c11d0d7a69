"""A browser's connections and its cache: HTTP/1.1 over asyncio, kept alive, at most six at a time."""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import httptools

CONNECTIONS = 6
"""As many as Chromium opens to one host."""
MAX_AGE = re.compile(r"max-age=(\d+)")


class ConnectionClosed(Exception):
    """The server closed the connection; `unanswered`: before any of the answer came."""

    def __init__(self, *, unanswered: bool) -> None:
        super().__init__("the server closed the connection")
        self.unanswered = unanswered


@dataclass(slots=True)
class Answer:
    """What came back. `seconds` are from the writing of the request to the whole answer being read."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, idle: deque[Connection]) -> None:
        self.idle = idle
        self.transport: Any = None
        self.waiting: asyncio.Future[Answer] | None = None
        self.used = False
        self.is_open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def send(self, request: bytes) -> asyncio.Future[Answer]:
        """Send a request; its answer comes in the future."""
        self.waiting = asyncio.get_running_loop().create_future()
        self.parser = httptools.HttpResponseParser(self)
        self.headers: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.began = time.perf_counter()
        self.transport.write(request)
        return self.waiting

    def data_received(self, data: bytes) -> None:
        """Read an answer, or a part of one."""
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        self.parts.append(body)

    def on_message_complete(self) -> None:
        """Hand the answer over."""
        answer = Answer(
            self.parser.get_status_code(), self.headers, b"".join(self.parts), time.perf_counter() - self.began
        )
        waiting, self.waiting, self.used = self.waiting, None, True
        if self.parser.should_keep_alive():
            self.idle.append(self)
        else:
            self.is_open = False
            self.transport.close()
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - as the base has it
        """Say so to who waits."""
        self.is_open = False
        if self in self.idle:
            self.idle.remove(self)
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_exception(ConnectionClosed(unanswered=self.used and not self.parts and not self.headers))


@dataclass
class Wire:
    """The connections and the cache of one browser. `opened` counts connections, `kept` answers from the cache."""

    host: str
    port: int
    opened: int = 0
    kept: int = 0
    _idle: deque[Connection] = field(default_factory=deque)
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONNECTIONS))
    _fresh_until: dict[str, float] = field(default_factory=dict)

    async def fetch(self, request: bytes) -> Answer:
        """Send a request. Like Chromium, once more where the server had just closed a connection that was kept alive.

        Raises `ConnectionClosed` and `OSError`.
        """
        async with self._places:
            for _ in range(CONNECTIONS):
                try:
                    return await (await self._connection()).send(request)
                except ConnectionClosed as error:
                    if not error.unanswered:
                        raise
            return await (await self._open()).send(request)

    def holds(self, target: str) -> bool:
        """Whether the cache has what is asked for, and it is fresh."""
        found = self._fresh_until.get(target, 0.0) > time.monotonic()
        self.kept += found
        return found

    def keep(self, target: str, answer: Answer) -> None:
        """Keep an answer for as long as its headers allow."""
        control = answer.headers.get("cache-control", "")
        age = MAX_AGE.search(control)
        if answer.status == 200 and age and "no-store" not in control and "no-cache" not in control:
            self._fresh_until[target] = time.monotonic() + int(age.group(1))

    def close(self) -> None:
        """Close all connections."""
        while self._idle:
            self._idle.pop().transport.close()

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return await self._open()

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        self.opened += 1
        _, connection = await loop.create_connection(lambda: Connection(self._idle), self.host, self.port)
        return connection
