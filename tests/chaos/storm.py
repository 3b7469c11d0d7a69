"""A storm: critics work and rounds run while processes are killed at random moments; then the results are checked."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis
from sqlalchemy import NullPool, create_engine, select, text
from sqlalchemy.orm import Session

from app.db.engine import sqlalchemy_url
from app.models import Project
from app.services.candidates import pools
from tests.chaos import checks
from tests.chaos.critics import Crowd
from tests.chaos.installation import (
    SLUG,
    TARGETS,
    Installation,
    Reachable,
    Size,
    expect,
    fill,
    insist,
    running,
    wait_for,
)

EMPTY = "empty redis"
ACTIONS = (*TARGETS, EMPTY)
# Seconds between two kills of the same process: the demo gives up on a process that keeps ending, as does a round.
GAPS = {"worker-model": 20.0, "tuning": 15.0}
GAP = 9.0
AWAY = "not there"
GOING_ON = ("queued", "preparing", "training", "evaluating", "cancelling")


@dataclass(frozen=True)
class Weather:
    """The parameters of a storm: seed, duration, mean seconds between two kills, number of critics."""

    seed: int
    seconds: float
    every: float = 3.0
    critics: int = 12
    rounds: int = 1
    size: Size = field(default_factory=Size)


@dataclass
class Outcome:
    """What happened in a storm and what was found after it. `faults` is empty where all is well."""

    seed: int
    blows: list[tuple[float, str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    verdicts: int = 0
    kept_aside: int = 0
    tried_again: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    longest_gap: float = 0.0
    calm_after: float = 0.0
    rounds: int = 0
    reruns_equal: int = 0
    said: list[str] = field(default_factory=list)


def plan(weather: Weather) -> list[tuple[float, str]]:
    """The times of all actions: each action at least once where time allows, the rest at random by the seed."""
    dice = random.Random(weather.seed)
    left = list(ACTIONS)
    dice.shuffle(left)
    last: dict[str, float] = {}
    found: list[tuple[float, str]] = []
    at = 1.0
    while (at := at + dice.uniform(0.3, 1.7) * weather.every) < weather.seconds:
        rested = [one for one in ACTIONS if at - last.get(one, -1e9) >= GAPS.get(one, GAP)]
        first = [one for one in left if one in rested]
        if not rested:
            continue
        chosen = first[0] if first else dice.choice(rested)
        left = [one for one in left if one != chosen]
        last[chosen] = at
        found.append((at, chosen))
    return found


def blow(installation: Installation, action: str) -> str:
    """Do one action. Returns what happened in a few words."""
    if action == EMPTY:
        with contextlib.suppress(redis.RedisError), installation.broker() as broker:
            broker.flushall()
            return "emptied"
        return AWAY
    process = installation.find(action)
    if process is None:
        return AWAY
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
        return f"killed {process.pid}"
    return AWAY


@contextlib.contextmanager
def database(installation: Reachable) -> Iterator[Session]:
    """A session on the installation's database."""
    engine = create_engine(sqlalchemy_url(installation.database_url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        with Session(engine) as session:
            yield session
    finally:
        engine.dispose()


def storm(folder: Path, model: Path, weather: Weather) -> Outcome:
    """Run the storm, wait until everything works again, and check the result."""
    outcome = Outcome(weather.seed)
    with running(folder, model) as installation:
        tokens = fill(installation, weather.size, critics=weather.critics)
        crowd = Crowd(installation, tokens, seed=weather.seed, lease_seconds=weather.size.lease_seconds)
        try:
            with installation.api() as api:
                expect(api.patch(f"/projects/{SLUG}", json={"auto_rounds": True}), 200)
            crowd.start()
            rage(installation, weather, outcome)
            calm_down(installation, weather, outcome)
            crowd.stop()
            settle(installation, crowd, weather, outcome)
        finally:
            crowd.close()
            outcome.said = list(installation.said)
        outcome.faults += [] if installation.process.poll() is None else ["the demo ended"]
        code = installation.stop()
        outcome.faults += [f"the demo stopped with exit code {code}"] if code else []
    note(outcome, crowd)
    return outcome


def rage(installation: Installation, weather: Weather, outcome: Outcome) -> None:
    """Do the planned actions."""
    started, dice = time.monotonic(), random.Random(weather.seed)
    blows = plan(weather)
    for (at, action), (next_at, _) in pairwise([*blows, (weather.seconds, "")]):
        time.sleep(max(0.0, started + at - time.monotonic()))
        while (what := blow(installation, action)) == AWAY and time.monotonic() < started + next_at - 0.2:
            time.sleep(dice.uniform(0.1, 0.3))  # the process is just starting, or there is no round yet
        outcome.blows.append((round(time.monotonic() - started, 1), action, what))
    time.sleep(max(0.0, started + weather.seconds - time.monotonic()))


def calm_down(installation: Installation, weather: Weather, outcome: Outcome) -> None:
    """Wait until everything has recovered while critics work, and until enough rounds have ended."""
    there = [target for target in TARGETS if target not in ("tuning", "backend")]
    outcome.calm_after = wait_for(
        lambda: installation.is_ready() and all(installation.find(target) for target in there),
        "every process is back and the server is ready",
    )
    wait_for(lambda: len(rounds_of(installation)) >= weather.rounds, f"{weather.rounds} rounds were started")
    with installation.api() as api:
        insist(lambda: api.patch(f"/projects/{SLUG}", json={"auto_rounds": False}), 200)
    wait_for(lambda: not rounds_of(installation, *GOING_ON), "no round goes on")


def rounds_of(installation: Reachable, *states: str) -> list[dict[str, Any]]:
    """The rounds in these states, or all, the oldest first. While the server is unavailable, one is assumed to run."""
    with contextlib.suppress(httpx.HTTPError), installation.api() as api:
        answer = api.get(f"/projects/{SLUG}/rounds")
        if answer.status_code == 200:
            return [one for one in reversed(answer.json()["items"]) if one["state"] in states or not states]
    return [{}] if "queued" in states else []


def settle(installation: Reachable, crowd: Crowd, weather: Weather, outcome: Outcome) -> None:
    """Wait for the last leases to lapse, check the database, and rerun the rounds without kills."""
    with database(installation) as session:
        held = text("SELECT count(*) FROM assignments WHERE state = 'open'")
        with contextlib.suppress(AssertionError):  # otherwise it is reported as a fault
            wait_for(lambda: not session.scalar(held), "claims lapse", seconds=weather.size.lease_seconds + 10)
        project = session.scalars(select(Project).where(Project.slug == SLUG)).one()
        wait_for(lambda: pools.count_missing_sets(session, project) == 0, "the pool of candidates is filled again")
        while crowd.follower.read():
            pass
        outcome.faults += checks.faults(session, crowd.ledger, crowd.follower.seen)
    done = rounds_of(installation, "succeeded")
    outcome.rounds = len(done)
    for first in done[: weather.rounds]:
        with installation.api() as api:
            again = expect(api.post(f"/rounds/{first['id']}/rerun"), 202)
        wait_for(lambda: not rounds_of(installation, *GOING_ON), "the rerun ends")
        with database(installation) as session:
            different = checks.rounds_differ(session, int(first["id"]), int(again["id"]))
        outcome.faults += different
        outcome.reruns_equal += not different


def note(outcome: Outcome, crowd: Crowd) -> None:
    """Store what the critics saw."""
    ledger = crowd.ledger
    outcome.verdicts = len(ledger.answered)
    outcome.kept_aside = sum(one.status == 202 for one in ledger.answered)
    outcome.tried_again = sum(one.tries > 1 for one in ledger.answered)
    outcome.statuses = dict(sorted(ledger.statuses.items()))
    outcome.longest_gap = ledger.longest_gap()
    faults = sum(count for what, count in ledger.statuses.items() if what.endswith(" 500"))
    outcome.faults += [f"{faults} answers with 500"] if faults else []


def report(outcomes: Sequence[Outcome]) -> str:
    """The report of the storms as text."""
    lines = []
    for one in outcomes:
        struck: dict[str, int] = {}
        for _, action, what in one.blows:
            if what.startswith(("killed", "emptied")):
                struck[action] = struck.get(action, 0) + 1
        lines += [
            f"seed {one.seed}: {'FAULTS' if one.faults else 'all is well'}",
            f"  struck: {', '.join(f'{action} {count}' for action, count in sorted(struck.items()))}",
            f"  verdicts answered: {one.verdicts} ({one.kept_aside} kept aside, {one.tried_again} asked for again);"
            f" longest time without an answer {one.longest_gap:.1f} s; all back after {one.calm_after:.1f} s",
            f"  rounds: {one.rounds} succeeded; equal when run again undisturbed: {one.reruns_equal}",
            f"  answers: {', '.join(f'{what}: {count}' for what, count in one.statuses.items())}",
            *(f"  FAULT {fault}" for fault in one.faults),
        ]
    return "\n".join(lines)
