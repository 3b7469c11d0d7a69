"""How the web server is run: connections that send at once, several processes, and a quiet end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from app import serving
from app.settings import ROOT
from tests.conftest import CommittedDatabase

PATIENCE = 120.0


class TestSocket:
    def test_an_accepted_connection_sends_at_once(self) -> None:
        config = serving.config_of(host="127.0.0.1", port=0)
        with config.bind_socket() as listening:
            listening.listen()
            with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


class TestServe:
    @pytest.mark.parametrize("processes", [1, 2])
    def test_it_answers_and_stops_when_told(
        self, committed_db: CommittedDatabase, tmp_path: Path, processes: int
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--workers", str(processes)]
        log = tmp_path / "web.log"
        with log.open("wb") as file:
            server = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, "ILLUME_DATABASE_URL": committed_db.url}, stdout=file, stderr=file
            )
        try:
            wait_for(port, server, log)
            family = psutil.Process(server.pid).children(recursive=True)
            assert sum("spawn_main" in " ".join(one.cmdline()) for one in family) == (2 if processes == 2 else 0)
            server.send_signal(signal.SIGTERM)
            assert server.wait(PATIENCE) == 0
            _, alive = psutil.wait_procs(family, timeout=PATIENCE)
            assert not alive
            assert "Traceback" not in log.read_text()
        finally:
            server.kill()
            server.wait()


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server says that it is ready."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
                assert answer.status == 200
                return
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
