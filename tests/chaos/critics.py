"""Simulated critics who work over HTTP through all failures, and record every response."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx

from tests.chaos.installation import SLUG, Reachable

TRY_AGAIN = (429, 500, 502, 503, 504)
PAUSE = 0.2
THINK = 0.3
"""Seconds that a critic looks at a set, on average."""


@dataclass(frozen=True)
class Answered:
    """A verdict whose response reached its critic."""

    verdict: int
    assignment: int
    status: int
    kind: str
    picks: tuple[int, ...]
    key: str
    tries: int


@dataclass
class Ledger:
    """What the critics saw: every answered verdict, every status, and the times of responses."""

    answered: list[Answered] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    moments: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self.lock:
            self.statuses[what] += 1

    def note(self, answered: Answered) -> None:
        with self.lock:
            self.answered.append(answered)
            self.moments.append(time.monotonic())

    def longest_gap(self) -> float:
        """The longest time, in seconds, in which no verdict was answered."""
        moments = sorted(self.moments)
        return max((after - before for before, after in pairwise(moments)), default=0.0)


@dataclass
class Critic:
    """One critic, who claims, thinks and judges, and sometimes forgets a claim, releases one, or takes too long."""

    client: httpx.Client
    ledger: Ledger
    dice: random.Random
    stop: threading.Event
    lease_seconds: float
    think: float

    def run(self) -> None:
        """Work until stopped. A request that is under way is finished first."""
        with self.client:
            while not self.stop.is_set():
                claimed = self.claim()
                if claimed is None:
                    self.stop.wait(0.5)
                    continue
                self.stop.wait(self.dice.uniform(0, 2 * self.think))
                fate = self.dice.random()
                if fate < 0.05:
                    self.ledger.count("forgot a claim")
                elif fate < 0.08:
                    self.ask("release", lambda at: self.client.post(f"/assignments/{at}/release"), claimed["id"])
                else:
                    self.stop.wait(1.2 * self.lease_seconds if fate < 0.11 else 0)
                    self.give(claimed)

    def claim(self) -> dict[str, Any] | None:
        """Claim the next set; None where there is none, or where the critic was stopped first."""
        while not self.stop.is_set():
            answer = self.send("claim", lambda: self.client.post(f"/projects/{SLUG}/assignments"))
            if answer is not None and answer.status_code in (200, 201):
                return dict(answer.json())
            if answer is not None and answer.status_code == 204:
                return None
            time.sleep(PAUSE)
        return None

    def ask(self, what: str, call: Callable[[str], httpx.Response], subject: str) -> httpx.Response:
        """Retry until the server answers, however long it is unavailable."""
        while True:
            answer = self.send(what, lambda: call(subject))
            if answer is not None and answer.status_code not in TRY_AGAIN:
                return answer
            time.sleep(PAUSE)

    def give(self, claimed: dict[str, Any]) -> None:
        """Judge a set; retried with the same Idempotency-Key until the server has answered."""
        kind = self.dice.choices(("picked", "none_fit", "skipped"), (7, 2, 1))[0]
        ids = [int(one["id"]) for one in claimed["candidates"]]
        picks = tuple(self.dice.sample(ids, self.dice.randint(1, 2))) if kind == "picked" else ()
        key = str(uuid.uuid4())
        body = {"kind": kind, "picks": [str(pick) for pick in picks]}
        tries = 0

        def call(assignment: str) -> httpx.Response:
            nonlocal tries
            tries += 1
            return self.client.post(f"/assignments/{assignment}/verdict", json=body, headers={"Idempotency-Key": key})

        answer = self.ask("verdict", call, claimed["id"])
        if answer.status_code not in (201, 202):
            self.ledger.refused.append(f"{answer.status_code} after {tries} tries: {answer.text[:300]}")
            return
        verdict, assignment = int(answer.json()["id"]), int(claimed["id"])
        self.ledger.note(Answered(verdict, assignment, answer.status_code, kind, picks, key, tries))

    def send(self, what: str, call: Callable[[], httpx.Response]) -> httpx.Response | None:
        """Try once; None where the connection failed and the server may have acted or not."""
        try:
            answer = call()
        except httpx.HTTPError as error:
            self.ledger.count(f"{what} {type(error).__name__}")
            return None
        self.ledger.count(f"{what} {answer.status_code}")
        return answer


class Follower:
    """Follows the feed of verdicts from its last cursor, as another program would."""

    def __init__(self, client: httpx.Client, stop: threading.Event) -> None:
        self.client, self.stop = client, stop
        self.seen: list[int] = []
        self._cursor: str | None = None

    def run(self) -> None:
        """Read until stopped."""
        while not self.stop.is_set():
            try:
                read = self.read()
            except httpx.HTTPError:
                read = 0
            if not read:
                self.stop.wait(0.5)

    def read(self) -> int:
        """Read the next page. Returns the number of verdicts on it."""
        parameters = {"limit": "200", **({"cursor": self._cursor} if self._cursor else {})}
        answer = self.client.get(f"/projects/{SLUG}/verdicts", params=parameters)
        if answer.status_code != 200:
            return 0
        page = answer.json()
        self.seen += [int(one["id"]) for one in page["items"]]
        self._cursor = page["next"] or self._cursor
        return len(page["items"])


class Crowd:
    """Critics and a follower of the feed, each in its own thread."""

    def __init__(
        self, installation: Reachable, tokens: list[str], *, seed: int, lease_seconds: float, think: float = THINK
    ) -> None:
        self.ledger = Ledger()
        self.stopping = threading.Event()
        self.critics = [
            Critic(
                installation.api(token),
                self.ledger,
                random.Random(f"{seed}-{number}"),
                self.stopping,
                lease_seconds,
                think,
            )
            for number, token in enumerate(tokens)
        ]
        self.follower = Follower(installation.api(), self.stopping)
        runs = [*(critic.run for critic in self.critics), self.follower.run]
        self._threads = [threading.Thread(target=run) for run in runs]

    def start(self) -> None:
        """Start them."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop them once their requests are finished, and read the feed to its end."""
        self.stopping.set()
        for thread in self._threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in self._threads), "a critic got no answer"

    def close(self) -> None:
        """Close all connections."""
        self.stopping.set()
        self.follower.client.close()
