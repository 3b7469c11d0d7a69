"""Browsers of critics without a browser: they send what Chromium sent in the recording, from a process of their own.

Each browser has its own session, cache and connections. It goes through the turns of the recording from a place of its
own and begins again with loading the page when it comes to the end. What was sent besides verdicts (figures,
heartbeats, the day) comes where the recording has it. What depends on answers follows the rules of the page, which
each recording is checked against: two prompts ahead, a verdict that names the known claims and asks for the next one,
an image for each card that the cache does not hold, the static files that the page names.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import multiprocessing
import random
import re
import time
import uuid
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import psutil
import uvloop

from bench.browsers.recording import AHEAD, CANDIDATE, STATIC, Recording, Sent, load_recording
from bench.browsers.wire import Answer, ConnectionClosed, Wire

CARD = re.compile(rb'id="work" data-assignment="(\d+)" data-verdict="(\d*)"')
IMAGE = re.compile(rb'<img src="(/api/v1/images/[0-9a-f]{64}(?:\?width=[0-9]+)?)"')
CSRF = re.compile(rb'id="figures-now"[^>]* data-csrf="([^"]+)"')
GOOD = {"verdict": (200, 201), "next": (200, 204)}
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
TRIES = 5
POLL_SECONDS = 2.0
PATIENCE = 60.0
SPREAD = (0.7, 1.3)


@dataclass(frozen=True)
class Order:
    """What to replay: `pace` is the seconds between verdicts of a browser, None: as fast as it is answered."""

    port: int
    slug: str
    browsers: tuple[tuple[str, str], ...]
    pace: float | None
    ramp: float
    seconds: float
    seed: int = 1


@dataclass
class Seen:
    """What the browsers saw while it was counted: seconds of each kind of request, errors, and what it took.

    `given` counts all verdicts that were taken, outside that time too. `lag` is how late this process sent a verdict.
    """

    seconds: float = 0.0
    cpu: float = 0.0
    given: int = 0
    empty: int = 0
    connections: int = 0
    kept: int = 0
    dry: float | None = None
    times: dict[str, list[float]] = field(default_factory=dict)
    lag: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    is_counting: bool = False
    is_over: bool = False

    @property
    def verdicts(self) -> int:
        """How many verdicts were answered."""
        return len(self.times.get("verdict", ()))

    def note(self, kind: str, seconds: float) -> None:
        """Note an answer."""
        if self.is_counting:
            self.times.setdefault(kind, []).append(seconds)


@dataclass(frozen=True, slots=True)
class Card:
    """A prompt as the page holds it."""

    assignment: str
    candidates: tuple[str, ...]
    images: tuple[str, ...]


def read_card(content: bytes) -> Card | None:
    """The prompt in an answer."""
    found = CARD.search(content)
    if found is None:
        return None
    rest = content[found.end() :]
    return Card(
        found.group(1).decode(),
        tuple(one.decode() for one in CANDIDATE.findall(rest)),
        tuple(dict.fromkeys(one.decode() for one in IMAGE.findall(rest))),
    )


def read_static(page: bytes) -> list[str]:
    """The static files that a page asks for, in its order."""
    return list(dict.fromkeys(html.unescape(one.decode()) for one in STATIC.findall(page)))


class Browser:
    """One critic at one page."""

    def __init__(self, order: Order, recording: Recording, seen: Seen, dry: asyncio.Event, number: int) -> None:
        self.order, self.recording, self.seen, self.dry = order, recording, seen, dry
        self.cookie, self.csrf = order.browsers[number]
        self.draw = random.Random(order.seed * 100_003 + number)
        self.wire = Wire("127.0.0.1", order.port)
        self.current: Card | None = None
        self.upcoming = deque[Card]()
        self.place = self.draw.randrange(len(recording.turns))
        self.heads = {kind: self._head(lines) for kind, lines in recording.headers.items()}
        self.beside = set[asyncio.Task[None]]()
        self.loaded = asyncio.Event()

    def _head(self, lines: Sequence[str]) -> bytes:
        text = "".join(f"{line}\r\n" for line in lines)
        text = text.replace("{host}", f"127.0.0.1:{self.order.port}").replace("{slug}", self.order.slug)
        return text.replace("{cookie}", self.cookie).encode()

    # Requests

    async def send(
        self, kind: str, target: str, fields: Sequence[tuple[str, str]] | None = None, key: str = ""
    ) -> Answer | None:
        """Send a request of a kind; None, and an error is noted, where it was not answered as it should be."""
        head = self.heads[kind].replace(b"{csrf}", self.csrf.encode()).replace(b"{key}", key.encode())
        if fields is None:
            request = b"GET %b HTTP/1.1\r\n%b\r\n" % (target.encode(), head)
        else:
            body = urlencode(fields).encode()
            request = b"POST %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (target.encode(), head, len(body), body)
        try:
            answer = await self.wire.fetch(request)
        except (ConnectionClosed, OSError) as error:
            self.seen.errors[f"{kind}: {type(error).__name__}"] += 1
            return None
        if kind != "verdict":
            self.seen.note(kind, answer.seconds)
        if answer.status not in GOOD.get(kind, (200,)):
            self.seen.errors[f"{kind}: {answer.status}"] += 1
        return answer

    async def get(self, kind: str, target: str) -> None:
        """Ask for a file, unless the cache holds it."""
        if self.wire.holds(target):
            return
        answer = await self.send(kind, target)
        if answer is not None:
            self.wire.keep(target, answer)

    def path(self, rest: str) -> str:
        """An address of the judging page."""
        return f"/annotate/{self.order.slug}{rest}"

    # The page's rules

    async def take(self, card: Card | None) -> bool:
        """Take in a prompt and load its images. Whether there was one that is new."""
        if card is None or card.assignment in self.known():
            return False
        if self.current is None:
            self.current = card
        else:
            self.upcoming.append(card)
        for image in card.images:
            await self.get("image", image)
        return True

    def known(self) -> list[str]:
        """The claims that the page has."""
        return [one.assignment for one in (self.current, *self.upcoming) if one is not None]

    async def prefetch(self) -> None:
        """Ask for prompts until there are two ahead."""
        while len(self.upcoming) < AHEAD:
            answer = await self.send("next", self.path("/next"), [("known", one) for one in self.known()])
            if answer is None or answer.status != 200:
                return
            if not await self.take(read_card(answer.body)):
                if b"data-empty=" in answer.body and self.seen.is_counting:
                    self.seen.empty += 1
                return

    async def load(self) -> None:
        """Load the page."""
        self.current = None
        self.upcoming.clear()
        began = time.perf_counter()
        answer = await self.send("page", self.path(""))
        if answer is None or answer.status != 200:
            return
        self.read_csrf(answer.body)
        await asyncio.gather(*(self.get("static", one) for one in read_static(answer.body)))
        await self.take(read_card(answer.body))
        await self.prefetch()
        for sent in self.recording.load:
            if sent.kind not in ("page", "static", "image", "next"):
                self.later(began, sent)

    def read_csrf(self, content: bytes) -> None:
        """Take over the form token."""
        found = CSRF.search(content)
        if found:
            self.csrf = found.group(1).decode()

    def later(self, began: float, sent: Sent) -> None:
        """Send what comes by a timer of the page; at the pace of a person, when the recording has it."""
        task = asyncio.create_task(self.by_timer(began, sent))
        self.beside.add(task)
        task.add_done_callback(self.timer_ended)

    def timer_ended(self, task: asyncio.Task[None]) -> None:
        """Let a task go. A fault of this program counts as an error too."""
        self.beside.discard(task)
        if error := task.exception():
            self.seen.errors[f"replay: {error!r}"] += 1

    async def by_timer(self, began: float, sent: Sent) -> None:
        """Figures, heartbeats and the day."""
        if self.order.pace is not None:
            due = began + sent.at * self.order.pace / self.recording.pause
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        target = sent.target.replace("{slug}", self.order.slug)
        held = [("held", one) for one in self.known()]
        answer = await self.send(sent.kind, target, held if sent.kind == "heartbeat" else None)
        if answer is None or answer.status != 200:
            return
        if sent.kind == "figures":
            self.read_csrf(answer.body)
        if sent.kind == "heartbeat":
            lost = answer.body.decode().split()
            self.upcoming = deque(one for one in self.upcoming if one.assignment not in lost)
            if self.current is not None and self.current.assignment in lost:
                self.current = self.upcoming.popleft() if self.upcoming else None

    # Judging

    async def judge(self, card: Card, sent: Sent, due: float) -> bool:
        """Give a verdict as recorded. Whether it was taken; its time runs from `due`."""
        self.current = self.upcoming.popleft() if self.upcoming else None
        fields = [(name, value) for name, value in sent.fields if name not in ("picks", "room", "known")]
        fields[3:3] = [("picks", card.candidates[number % len(card.candidates)]) for number in sent.picks()]
        target = self.path(f"/assignments/{card.assignment}/verdict")
        key = str(uuid.uuid4())
        for attempt in range(TRIES):
            asides = [("known", one) for one in (*self.known(), card.assignment)]
            room = [("room", "yes"), *asides] if len(self.upcoming) < AHEAD else []
            answer = await self.send("verdict", target, fields + room, key)
            if answer is None or answer.status in TRY_AGAIN:
                await asyncio.sleep(2**attempt)
                continue
            if answer.status not in GOOD["verdict"]:
                return False
            self.seen.given += 1
            self.seen.note("verdict", time.perf_counter() - due)
            self.read_csrf(answer.body)
            if not await self.take(read_card(answer.body)) and not self.upcoming:
                await self.prefetch()
            return True
        return False

    async def turn(self, due: float) -> None:
        """A verdict and what was sent until the next one."""
        card = self.current
        if card is None:
            await self.prefetch()
            if self.current is None:
                await self.look_again()
            return
        steps = self.recording.turns[self.place]
        for sent in steps[1:]:
            if sent.kind not in ("image", "next"):
                self.later(due, sent)
        await self.judge(card, steps[0], due)
        if self.order.pace is None and self.beside:
            await asyncio.gather(*self.beside)
        self.place += 1
        if self.place == len(self.recording.turns):
            self.place = 0
            await self.load()

    async def look_again(self) -> None:
        """Wait where nothing is ready."""
        self.dry.set()
        await asyncio.sleep(POLL_SECONDS if self.order.pace is not None else 0.05)

    async def wait_until(self, due: float) -> float:
        """Wait for the moment of the next verdict. When the critic gave it: they may have waited for the page."""
        now = time.perf_counter()
        if self.order.pace is None or now >= due:
            return due if self.order.pace is not None else now
        await asyncio.sleep(due - now)
        woken = time.perf_counter()
        if self.seen.is_counting:
            self.seen.lag.append(woken - due)
        return woken

    async def run(self, delay: float) -> None:
        """Judge until it is over."""
        await asyncio.sleep(delay)
        await self.load()
        self.loaded.set()
        due = time.perf_counter()
        while True:
            began = await self.wait_until(due)
            if self.seen.is_over:
                break
            await self.turn(began)
            if self.order.pace is not None:
                due += self.order.pace * self.draw.uniform(*SPREAD)
        if self.beside:
            await asyncio.wait(self.beside, timeout=PATIENCE)
        self.seen.connections += self.wire.opened
        self.seen.kept += self.wire.kept
        self.wire.close()


# The process


async def replay(order: Order, ready: Any, go: Any) -> Seen:
    """All browsers: set `ready` once they are at work, and count for `order.seconds` once `go` is set."""
    seen, recording, dry = Seen(), load_recording(), asyncio.Event()
    count = len(order.browsers)
    browsers = [Browser(order, recording, seen, dry, number) for number in range(count)]
    tasks = [asyncio.create_task(one.run(order.ramp * number / count)) for number, one in enumerate(browsers)]
    await asyncio.sleep(order.ramp)
    await asyncio.gather(*(one.loaded.wait() for one in browsers))
    ready.set()
    await asyncio.to_thread(go.wait)
    before, began = psutil.Process().cpu_times(), time.perf_counter()
    dry.clear()
    seen.is_counting = True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(order.seconds):
            await dry.wait()
            seen.dry = time.perf_counter() - began
            if order.pace is not None:  # others go on, and come to where something is ready again
                await asyncio.sleep(order.seconds)
    seen.is_counting, seen.is_over = False, True
    seen.seconds = time.perf_counter() - began
    after = psutil.Process().cpu_times()
    seen.cpu = after.user + after.system - before.user - before.system
    done, late = await asyncio.wait(tasks, timeout=PATIENCE)
    for task in done:
        task.result()
    seen.errors["browsers that did not end"] += len(late)
    seen.errors = +seen.errors
    return seen


def run_process(order: Order, ready: Any, go: Any, answer: Any) -> None:
    """Replay in this process; what was seen goes to the queue `answer`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answer.put(runner.run(replay(order, ready, go)))


class Replay:
    """The browsers, in a process of their own."""

    def __init__(self, order: Order) -> None:
        context = multiprocessing.get_context("spawn")
        self.order = order
        self.ready, self.go = context.Event(), context.Event()
        self._answer: Any = context.Queue()
        arguments = (order, self.ready, self.go, self._answer)
        self._process = context.Process(target=run_process, args=arguments, daemon=True)
        self._process.start()

    def wait_ready(self) -> None:
        """Wait until all browsers have loaded their page."""
        if not self.ready.wait(self.order.ramp + PATIENCE):
            raise SystemExit("the browsers did not come to judge")

    def finish(self) -> Seen:
        """Count what is seen from now on, until it is over."""
        self.go.set()
        seen: Seen = self._answer.get(timeout=self.order.seconds + 3 * PATIENCE)
        self._process.join()
        return seen
