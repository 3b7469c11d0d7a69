"""An installation of a checkout: its database, web server and workers, all started by its own command line.

Nothing of `app` is imported here, so that a checkout of another commit can be served and compared with this one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.serving import free_port

START_SECONDS = 120.0
WORKERS = (("worker", "--queues", "default"), ("worker", "--queues", "model"), ("beat",))


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor seconds of the web processes and of PostgreSQL."""

    web: float
    postgres: float

    def since(self, before: Usage) -> Usage:
        """What was used after `before`."""
        return Usage(self.web - before.web, self.postgres - before.postgres)


@dataclass
class Installation:
    """One checkout with a data directory of its own. The database and the broker live as long as the web server."""

    root: Path
    folder: Path
    port: int = 0
    database_url: str = ""
    _environment: dict[str, str] = field(init=False)
    _server: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o711)  # as root, PostgreSQL runs as another account and has to pass
        key = self.folder / "bench.key"
        if not key.exists():
            key.write_text(secrets.token_hex(32), encoding="ascii")
        own = {
            "ILLUME_DATA_DIR": str(self.folder),
            "ILLUME_SECRET_KEY": key.read_text(encoding="ascii"),
            "PYTHONPATH": str(self.root),
            "PYTHONUNBUFFERED": "1",
        }
        others = {name: value for name, value in os.environ.items() if not name.startswith("ILLUME_")}
        self._environment = others | own

    @property
    def base_url(self) -> str:
        """Where the web server answers."""
        return f"http://127.0.0.1:{self.port}"

    def run_command(self, *words: str) -> None:
        """Run a command of the checkout's command line to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "app.cli", *words],
            cwd=self.root,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"illume {' '.join(words)} in {self.root}:\n{done.stdout.decode()}")

    def migrate(self) -> None:
        """Bring the tables to the checkout's revision."""
        self.run_command("db", "upgrade")

    @contextlib.contextmanager
    def serving(self, processes: int) -> Iterator[None]:
        """Run PostgreSQL, Redis and the web server while the block runs."""
        self.port = free_port()
        self._server = self._start("web", "serve", "--port", str(self.port), "--workers", str(processes))
        try:
            self._await_server(self._server)
            urls = json.loads((self.folder / "services.json").read_text(encoding="utf-8"))
            self.database_url = urls["database_url"]
            yield
        finally:
            stop([self._server], seconds=60)
            self._server = None

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Run the workers and the clock while the block runs."""
        workers = [self._start(words[-1], *words) for words in WORKERS]
        try:
            yield
        finally:
            stop(workers, seconds=30)

    def usage(self) -> Usage:
        """What the server's processes used so far."""
        web, postgres = 0.0, 0.0
        assert self._server is not None
        for process in psutil.Process(self._server.pid).children(recursive=True):
            try:
                times, name = process.cpu_times(), process.name()
            except psutil.NoSuchProcess:
                continue
            # Children that ended count in their parent.
            used = times.user + times.system + times.children_user + times.children_system
            if name.startswith("postgres"):
                postgres += used
            elif not name.startswith("redis"):
                web += used
        return Usage(web, postgres)

    def _start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"bench-{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "app.cli", *words],
                cwd=self.root,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _await_server(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and server.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.base_url}/readyz", timeout=5):  # noqa: S310 - our own server
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        log = (self.folder / "logs" / "bench-web.log").read_text(encoding="utf-8", errors="replace")
        raise SystemExit(f"the server of {self.root} did not start:\n{log[-4000:]}")


def stop(processes: Sequence[subprocess.Popen[bytes]], *, seconds: float) -> None:
    """Ask processes to end, and kill what does not."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
