"""A proxy that writes down every HTTP request of a browser as it goes over the wire, and what was answered.

Requests are read from the bytes that the browser sends, so that what it takes from its cache is not there, and what it
asks again (`If-None-Match`) is. Each connection of the browser gets one of its own to the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import httptools


@dataclass
class Exchange:
    """A request and its answer. Times are `time.monotonic()`; headers are in the order that they were sent in."""

    connection: int
    began: float
    method: str = ""
    target: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    status: int = 0
    answer_headers: dict[str, str] = field(default_factory=dict)
    answer: bytes = b""
    ended: float = 0.0


class RequestReader:
    """Reads the requests of one connection."""

    def __init__(self, proxy: Proxy, connection: int) -> None:
        self.proxy, self.connection = proxy, connection
        self.parser = httptools.HttpRequestParser(self)
        self.open = deque[Exchange]()
        self.current = Exchange(connection, 0.0)

    def feed(self, data: bytes) -> None:
        """Take in what the browser sent."""
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        self.current = Exchange(self.connection, time.monotonic())

    def on_url(self, url: bytes) -> None:
        """Its target."""
        self.current.target += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of its headers."""
        self.current.headers.append((name.decode(), value.decode()))

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self.current.body += body

    def on_message_complete(self) -> None:
        """It is whole."""
        self.current.method = self.parser.get_method().decode()
        self.open.append(self.current)
        self.proxy.exchanges.append(self.current)


class AnswerReader:
    """Reads the answers to the requests of one connection."""

    def __init__(self, requests: RequestReader) -> None:
        self.requests = requests
        self.parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Take in what the server sent."""
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of the answer's headers."""
        self.requests.open[0].answer_headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        """A part of the answer's body."""
        self.requests.open[0].answer += body

    def on_message_complete(self) -> None:
        """The answer is whole."""
        exchange = self.requests.open.popleft()
        exchange.status = self.parser.get_status_code()
        exchange.ended = time.monotonic()


class Proxy:
    """The proxy, in a thread of its own; `exchanges` are in the order in which requests were whole."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.port = 0
        self.exchanges: list[Exchange] = []
        self._connections = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._ended: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(10):
            raise SystemExit("the proxy did not start")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._ended is not None:
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)

    async def _run(self) -> None:
        self._ended = asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._ended.wait()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        requests = RequestReader(self, self._connections)
        answers = AnswerReader(requests)
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.server_port)
        await asyncio.gather(pass_on(reader, server_writer, requests), pass_on(server_reader, writer, answers))


async def pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: RequestReader | AnswerReader
) -> None:
    """Pass bytes on until their sender closes, and let `log` read them."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            log.feed(data)
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(ConnectionError):
        writer.close()
