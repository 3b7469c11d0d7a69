"""Running the web server: connections without delay, several processes, and a quiet end."""

from __future__ import annotations

import contextlib
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

from app.processes import serving
from app.settings import ROOT
from tests.conftest import CommittedDatabase

PATIENCE = 120.0
LOG = "web.log"


class TestSocket:
    def test_an_accepted_connection_sends_at_once(self) -> None:
        config = serving.server_config(host="127.0.0.1", port=0)
        with config.bind_socket() as listening:
            listening.listen()
            with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


class TestServe:
    @pytest.mark.parametrize("processes", [1, 2])
    def test_it_answers_and_stops_when_told(
        self, committed_db: CommittedDatabase, tmp_path: Path, processes: int
    ) -> None:
        port, server = started(committed_db, tmp_path, processes)
        try:
            wait_for(port, server, tmp_path / LOG)
            family = psutil.Process(server.pid).children(recursive=True)
            assert sum("spawn_main" in " ".join(one.cmdline()) for one in family) == (2 if processes == 2 else 0)
            server.send_signal(signal.SIGTERM)
            assert server.wait(PATIENCE) == 0
            _, alive = psutil.wait_procs(family, timeout=PATIENCE)
            assert not alive
            assert "Traceback" not in (tmp_path / LOG).read_text()
        finally:
            server.kill()
            server.wait()

    def test_none_outlives_the_process_that_started_it(self, committed_db: CommittedDatabase, tmp_path: Path) -> None:
        port, server = started(committed_db, tmp_path, 2)
        family: list[psutil.Process] = []
        try:
            wait_for(port, server, tmp_path / LOG)
            family = psutil.Process(server.pid).children(recursive=True)
            server.kill()
            server.wait()
            _, alive = psutil.wait_procs(family, timeout=PATIENCE)
            assert not alive
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
        finally:
            server.kill()
            server.wait()
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()


def started(database: CommittedDatabase, folder: Path, processes: int) -> tuple[int, subprocess.Popen[bytes]]:
    """A web server that is starting: its port, and its process, which logs to `LOG` in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--workers", str(processes)]
    environment = {**os.environ, "ILLUME_DATABASE_URL": database.url}
    with (folder / LOG).open("wb") as file:
        return port, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)


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
