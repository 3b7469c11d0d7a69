"""Running the web server: connections without delay, several processes, and a quiet end."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from app.processes import connect, serving
from app.processes.connect import forget_settings
from app.settings import ROOT, Settings
from tests.conftest import CommittedDatabase

PATIENCE = 120.0
IDLE_PATIENCE = 20.0
"""Less than the time a connection may be idle by default."""
LOG = "web.log"


class TestSocket:
    def test_an_accepted_connection_sends_at_once(self) -> None:
        config = serving.server_config(host="127.0.0.1", port=0)
        with config.bind_socket() as listening:
            listening.listen()
            with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


class TestPublicUrl:
    @pytest.fixture
    def settings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Settings]]:
        """Makes the settings of a start with these variables, in a data directory of the test's own."""
        for name in ("ILLUME_HOST", "ILLUME_PORT", "ILLUME_PUBLIC_URL"):
            monkeypatch.setenv(name, "")  # so that it is what it was after the test
            monkeypatch.delenv(name)

        def start(host: str = "127.0.0.1", port: int = 8000, **variables: str) -> Settings:
            os.environ.pop("ILLUME_PUBLIC_URL", None)
            first = Settings(data_dir=tmp_path, **variables)  # type: ignore[arg-type]
            connect.ensure_public_url(first, host=host, port=port)
            return Settings(data_dir=tmp_path, **variables)  # type: ignore[arg-type]

        yield start
        forget_settings()

    def test_it_is_made_at_the_first_start_and_kept(self, settings: Callable[..., Settings], tmp_path: Path) -> None:
        assert settings("::", 8000).address == "http://[::1]:8000"
        assert settings("127.0.0.1", 8001).address == "http://127.0.0.1:8001", (
            "only this machine knows it: it follows the port"
        )
        assert settings("192.0.2.7", 80).address == "http://192.0.2.7:80"
        assert settings("127.0.0.1", 9000).address == "http://192.0.2.7:80"  # people have links to it
        assert (tmp_path / connect.PUBLIC_URL_FILE).read_text() == "http://192.0.2.7:80\n"

    def test_the_environment_names_it(self, settings: Callable[..., Settings], tmp_path: Path) -> None:
        assert settings(public_url="https://illume.example.org/").address == "https://illume.example.org"
        assert not (tmp_path / connect.PUBLIC_URL_FILE).exists()

    @pytest.mark.parametrize("url", ["illume.example.org", "ftp://example.org", "https://example.org/?a=b", "https://"])
    def test_what_is_no_address_is_refused(self, url: str) -> None:
        with pytest.raises(ValidationError, match="write it as https"):
            Settings(public_url=url)

    @pytest.mark.parametrize("text", ["nonsense", "10.0.0.1/8", "*"])
    def test_what_is_no_network_is_refused(self, text: str) -> None:
        with pytest.raises(ValidationError):
            Settings(trusted_proxies=text)


class TestServe:
    def test_it_listens_on_ipv6(self, committed_db: CommittedDatabase, tmp_path: Path) -> None:
        port, server = started(committed_db, tmp_path, 1, ILLUME_HOST="[::1]")
        try:
            wait_for(port, server, tmp_path / LOG, host="[::1]")
            command = [sys.executable, "-m", "app.cli", "serve", "--check"]
            environment = {**os.environ, "ILLUME_HOST": "::1", "ILLUME_PORT": str(port)}
            assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0
        finally:
            server.kill()
            server.wait()

    def test_it_closes_idle_connections(self, committed_db: CommittedDatabase, tmp_path: Path) -> None:
        assert serving.server_config(host="127.0.0.1", port=0).timeout_keep_alive == 30
        port, server = started(committed_db, tmp_path, 1, ILLUME_IDLE_SECONDS="1")
        try:
            wait_for(port, server, tmp_path / LOG)
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=IDLE_PATIENCE)
            client.connect()
            opened = client.sock
            with contextlib.closing(opened):
                for _ in range(2):  # it stays open for requests that follow soon
                    client.request("GET", "/healthz")
                    assert client.getresponse().read() == b'{"status":"ok"}'
                    assert client.sock is opened
                assert opened.recv(100) == b""
        finally:
            server.kill()
            server.wait()

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


def started(
    database: CommittedDatabase, folder: Path, processes: int, **variables: str
) -> tuple[int, subprocess.Popen[bytes]]:
    """A web server that is starting: its port, and its process, which logs to `LOG` in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--workers", str(processes)]
    environment = {**os.environ, "ILLUME_DATABASE_URL": database.url, **variables}
    with (folder / LOG).open("wb") as file:
        return port, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path, *, host: str = "127.0.0.1") -> None:
    """Wait until the server says that it is ready."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"http://{host}:{port}/readyz", timeout=10) as answer:
                assert answer.status == 200
                return
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
