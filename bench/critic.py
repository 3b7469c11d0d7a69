"""How long a critic waits for the next prompt: a hundred verdicts by keyboard in Chromium, without pauses.

    python bench/critic.py [--verdicts 100] [--pause 0]

A wait is the time from the Enter that submits a verdict until the next prompt is painted with its image. Each verdict
is one pick and Enter, sent as real key events; `--pause` adds seconds between them. The server is a separate process
with an embedded PostgreSQL and the shipped scenes.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import Page, expect, sync_playwright
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session, sessionmaker

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.db import migrations
from app.db.engine import sqlalchemy_url
from app.models import Verdict
from app.processes.embedded import Embedded
from app.settings import ROOT
from tests.e2e import world
from tests.e2e.conftest import DESK, FLAGS, chromium, free_port

MEDIAN_MS = 34.0
P95_MS = 100.0
START_SECONDS = 60.0
# Enter is taken at the time of the event, so that what the browser did before its handlers is counted too.
WATCH = """
() => {
  window.waits = [];
  let since = null;
  document.addEventListener("keydown", (event) => { if (event.key === "Enter") since = event.timeStamp; }, true);
  const judge = document.querySelector(".judge");
  new MutationObserver(() => {
    if (since === null || judge.dataset.state !== "judging") return;
    window.waits.push(performance.now() - since);
    since = null;
  }).observe(judge, { attributes: true, attributeFilter: ["data-state"] });
}
"""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verdicts", type=int, default=100)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds before each verdict")
    return parser.parse_args()


@contextmanager
def served(database_url: str, redis_url: str, folder: str) -> Iterator[str]:
    """The application in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port)]
    environment = {
        **os.environ,
        "ILLUME_DATABASE_URL": database_url,
        "ILLUME_REDIS_URL": redis_url,
        "ILLUME_DATA_DIR": folder,
    }
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the application answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"{url}/healthz", timeout=1).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("the server did not start")


def judge(page: Page, count: int, pause: float) -> list[float]:
    """Give `count` verdicts; the waits in milliseconds."""
    expect(page.locator(".judge")).to_have_attribute("data-state", "judging", timeout=30_000)
    page.evaluate(WATCH)
    for number in range(1, count + 1):
        if pause:
            page.wait_for_timeout(1000 * pause)
        page.locator(".judge[data-seen=yes]").wait_for(timeout=30_000)  # nobody judges sooner
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        page.wait_for_function("count => window.waits.length >= count", arg=number, timeout=30_000)
    expect(page.locator("#save-state")).to_have_text("Saved", timeout=30_000)
    waits: list[float] = page.evaluate("window.waits")
    return waits


def run(options: argparse.Namespace, sessions: sessionmaker[Session], url: str) -> list[float]:
    """The waits of one critic in one browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        page = browser.new_page(viewport={"width": DESK[0], "height": DESK[1]})
        page.goto(f"{url}/sign-in?next=/annotate/scenes")
        page.get_by_label("Email").fill("critic@example.org")
        page.get_by_label("Password").fill(world.PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("button", name="Close the instructions").click()  # they open on the first visit
        waits = judge(page, options.verdicts, options.pause)
        browser.close()
    with sessions() as session:
        given = session.scalar(select(func.count()).select_from(Verdict))
    if given != options.verdicts:
        raise SystemExit(f"{given} verdicts are stored, not {options.verdicts}")
    return waits


def main() -> None:
    """Fill a database, judge, print the table."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="illume-critic-") as folder:
        Path(folder).chmod(0o711)  # as root PostgreSQL runs as another account and has to pass
        os.environ["ILLUME_DATA_DIR"] = folder
        services = Embedded(Path(folder))
        services.start()
        try:
            migrations.upgrade(services.database_url)
            sessions = sessionmaker(create_engine(sqlalchemy_url(services.database_url)), expire_on_commit=False)
            with sessions.begin() as session:
                world.build(session, prompts=options.verdicts + 10, round_every=1_000_000)
            with served(services.database_url, services.redis_url, folder) as url:
                waits = run(options, sessions, url)
        finally:
            services.stop()
    median = statistics.median(waits)
    p95 = statistics.quantiles(waits, n=20)[-1]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {len(waits)} verdicts\n")
    print("| machine wait per verdict | ms | at most |\n|---|---|---|")
    print(f"| median | {median:.1f} | {MEDIAN_MS:.0f} |")
    print(f"| p95 | {p95:.1f} | {P95_MS:.0f} |")
    print(f"| worst | {max(waits):.1f} | |")
    raise SystemExit(0 if median < MEDIAN_MS and p95 < P95_MS else 1)


if __name__ == "__main__":
    main()
