"""The critics of a benchmark: each one claims, judges and claims again over HTTP, as fast as the server answers.

They share the cores with the server, so they are cheap: one process and one event loop for all, one persistent
connection for each, requests written as bytes, responses parsed by httptools. They behave like any client: every
claim is parsed as JSON, the verdict picks its first candidate, nothing is pipelined, and a critic sends a request
only after the response to the one before. Where no set is ready, a critic asks again after 50 ms. The time of a call
is from writing the request until the whole response is there, including delays of the event loop.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
import urllib.parse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httptools
import orjson
import psutil
import uvloop

CALLS = ("claim", "verdict")
AGAIN_SECONDS = 0.05
PATIENCE = 60.0


@dataclass(frozen=True)
class Target:
    """The installation the critics work on."""

    base_url: str
    slug: str


@dataclass
class Measured:
    """What the critics of one run saw: seconds of each call, and answers that should not have been.

    `dry` is when nothing was ready for the first time, in seconds since the beginning; `cpu` what the critics
    themselves took of the processor.
    """

    seconds: float = 0.0
    cpu: float = 0.0
    times: dict[str, list[float]] = field(default_factory=lambda: {call: [] for call in CALLS})
    loops: int = 0
    empty: int = 0
    dry: float | None = None
    errors: Counter[str] = field(default_factory=Counter)

    def percentile(self, call: str, share: float) -> float:
        """Milliseconds that `share` of the calls took at most."""
        times = sorted(self.times[call])
        return 1000 * times[min(len(times) - 1, int(share * len(times)))] if times else float("nan")


class Critic(asyncio.Protocol):
    """One critic on one connection; `done` is set when it has its last answer."""

    def __init__(self, target: Target, token: str, until: float, seen: Measured, *, drains: bool) -> None:
        parts = urllib.parse.urlsplit(target.base_url)
        self.base = parts.path.rstrip("/") + "/api/v1"
        self.head = (
            f" HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {token}\r\nAccept: application/json\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self.slug, self.until, self.seen, self.drains = target.slug, until, seen, drains
        self.loop = asyncio.get_running_loop()
        self.done = self.loop.create_future()
        self.call, self.began, self.parts = "", 0.0, list[bytes]()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport: Any = transport
        self.parser = httptools.HttpResponseParser(self)
        self.claim()

    def claim(self) -> None:
        """Ask for the next set, unless the time is over."""
        if time.perf_counter() < self.until and not (self.drains and self.seen.dry is not None):
            self.post("claim", f"/projects/{self.slug}/assignments", b"")
        else:
            self.end()

    def post(self, call: str, path: str, body: bytes) -> None:
        """Send a request."""
        self.call, self.began = call, time.perf_counter()
        self.parts.clear()
        self.transport.write(b"POST %b%b%d\r\n\r\n%b" % ((self.base + path).encode(), self.head, len(body), body))

    def data_received(self, data: bytes) -> None:
        """Read an answer, or a part of one."""
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Keep a part of the answer's body."""
        self.parts.append(body)

    def on_message_complete(self) -> None:
        """Go on with what the answer says."""
        now, status, call, seen = time.perf_counter(), self.parser.get_status_code(), self.call, self.seen
        seen.times[call].append(now - self.began)
        if call == "claim" and status in (200, 201):
            claimed = orjson.loads(b"".join(self.parts))
            verdict = {"kind": "picked", "picks": [claimed["candidates"][0]["id"]], "seconds": 3}
            self.post("verdict", f"/assignments/{claimed['id']}/verdict", orjson.dumps(verdict))
            return
        if call == "claim" and status == 204:
            seen.empty += 1
            seen.dry = seen.dry or now
        elif call == "verdict" and status == 201:
            seen.loops += 1
            self.claim()
            return
        else:
            seen.errors[f"{call}: {status}"] += 1
        self.loop.call_later(AGAIN_SECONDS, self.claim)

    def connection_lost(self, error: Exception | None) -> None:
        """Note that the server closed the connection."""
        if not self.done.done():
            self.seen.errors[f"{self.call}: {type(error).__name__ if error else 'closed'}"] += 1
            self.end()

    def end(self) -> None:
        """Leave."""
        if not self.done.done():
            self.done.set_result(None)
        self.transport.close()


async def judge(target: Target, tokens: Sequence[str], seconds: float, *, drains: bool) -> Measured:
    """All critics for a while; where `drains`, only until nothing is ready."""
    seen, loop, parts = Measured(), asyncio.get_running_loop(), urllib.parse.urlsplit(target.base_url)
    is_secret = parts.scheme == "https"
    began = time.perf_counter()
    critics = [Critic(target, token, began + seconds, seen, drains=drains) for token in tokens]

    async def work(critic: Critic) -> None:
        host, port = parts.hostname or "127.0.0.1", parts.port or (443 if is_secret else 80)
        await loop.create_connection(lambda: critic, host, port, ssl=is_secret or None)
        await critic.done

    async with asyncio.timeout(seconds + PATIENCE):
        await asyncio.gather(*(work(critic) for critic in critics))
    seen.seconds = time.perf_counter() - began
    seen.dry = None if seen.dry is None else seen.dry - began
    return seen


def load(target: Target, tokens: Sequence[str], seconds: float, drains: bool, answer: Any) -> None:
    """All critics, in this process; what they saw goes to the queue `answer`."""
    before = psutil.Process().cpu_times()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seen = runner.run(judge(target, tokens, seconds, drains=drains))
    after = psutil.Process().cpu_times()
    seen.cpu = after.user + after.system - before.user - before.system
    answer.put(seen)


def run(target: Target, tokens: Sequence[str], seconds: float, *, drains: bool = False) -> Measured:
    """One run, its critics in a process of their own."""
    context = multiprocessing.get_context("spawn")
    answer: Any = context.Queue()
    process = context.Process(target=load, args=(target, list(tokens), seconds, drains, answer))
    process.start()
    measured: Measured = answer.get(timeout=seconds + 2 * PATIENCE)
    process.join()
    return measured
