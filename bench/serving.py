"""The web server in separate processes, for load benchmarks."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from app.settings import ROOT


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(port: int, processes: int, log: Path) -> subprocess.Popen[bytes]:
    """The web server as `illume serve` runs it, once it answers."""
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--workers", str(processes)]
    with log.open("wb") as file:
        server = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5):
                return server
        except (urllib.error.URLError, OSError):
            if server.poll() is not None:
                break
            time.sleep(0.1)
    raise SystemExit(f"the server did not start:\n{log.read_text()}")


def memory_mb(server: subprocess.Popen[bytes]) -> float:
    """Resident memory of the largest web process."""
    process = psutil.Process(server.pid)
    return max(one.memory_info().rss for one in [process, *process.children(recursive=True)]) / 2**20
