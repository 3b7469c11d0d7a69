"""The gate: places, waiting, refusing, and giving places back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send

from app.http.gate import LARGEST_BODY, SMALL_BODY, Gate, Kind, Places, kind_of
from app.services.kernel import traffic


def refuse(_: Request, status: int, detail: str) -> Response:
    return PlainTextResponse(detail, status_code=status)


def places(**sizes: int) -> dict[Kind, Places]:
    kinds: tuple[Kind, ...] = ("requests", "images", "uploads", "streams")
    return {kind: Places(sizes.get(kind, 1), 0.05, status=429 if kind == "streams" else 503) for kind in kinds}


class Work:
    """An application whose requests end when they are told to, and that knows how many run at once."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.begin = asyncio.Event()
        self.end = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.begin.wait()
            self.running -= 1
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await self.end.wait()
            await send({"type": "http.response.body", "body": b"done"})
        finally:
            self.most = max(self.most, self.running)


def scope(path: str = "/api/v1/projects", method: str = "GET", **headers: str) -> Scope:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "path": path, "method": method, "headers": raw, "query_string": b""}


async def ask(gate: Gate, what: Scope, receive: Receive | None = None) -> int:
    """The status that the gate lets through or gives itself."""
    sent: list[Message] = []

    async def empty() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def collect(message: Message) -> None:
        sent.append(message)

    await gate(what, receive or empty, collect)
    return int(sent[0]["status"]) if sent else 0


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run the test in a thread of its own: where browser tests ran before, this one's loop already runs."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(lambda: asyncio.run(test())).result()


class TestKindOf:
    @pytest.mark.parametrize(
        ("method", "path", "kind"),
        [
            ("GET", "/static/app.css", None),
            ("GET", "/healthz", None),
            ("GET", "/api/v1/images/abc", "images"),
            ("POST", "/api/v1/images", "requests"),
            ("GET", "/api/v1/projects/x/dataset", "streams"),
            ("GET", "/api/v1/projects/x/datasets", "requests"),
            ("GET", "/", "requests"),
        ],
    )
    def test_by_path(self, method: str, path: str, kind: str | None) -> None:
        assert kind_of(scope(path, method)) == kind

    def test_uploads_by_size(self) -> None:
        assert kind_of(scope(method="POST", content_length=str(SMALL_BODY))) == "requests"
        assert kind_of(scope(method="POST", content_length=str(SMALL_BODY + 1))) == "uploads"
        assert kind_of(scope(method="POST", transfer_encoding="chunked")) == "uploads"


class TestGate:
    def test_no_more_than_its_places(self) -> None:
        async def test() -> None:
            work = Work()
            gate = Gate(work, places=places(requests=3), refuse=refuse)
            asking = [asyncio.create_task(ask(gate, scope())) for _ in range(3)]
            await asyncio.sleep(0)
            late = await ask(gate, scope())
            work.begin.set()
            work.end.set()
            assert late == 503
            assert await asyncio.gather(*asking) == [200, 200, 200]
            assert work.most == 3
            assert await ask(gate, scope()) == 200

        run(test)

    def test_others_are_not_held_up(self) -> None:
        async def test() -> None:
            work = Work()
            gate = Gate(work, places=places(), refuse=refuse)
            asking = [
                asyncio.create_task(ask(gate, scope(path)))
                for path in ("/", "/api/v1/images/abc", "/api/v1/projects/x/dataset", "/healthz", "/healthz")
            ]
            await asyncio.sleep(0.01)
            assert work.running == 5
            assert (traffic.requests.inside, traffic.streams.inside) == (2, 1)
            assert await ask(gate, scope("/api/v1/projects/y/dataset")) == 429
            work.begin.set()
            work.end.set()
            assert set(await asyncio.gather(*asking)) == {200}
            assert (traffic.requests.inside, traffic.streams.inside) == (0, 0)

        run(test)

    def test_a_slow_reader_holds_no_place(self) -> None:
        async def test() -> None:
            work = Work()
            work.begin.set()
            gate = Gate(work, places=places(), refuse=refuse)
            slow = asyncio.create_task(ask(gate, scope()))
            await asyncio.sleep(0)
            other = asyncio.create_task(ask(gate, scope()))
            await asyncio.sleep(0.01)
            work.end.set()
            assert await asyncio.gather(slow, other) == [200, 200]

        run(test)

    def test_a_slow_sender_holds_no_place(self) -> None:
        async def test() -> None:
            work = Work()
            work.begin.set()
            work.end.set()
            gate = Gate(work, places=places(), refuse=refuse)
            rest = asyncio.Event()

            async def dribble() -> Message:
                if not rest.is_set():
                    await rest.wait()
                return {"type": "http.request", "body": b"{}", "more_body": False}

            slow = asyncio.create_task(ask(gate, scope(method="POST", content_length="2"), dribble))
            await asyncio.sleep(0.01)
            assert work.most == 0
            assert await ask(gate, scope()) == 200
            rest.set()
            assert await slow == 200

        run(test)

    def test_who_leaves_while_sending_is_forgotten(self) -> None:
        async def test() -> None:
            gate = Gate(Work(), places=places(), refuse=refuse)

            async def gone() -> Message:
                return {"type": "http.disconnect"}

            assert await ask(gate, scope(method="POST", content_length="2"), gone) == 0

        run(test)

    def test_a_body_that_is_too_long_is_not_read(self) -> None:
        async def test() -> None:
            gate = Gate(Work(), places=places(), refuse=refuse)
            assert await ask(gate, scope(method="POST", content_length=str(LARGEST_BODY + 1))) == 413

        run(test)

    def test_an_error_gives_the_place_back(self) -> None:
        async def test() -> None:
            async def fail(_scope: Scope, _receive: Receive, _send: Send) -> None:
                raise RuntimeError("inside")

            gate = Gate(fail, places=places(), refuse=refuse)
            for _ in range(3):
                with pytest.raises(RuntimeError, match="inside"):
                    await ask(gate, scope())

        run(test)

    def test_the_small_body_is_passed_on_whole(self) -> None:
        async def test() -> None:
            async def echo(scope: Scope, receive: Receive, send: Send) -> None:
                await PlainTextResponse(await Request(scope, receive).body())(scope, receive, send)

            gate = Gate(echo, places=places(), refuse=refuse)
            parts = [b"one ", b"two"]
            sent: list[Message] = []

            async def receive() -> Message:
                return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

            async def collect(message: Message) -> None:
                sent.append(message)

            await gate(scope(method="POST", content_length="7"), receive, collect)
            assert b"".join(message.get("body", b"") for message in sent) == b"one two"

        run(test)
