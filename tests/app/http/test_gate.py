"""The gate: places, waiting, refusing, and giving places back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send

from app.errors import Unauthenticated
from app.http import bodies
from app.http.gate import LARGEST_BODY, LARGEST_IMPORT, SMALL_BODY, Gate, Kind, Places, kind_of
from app.http.minimum_rate import MinimumRate
from app.services.kernel import traffic


def refuse(_: Request, status: int, detail: str) -> Response:
    return PlainTextResponse(detail, status_code=status)


async def identify(request: Request) -> object:
    """Knows who sends a cookie."""
    if "cookie" not in request.headers:
        raise Unauthenticated("Sign in.")
    return request.headers["cookie"]


def places(**sizes: int) -> dict[Kind, Places]:
    kinds: tuple[Kind, ...] = ("requests", "judging", "images", "uploads", "streams", "callers", "scrapes")
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
            ("GET", "/metrics", "scrapes"),
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
        path = "/api/v1/images"
        assert kind_of(scope(path, "POST", content_length=str(SMALL_BODY))) == "requests"
        assert kind_of(scope(path, "POST", content_length=str(SMALL_BODY + 1))) == "uploads"
        assert kind_of(scope(path, "POST", transfer_encoding="chunked")) == "uploads"
        assert kind_of(scope("/sign-in", "POST", transfer_encoding="chunked")) == "requests"
        assert kind_of(scope("/admin/projects/x/prompts", transfer_encoding="chunked")) == "requests"


class TestGate:
    def test_no_more_than_its_places(self) -> None:
        async def test() -> None:
            work = Work()
            gate = Gate(work, places=places(requests=3), refuse=refuse, identify=identify)
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
            gate = Gate(work, places=places(), refuse=refuse, identify=identify)
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
            gate = Gate(work, places=places(), refuse=refuse, identify=identify)
            slow = asyncio.create_task(ask(gate, scope()))
            await asyncio.sleep(0)
            other = asyncio.create_task(ask(gate, scope()))
            await asyncio.sleep(0.01)
            work.end.set()
            assert list(await asyncio.gather(slow, other)) == [200, 200]

        run(test)

    def test_a_slow_sender_holds_no_place(self) -> None:
        async def test() -> None:
            work = Work()
            work.begin.set()
            work.end.set()
            gate = Gate(work, places=places(), refuse=refuse, identify=identify)
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
            gate = Gate(Work(), places=places(), refuse=refuse, identify=identify)

            async def gone() -> Message:
                return {"type": "http.disconnect"}

            assert await ask(gate, scope(method="POST", content_length="2"), gone) == 0

        run(test)

    def test_a_body_that_is_too_long_is_not_read(self) -> None:
        async def test() -> None:
            gate = Gate(Work(), places=places(), refuse=refuse, identify=identify)
            for path, largest in (
                ("/sign-in", SMALL_BODY),
                ("/api/v1/images", LARGEST_BODY),
                ("/api/v1/projects/x/imports", LARGEST_IMPORT),
            ):
                assert await ask(gate, scope(path, "POST", content_length=str(largest + 1))) == 413

        run(test)

    def test_an_error_gives_the_place_back(self) -> None:
        async def test() -> None:
            async def fail(_scope: Scope, _receive: Receive, _send: Send) -> None:
                raise RuntimeError("inside")

            gate = Gate(fail, places=places(), refuse=refuse, identify=identify)
            for _ in range(3):
                with pytest.raises(RuntimeError, match="inside"):
                    await ask(gate, scope())

        run(test)

    def test_the_small_body_is_passed_on_whole(self) -> None:
        async def test() -> None:
            async def echo(scope: Scope, receive: Receive, send: Send) -> None:
                await PlainTextResponse(await Request(scope, receive).body())(scope, receive, send)

            gate = Gate(echo, places=places(), refuse=refuse, identify=identify)
            parts = [b"one ", b"two"]
            sent: list[Message] = []

            async def receive() -> Message:
                return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

            async def collect(message: Message) -> None:
                sent.append(message)

            await gate(scope(method="POST", content_length="7"), receive, collect)
            assert b"".join(message.get("body", b"") for message in sent) == b"one two"

        run(test)


async def receive_nothing() -> Message:
    """The body of a client that sends nothing more."""
    await asyncio.Event().wait()
    raise AssertionError("nothing was to come")


class Reading:
    """An application that reads its body, and says when it has begun to and when it is through."""

    def __init__(self) -> None:
        self.begun = 0
        self.done = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun += 1
        body = await Request(scope, receive).body()
        self.done += 1
        await PlainTextResponse(str(len(body)))(scope, receive, send)


def upload(**headers: str) -> Scope:
    return scope("/api/v1/images", "POST", content_length=str(SMALL_BODY + 1), **headers)


class TestUploads:
    def test_nothing_is_read_from_a_stranger(self) -> None:
        async def test() -> None:
            work = Reading()
            gate = Gate(work, places=places(), refuse=refuse, identify=identify)
            assert await ask(gate, upload(), receive_nothing) == 401
            chunked = scope("/admin/projects/x/imports", "POST", transfer_encoding="chunked")
            assert await ask(gate, chunked, receive_nothing) == 401
            assert work.begun == 0

        run(test)

    def test_stalled_uploads_hold_no_place(self) -> None:
        async def test() -> None:
            work = Reading()
            gate = Gate(work, places=places(), refuse=refuse, identify=identify)
            stalled = [asyncio.create_task(ask(gate, upload(cookie="a"), receive_nothing)) for _ in range(5)]
            await asyncio.sleep(0.01)
            assert work.begun == 5
            assert await ask(gate, upload(cookie="a")) == 200
            for one in stalled:
                one.cancel()
            await asyncio.gather(*stalled, return_exceptions=True)
            assert await ask(gate, upload(cookie="a")) == 200

        run(test)

    def test_a_place_is_needed_once_the_body_is_there(self) -> None:
        async def test() -> None:
            work = Work()

            async def read_and_work(scope: Scope, receive: Receive, send: Send) -> None:
                try:
                    await Request(scope, receive).body()
                except HTTPException as error:
                    await PlainTextResponse("", status_code=error.status_code)(scope, receive, send)
                    return
                await work(scope, receive, send)

            gate = Gate(read_and_work, places=places(), refuse=refuse, identify=identify)
            first = asyncio.create_task(ask(gate, upload(cookie="a")))
            await asyncio.sleep(0)
            assert await ask(gate, upload(cookie="b")) == 503
            work.begin.set()
            work.end.set()
            assert await first == 200
            assert await ask(gate, upload(cookie="b")) == 200

        run(test)


class TestArrivals:
    @pytest.mark.parametrize(
        ("what", "limit"),
        [
            (upload(cookie="a"), bodies.UPLOADS_PER_ADDRESS),
            (scope("/sign-in", "POST", content_length="9"), bodies.BODIES_PER_ADDRESS),
            (scope("/sign-in", "POST", transfer_encoding="chunked"), bodies.BODIES_PER_ADDRESS),
        ],
    )
    def test_an_address_has_a_few_at_a_time(self, what: Scope, limit: int) -> None:
        async def test() -> None:
            gate = Gate(Reading(), places=places(), refuse=refuse, identify=identify)
            here, there = {**what, "client": ("192.0.2.1", 1)}, {**what, "client": ("192.0.2.2", 1)}
            stalled = [asyncio.create_task(ask(gate, here, receive_nothing)) for _ in range(limit)]
            await asyncio.sleep(0.01)
            assert await ask(gate, here) == 429
            assert await ask(gate, there) == 200
            for one in stalled:
                one.cancel()
            await asyncio.gather(*stalled, return_exceptions=True)
            assert await ask(gate, here) == 200

        run(test)

    def test_a_small_body_without_end_is_given_up(self) -> None:
        async def test() -> None:
            gate = Gate(Reading(), places=places(), refuse=refuse, identify=identify)

            async def more() -> Message:
                return {"type": "http.request", "body": b"x" * SMALL_BODY, "more_body": True}

            chunked = scope("/sign-in", "POST", transfer_encoding="chunked")
            assert await ask(gate, chunked, more) == 413

        run(test)


class TestMinimumRate:
    def test_waiting_spends_credit_and_bytes_earn_it(self) -> None:
        rate = MinimumRate(rate=100, grace=10)
        assert rate.allowance() == 10
        assert rate.allowance(500) == 15
        rate.moved(200, 8)
        assert rate.allowance() == 4
        rate.moved(10_000, 1)
        assert rate.allowance() == 10, "credit is not saved for a long pause"
        for _ in range(20):
            rate.moved(50, 1)
        assert rate.allowance() == 0, "half the rate is too slow in the long run"

    def test_a_sender_that_pauses_is_refused(self) -> None:
        async def test() -> None:
            first = iter([{"type": "http.request", "body": b"x" * 10, "more_body": True}])

            async def receive() -> Message:
                return next(first, None) or await receive_nothing()

            receiving = bodies.timed(receive, MinimumRate(rate=1000, grace=0.01))
            assert (await receiving())["body"] == b"x" * 10
            with pytest.raises(HTTPException) as caught:
                await receiving()
            assert (caught.value.status_code, caught.value.headers) == (408, {"Connection": "close"})

        run(test)
