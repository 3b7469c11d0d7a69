"""Idle browser tabs: `--tabs` open pages of the loop, each polling every 10 s.

    python bench/tabs.py [--tabs 1000] [--every 10] [--seconds 30] [--processes 1] [--beats 0]

Starts its own PostgreSQL and web server, with a project of three rounds. A visible tab polls as the page's script
does after a while without changes: with its last ETag, and the response is 304. Hidden tabs do not poll
(tests/e2e/test_admin.py), so this is the maximum cost of that many tabs. With `--beats` a worker's heartbeat, which
no page shows, is written so many times a second. Prints the response times, and the CPU use of the web server and
PostgreSQL. Exits with 1 where a response is neither 200 nor 304.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from http.client import HTTPConnection
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sqlalchemy import select

from app.db import migrations
from app.db.sessions import session_scope
from app.http.dependencies import SESSION_COOKIE
from app.models import Role, User
from app.processes import connect
from app.processes.embedded import Embedded
from app.services.accounts import sessions
from app.services.kernel import workers
from bench.serving import free_port, serve
from tests.e2e import world

CONNECTIONS = 64


class Tabs:
    """Tabs that share some connections, as browsers behind a proxy do."""

    def __init__(self, port: int, cookie: str, *, tabs: int, every: float) -> None:
        self.port, self.every = port, every
        self.headers = {"Cookie": f"{SESSION_COOKIE}={cookie}", "HX-Request": "true"}
        self.due: queue.PriorityQueue[tuple[float, int]] = queue.PriorityQueue()
        self.etags: dict[int, str] = {}
        self.times: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.ended = threading.Event()
        now = time.monotonic()
        for tab in range(tabs):
            self.due.put((now + random.uniform(0, every), tab))

    def work(self) -> None:
        """Ask for the tabs that are due, one after another."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self.ended.is_set():
            at, tab = self.due.get()
            wait = at - time.monotonic()
            if wait > 0 and self.ended.wait(wait):
                break
            self.due.put((max(at, time.monotonic()) + self.every, tab))
            started = time.monotonic()
            known = {"If-None-Match": self.etags[tab]} if tab in self.etags else {}
            connection.request("GET", "/admin/projects/scenes", headers={**self.headers, **known})
            answer = connection.getresponse()
            answer.read()
            self.times.append(time.monotonic() - started)
            self.statuses[answer.status] += 1
            if etag := answer.headers.get("etag"):
                self.etags[tab] = etag
        connection.close()

    def percentile(self, share: float) -> float:
        """Milliseconds that `share` of the answers took at most."""
        times = sorted(self.times)
        return 1000 * times[min(len(times) - 1, int(share * len(times)))] if times else float("nan")


def used(processes: list[psutil.Process]) -> float:
    """Processor seconds that processes have used so far."""
    found = 0.0
    for one in processes:
        try:
            found += sum(one.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return found


def family_of(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def beat(ended: threading.Event, seconds: float) -> None:
    """Write what changes no page, again and again."""
    while not ended.wait(seconds):
        with session_scope() as session:
            workers.beat_worker(session, "bench:1", queues="model", device="cpu", doing="", memory_mb=100)


def fill() -> str:
    """Make the project and sign its admin in; the cookie."""
    with session_scope() as session:
        world.build(session, prompts=24, rich=True)
    with session_scope() as session:
        admin = session.scalars(select(User).where(User.role == Role.admin).order_by(User.id)).first()
        if admin is None:
            raise SystemExit("there is no admin")
        return sessions.open_web_session(session, admin)[0]


def main() -> int:
    """Measure, and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tabs", type=int, default=1000)
    parser.add_argument("--every", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--beats", type=float, default=0.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="illume-bench-") as folder:
        Path(folder).chmod(0o711)
        with Embedded(Path(folder)) as services:
            urls = {"ILLUME_DATABASE_URL": services.database_url, "ILLUME_REDIS_URL": services.redis_url}
            connect.set_environment({**urls, "ILLUME_DATA_DIR": folder, "ILLUME_SECRET_KEY": "a key for benchmarks"})
            migrations.upgrade(services.database_url)
            cookie, port = fill(), free_port()
            server = serve(port, options.processes, Path(folder) / "web.log")
            try:
                return measure(Tabs(port, cookie, tabs=options.tabs, every=options.every), server.pid, options)
            finally:
                server.terminate()
                server.wait(30)
                connect.forget_settings()


def measure(tabs: Tabs, web: int, options: argparse.Namespace) -> int:
    """Let the tabs ask; the first turn, in which each gets its page once, does not count."""
    threads = [threading.Thread(target=tabs.work) for _ in range(CONNECTIONS)]
    if options.beats:
        threads.append(threading.Thread(target=beat, args=(tabs.ended, 1 / options.beats)))
    for thread in threads:
        thread.start()
    time.sleep(options.every)
    tabs.times.clear()
    tabs.statuses.clear()
    here = family_of(os.getpid())
    servers = family_of(web)
    database = [one for one in here if one.name().startswith("postgres")]
    before, started = (used(servers), used(database)), time.monotonic()
    time.sleep(options.seconds)
    seconds = time.monotonic() - started
    after = (used(servers), used(database))
    tabs.ended.set()
    for thread in threads:
        thread.join()
    print("tabs | asked a second | 304 | p50 ms | p95 ms | p99 ms | web, of a core | PostgreSQL, of a core")
    print(
        f"{options.tabs} | {sum(tabs.statuses.values()) / seconds:.0f} | {tabs.statuses[304]} of "
        f"{sum(tabs.statuses.values())} | {tabs.percentile(0.5):.0f} | {tabs.percentile(0.95):.0f} | "
        f"{tabs.percentile(0.99):.0f} | {100 * (after[0] - before[0]) / seconds:.0f} % | "
        f"{100 * (after[1] - before[1]) / seconds:.0f} %"
    )
    return 0 if set(tabs.statuses) <= {200, 304} else 1


if __name__ == "__main__":
    sys.exit(main())
