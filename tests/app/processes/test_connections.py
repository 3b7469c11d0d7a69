"""Connections: idle, slow and greedy clients are cut, and the others do not notice."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from app.http.minimum_rate import MinimumRate
from app.processes import connections
from app.processes.connections import HEAD_BYTES, BoundedConnection, Limits
from app.settings import get_settings

PATIENCE = 20.0
SHORT = Limits(first_head=0.2, head=0.2, leftover=0.2)
STRANGER = "127.0.0.2"


class Streams:
    """An application that answers with what it read; `/stream` streams until the client is gone, `/early` reads
    nothing."""

    def __init__(self) -> None:
        self.streaming = 0
        self.ended = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        if scope["path"] == "/stream":
            await self.stream(send)
        elif scope["path"] == "/early":
            await PlainTextResponse("early")(scope, receive, send)
        else:
            body = await Request(scope, receive).body()
            await PlainTextResponse(f"{scope['path']} {len(body)}")(scope, receive, send)

    async def stream(self, send: Send) -> None:
        """Send until writing ends."""
        self.streaming += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(2000):
                await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        finally:
            self.ended.set()


class Impatient(BoundedConnection):
    """A connection whose limits a test does not have to wait for."""

    limits: ClassVar[Limits] = SHORT

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self._reading_rate = MinimumRate(rate=100_000_000, grace=0.2)


@pytest.fixture
def application() -> Streams:
    return Streams()


@pytest.fixture
def port(application: Streams) -> Iterator[int]:
    """A server whose connections are `Impatient`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    config = uvicorn.Config(
        application,
        port=number,
        http=Impatient,
        ws="none",
        lifespan="off",
        log_config=None,  # as in tests/serving.py
        log_level="critical",
        timeout_keep_alive=60,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield number
    server.should_exit = True
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert not BoundedConnection.open_by_address


def until(what: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def connect(port: int, *, source: str = "127.0.0.1") -> socket.socket:
    """A connection to the server."""
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE, source_address=(source, 0))


def read_to_end(client: socket.socket) -> bytes:
    """All that the server sends until it closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            received += piece
    return received


class TestHeads:
    @pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"G", b"\r\n"])
    def test_a_head_that_does_not_come_ends_the_connection(self, port: int, begun: bytes) -> None:
        with connect(port) as client:
            client.sendall(begun)
            assert read_to_end(client) == b""

    @pytest.mark.parametrize("begun", [b"GET /late HTTP/1.1\r\n", b"\r\n"])
    def test_a_later_one_too(self, port: int, begun: bytes) -> None:
        with connect(port) as client:
            client.sendall(b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(0.5)  # longer than all limits: between requests a connection may be idle
            client.sendall(b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(0.1)
            client.sendall(begun)
            received = read_to_end(client)
        assert b"/first 0" in received
        assert b"/second 0" in received
        assert b"/late" not in received

    @pytest.mark.parametrize("whole", [True, False])
    @pytest.mark.parametrize(
        "head", [b"GET /" + b"a" * HEAD_BYTES, b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"a" * HEAD_BYTES]
    )
    def test_a_large_one_is_refused(self, port: int, head: bytes, whole: bool) -> None:
        with connect(port) as client:
            client.sendall(head[:100])
            time.sleep(0.05)
            client.sendall(head[100:] + (b" HTTP/1.1\r\n\r\n" if head.startswith(b"GET /a") else b"\r\n\r\n") * whole)
            assert read_to_end(client).startswith(b"HTTP/1.1 431 ")

    def test_one_just_below_is_answered(self, port: int) -> None:
        with connect(port) as client:
            cookie = b"a" * (HEAD_BYTES - 200)
            client.sendall(b"GET /fits HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: " + cookie + b"\r\n\r\n")
            assert b"/fits 0" in read_to_end(client)


class TestBodies:
    def test_what_is_left_of_a_body_has_little_time(self, port: int) -> None:
        with connect(port) as client:
            client.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
            assert read_to_end(client).endswith(b"early")

    def test_a_body_that_comes_after_the_answer_does_no_harm(self, port: int) -> None:
        with connect(port) as client:
            client.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
            assert client.recv(1000).endswith(b"early")
            client.sendall(b"bodyGET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b"/next 0" in read_to_end(client)


class TestReaders:
    def test_one_that_stops_reading_is_cut(self, port: int, application: Streams) -> None:
        with connect(port) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(100)
            assert application.ended.wait(PATIENCE)
        assert application.streaming == 1


class TestAddresses:
    def test_a_stranger_has_a_bounded_number(self, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(get_settings(), "connections_per_address", 3)
        request = b"GET /in HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                client = stack.enter_context(connect(port, source=STRANGER))
                client.sendall(b"GET /kept HTTP/1.1\r\nHost: x\r\n\r\n")
                assert client.recv(1000).startswith(b"HTTP/1.1 200")
            with connect(port, source=STRANGER) as fourth:
                assert read_to_end(fourth).startswith(b"HTTP/1.1 429 ")
            for source in ("127.0.0.1", "127.0.0.3"):
                with connect(port, source=source) as other:
                    other.sendall(request)
                    assert b"/in 0" in read_to_end(other)
        until(lambda: not BoundedConnection.open_by_address)
        with connect(port, source=STRANGER) as again:
            again.sendall(request)
            assert b"/in 0" in read_to_end(again)

    def test_trusted_proxies_have_no_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(get_settings(), "trusted_proxies", "10.0.0.0/8, ::1")
        connections.is_trusted.cache_clear()
        try:
            trusted = [
                host for host in ("10.9.8.7", "::1", "11.0.0.1", "127.0.0.1", "") if connections.is_trusted(host)
            ]
        finally:
            connections.is_trusted.cache_clear()
        assert trusted == ["10.9.8.7", "::1"]
