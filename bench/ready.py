"""How long until the demo is ready, has candidates and all its prompts, and how much memory its processes take.

    python bench/ready.py [--runs 3]
    python bench/ready.py --clones 73a99a8 HEAD

Each run has a new data directory; the set-up by `make` is not included. Prints a table. With `--clones`, each of these
commits is cloned instead, and the time that its `make demo` takes to `ready:` is printed: with the network and the
caches of pip, uv and npm as this machine has them, so compare only commits of one call.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from app.processes.embedded import free_port
from app.settings import ROOT

LIMITS = {"ready (s)": 25.0, "first candidates after ready (s)": 60.0, "web process (MB resident)": 250.0}
GIVE_UP = 300.0


@dataclass(frozen=True)
class Run:
    """What one start measured: seconds, and megabytes resident after the first claim."""

    ready: float
    candidates: float
    prompts: float
    web: float
    all: float
    stop: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--clones", nargs="+", metavar="COMMIT", help="time `make demo` from fresh clones of these")
    options = parser.parse_args()
    if options.clones:
        print("| commit | from a fresh clone to ready (s) | packages |\n|---|---|---|")
        for commit in options.clones:
            seconds, packages = measure_clone(commit)
            print(f"| {commit} | {seconds:.0f} | {packages} |", flush=True)
        return 0
    runs = [measure() for _ in range(options.runs)]
    columns = {
        "ready (s)": [run.ready for run in runs],
        "first candidates after ready (s)": [run.candidates for run in runs],
        "prompts of all projects after ready (s)": [run.prompts for run in runs],
        "web process (MB resident)": [run.web for run in runs],
        "all processes (MB resident)": [run.all for run in runs],
        "stopped after (s)": [run.stop for run in runs],
    }
    print(f"{options.runs} runs on {psutil.cpu_count()} cores; load before: {psutil.getloadavg()[0]:.1f}\n")
    print("| measure | median | worst | at most |\n|---|---|---|---|")
    kept = True
    for name, values in columns.items():
        limit = LIMITS.get(name)
        kept &= limit is None or max(values) <= limit
        print(f"| {name} | {statistics.median(values):.1f} | {max(values):.1f} | {limit if limit else ''} |")
    return 0 if kept else 1


def measure() -> Run:
    """Start a demo, wait for candidates, look at its memory, stop it."""
    with tempfile.TemporaryDirectory(prefix="illume-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        port = free_port()
        command = [sys.executable, "-m", "app.cli", "demo", "--no-browser", "--port", str(port)]
        begun = time.monotonic()
        demo = subprocess.Popen([*command, "--data-dir", str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            await_ready(demo)
            ready = time.monotonic()
            await_candidates(port, folder)
            candidates = time.monotonic()
            await_prompts(port, folder)
            prompts = time.monotonic()
            web, everything = memory(demo.pid)
        finally:
            stopping = time.monotonic()
            demo.send_signal(signal.SIGTERM)
            demo.wait()
        stopped = time.monotonic()
    return Run(ready - begun, candidates - ready, prompts - ready, web, everything, stopped - stopping)


def measure_clone(commit: str) -> tuple[float, int]:
    """Seconds from a fresh clone of `commit` until its `make demo` is ready, and how many packages that installed."""
    with tempfile.TemporaryDirectory(prefix="illume-bench-", ignore_cleanup_errors=True) as name:
        folder, clone = Path(name), Path(name) / "clone"
        folder.chmod(0o711)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        subprocess.run(["git", "checkout", "--quiet", "--detach", commit], cwd=clone, check=True)
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        command = ["make", "demo", f"DEMO=--no-browser --port {free_port()} --data-dir {folder / 'data'}"]
        begun = time.monotonic()
        demo = subprocess.Popen(
            command, cwd=clone, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            await_ready(demo)
            seconds = time.monotonic() - begun
        finally:
            os.killpg(demo.pid, signal.SIGTERM)
            demo.wait()
        return seconds, len(list(clone.glob(".venv/lib/python*/site-packages/*.dist-info")))


def await_ready(demo: subprocess.Popen[str]) -> None:
    """Wait for the line that says so."""
    for line in demo.stdout or ():
        if line.startswith("ready: "):
            return
    raise SystemExit(f"The demo ended with exit code {demo.wait()}.")


def await_candidates(port: int, folder: Path) -> None:
    """Claim as the demo's critic until there is something to claim."""
    token = json.loads((folder / "demo-accounts.json").read_text())["critic"]["token"]
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/v1/projects/scenes/assignments",
        method="POST",
        headers={"Authorization": f"Bearer {token}"},
    )
    end = time.monotonic() + GIVE_UP
    while time.monotonic() < end:
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - our own server
            if answer.status == 201:
                return
        time.sleep(0.25)
    raise SystemExit(f"There were no candidates within {GIVE_UP:g} s.")


def await_prompts(port: int, folder: Path) -> None:
    """Ask for prompts of each project until it has some; a project gets all of its prompts at once."""
    token = json.loads((folder / "demo-accounts.json").read_text())["admin"]["token"]

    def items(path: str) -> list[dict[str, Any]]:
        url = f"http://127.0.0.1:{port}/api/v1/{path}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - our own server
            found: list[dict[str, Any]] = json.load(answer)["items"]
        return found

    end = time.monotonic() + GIVE_UP
    for project in items("projects"):
        while not items(f"projects/{project['slug']}/prompts?limit=1"):
            if time.monotonic() > end:
                raise SystemExit(f"{project['name']} had no prompts within {GIVE_UP:g} s.")
            time.sleep(0.25)


def memory(pid: int) -> tuple[float, float]:
    """Megabytes resident: the web process, and the demo with all it started."""
    demo = psutil.Process(pid)
    family = [demo, *demo.children(recursive=True)]
    web = next(process for process in family if process.cmdline()[-1:] == ["serve"])
    return web.memory_info().rss / 1e6, sum(process.memory_info().rss for process in family) / 1e6


if __name__ == "__main__":
    sys.exit(main())
