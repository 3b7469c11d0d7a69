"""Connections with limits: of their number, of time for a head, and of the size of a head; stalled readers are cut."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.http.minimum_rate import MinimumRate
from app.http.responses import Problem
from app.settings import get_settings, names_in

HEAD_BYTES = 32 * 1024
FIRST_HEAD_SECONDS = 30.0
HEAD_SECONDS = 20.0
LEFTOVER_SECONDS = 30.0

HEAD_TOO_LARGE = f"The request's address and headers are over {HEAD_BYTES >> 10} kB."
TOO_MANY_CONNECTIONS = "Too many connections of this address: close some of them."


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a connection.

    A new connection has `first_head` seconds for its first request, and later ones `head` seconds from their first
    byte. Between requests `idle_seconds` of the settings holds. What is left of a body after the answer, or of an
    answer that nobody waits for, has `leftover` seconds.
    """

    head_bytes: int = HEAD_BYTES
    first_head: float = FIRST_HEAD_SECONDS
    head: float = HEAD_SECONDS
    leftover: float = LEFTOVER_SECONDS


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's connection, closed where a client makes it wait or opens too many of them.

    Reading a body is timed where it is read (`timed` in `app/http/bodies.py`), reading an answer here: while the
    transport is paused, what it holds must be read at the least rate.
    """

    limits: ClassVar[Limits] = Limits()
    open_by_address: ClassVar[Counter[str]] = Counter()
    flow: FlowControl

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._address: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._reading_head = False
        self._reading_body = False
        self._head_bytes = 0
        self._reading_rate = MinimumRate()
        self._paused_at = 0.0
        self._paused_with = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless the address has too many connections already."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._set_timer(self.limits.first_head)
        host = self.client[0] if self.client else ""
        if host and not is_trusted(host):
            self._address = host
            self.open_by_address[host] += 1
            if self.open_by_address[host] > get_settings().connections_per_address:
                self._refuse(b"429 Too Many Requests", TOO_MANY_CONNECTIONS)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._set_timer(None)
        self._watch_stall(None)
        if self._address is not None:
            self.open_by_address[self._address] -= 1
            if not self.open_by_address[self._address]:
                del self.open_by_address[self._address]
            self._address = None
        super().connection_lost(exc)

    # Reading

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request. A head that has begun must be complete in time, and must not be too large."""
        if self.transport.is_closing():
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._reading_head and self._head_bytes > self.limits.head_bytes:
            self._refuse(b"431 Request Header Fields Too Large", HEAD_TOO_LARGE)
        elif self._timer is None and not self._reading_body and self._waits_for_head():
            self._set_timer(self.limits.head)

    def _waits_for_head(self) -> bool:
        """Whether bytes of a head have come, or bytes between requests, which ended uvicorn's own timer."""
        idle = self.cycle is None or self.cycle.response_complete
        return self._reading_head or (idle and self.timeout_keep_alive_task is None)

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._reading_head = True

    def on_headers_complete(self) -> None:
        """Answer the request; one whose head is too large is refused."""
        self._set_timer(None)
        self._reading_head = False
        self._reading_body = True
        self._head_bytes = 0
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size <= self.limits.head_bytes:
            super().on_headers_complete()
            return
        app = self.app
        self.app = refuse_head
        try:
            super().on_headers_complete()
        finally:
            self.app = app

    def on_message_complete(self) -> None:
        """End a body."""
        self._reading_body = False
        self._head_bytes = 0
        if self.cycle.response_complete:
            self._set_timer(None)
        super().on_message_complete()

    # Writing

    def pause_writing(self) -> None:
        """Note that the client reads more slowly than we write; it has to go on at the least rate."""
        super().pause_writing()
        self._paused_at = self.loop.time()
        self._paused_with = self.transport.get_write_buffer_size()
        self._watch_stall(self._reading_rate.allowance())

    def resume_writing(self) -> None:
        """Note that the client has read most of what there was."""
        self._watch_stall(None)
        self._note_reading()
        super().resume_writing()

    def _note_reading(self) -> None:
        """Count what the client has read since it was looked at last."""
        now, left = self.loop.time(), self.transport.get_write_buffer_size()
        self._reading_rate.moved(max(0, self._paused_with - left), now - self._paused_at)
        self._paused_at, self._paused_with = now, left

    def _look_again(self) -> None:
        """Cut a client that has read too little since. However much waits for it, no pause may be longer than that."""
        self._note_reading()
        seconds = self._reading_rate.allowance()
        if seconds > 0:
            self._watch_stall(max(1.0, seconds))
        else:
            self.transport.abort()

    def on_response_complete(self) -> None:
        """Go on to the next request; what is left of this one has little time."""
        super().on_response_complete()
        if self._reading_body or (self.transport.is_closing() and self.transport.get_write_buffer_size()):
            self._set_timer(self.limits.leftover)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one that has not even read its last answer is cut."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    # Ending

    def _refuse(self, status: bytes, text: str) -> None:
        """Answer without a request, unless one is being answered, and close."""
        if self.cycle is None or self.cycle.response_complete:
            head = b"HTTP/1.1 %s\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n"
            self.transport.write(head % (status, len(text)) + text.encode("ascii"))
        self.transport.close()

    def _set_timer(self, seconds: float | None) -> None:
        """Cut the connection in `seconds`; with None, no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    def _watch_stall(self, seconds: float | None) -> None:
        """Look in `seconds` how much the client has read; with None, no more."""
        if self._stall is not None:
            self._stall.cancel()
        self._stall = None if seconds is None else self.loop.call_later(seconds, self._look_again)


async def refuse_head(scope: Scope, receive: Receive, send: Send) -> None:
    """The answer to a request whose head is too large."""
    answer = Problem(431, "Request Header Fields Too Large", HEAD_TOO_LARGE, headers={"Connection": "close"})
    await answer(scope, receive, send)


@functools.lru_cache(maxsize=1024)
def is_trusted(host: str) -> bool:
    """Whether `host` is a trusted proxy, behind which many people are."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in ipaddress.ip_network(name) for name in names_in(get_settings().trusted_proxies))
