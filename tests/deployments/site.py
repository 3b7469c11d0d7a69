"""An installation of processes: how they are started, commands beside them, and the three cases of the walk."""

from __future__ import annotations

import contextlib
import os
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.processes.embedded import Embedded, free_port
from app.settings import ROOT
from tests.chaos.installation import ENVIRONMENT, make_starter, remove_cluster
from tests.deployments.servers import (
    add_database,
    copy_bucket,
    listens,
    make_certificates,
    nginx,
    postgres,
    running,
    s3_client,
    s3_server,
    server_below,
    tls_redis,
)

BUCKET = "illume-store"
START_SECONDS = 90.0
ADMIN, PASSWORD = "admin@example.org", "a password for tests"


@dataclass(frozen=True)
class Site:
    """An installation: its public address, the port behind that, and the environment that all its processes share.

    `elsewhere` makes an empty database and a copy of what no backup holds, and returns what names them.
    """

    url: str
    port: int
    folder: Path
    environment: Mapping[str, str]
    elsewhere: Callable[[], Mapping[str, str]]
    authority: Path | None = None

    def illume(self, *words: str, feed: str = "", **more: str) -> str:
        """Run a command to its end; what it printed."""
        command = [sys.executable, "-m", "app.cli", *words]
        environment = {**clean_environment(), **self.environment, **more}
        done = subprocess.run(command, cwd=ROOT, env=environment, input=feed, capture_output=True, text=True)
        assert done.returncode == 0, f"illume {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def admin_token(self) -> str:
        """Make the tables and an admin. Returns a token of theirs."""
        self.illume("db", "upgrade")
        self.illume("user", "add", ADMIN, "--role", "admin", "--password-stdin", feed=PASSWORD)
        return self.illume("token", "add", ADMIN, "--scope", "admin").split()[-1]

    def api(self, token: str) -> httpx.Client:
        """A client of its REST interface."""
        verify = ssl.create_default_context(cafile=self.authority) if self.authority else True
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=f"{self.url}/api/v1", headers=headers, verify=verify, timeout=60)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Its web server, its workers and its scheduler."""
        with serving(self.port, self.folder, self.environment), contextlib.ExitStack() as stack:
            for name, words in (
                ("default", ("worker", "--queues", "default")),
                ("model", ("worker", "--queues", "model")),
                ("beat", ("beat",)),
            ):
                stack.enter_context(process(words, self.folder / f"{name}.log", self.environment, lambda: True))
            yield


def clean_environment() -> dict[str, str]:
    """The environment without settings of Illume and of its store."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("ILLUME_", "AWS_"))}


@contextlib.contextmanager
def process(
    words: tuple[str, ...], log: Path, environment: Mapping[str, str], is_ready: Callable[[], bool]
) -> Iterator[None]:
    """A process of Illume, from when it is ready."""
    command = [sys.executable, "-m", "app.cli", *words]
    env = {**clean_environment(), "PYTHONPATH": str(ROOT), **environment}
    with running(command, log, is_ready, env=env, seconds=START_SECONDS):
        yield


@contextlib.contextmanager
def serving(port: int, folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """The web server."""
    with process(("serve", "--port", str(port)), folder / "illume.log", environment, lambda: listens(port)):
        yield


def behind_proxy(url: str, *, trusted: str = "127.0.0.1") -> dict[str, str]:
    """The settings of a web server that people reach at `url` by TLS."""
    return {"ILLUME_PUBLIC_URL": url, "ILLUME_SECURE_COOKIES": "true", "ILLUME_TRUSTED_PROXIES": trusted}


# Cases


@contextlib.contextmanager
def services(folder: Path) -> Iterator[dict[str, str]]:
    """A plain PostgreSQL and Redis of this case's own, as settings."""
    home = folder / "services"
    home.mkdir(mode=0o711)
    try:
        with Embedded(home, durable=False) as found:
            yield {"ILLUME_DATABASE_URL": found.database_url, "ILLUME_REDIS_URL": found.redis_url}
    finally:
        remove_cluster(home)


def settings(folder: Path, model: Path) -> dict[str, str]:
    """What the processes of each case share: short times, a small model, a key, and a store in a folder."""
    return {
        **ENVIRONMENT,
        "ILLUME_STARTER_DIR": str(make_starter(folder / "starter", model)),
        "ILLUME_DATA_DIR": str(folder / "data"),
        "ILLUME_STORE_URL": str(folder / "store"),
        "ILLUME_SECRET_KEY": "a key for tests only, long enough to sign with",
    }


def empty_one(folder: Path, url: str) -> dict[str, str]:
    """Another machine beside the database of `url`: an empty database, and an empty folder for its store."""
    return {
        "ILLUME_DATABASE_URL": add_database(url, "restored"),
        "ILLUME_DATA_DIR": str(folder / "restored"),
        "ILLUME_STORE_URL": str(folder / "restored-store"),
    }


@contextlib.contextmanager
def bare(folder: Path, model: Path) -> Iterator[Site]:
    """Web server, workers and scheduler on one machine, with nothing before or beside them."""
    port = free_port()
    with services(folder) as found:
        environment = {**settings(folder, model), **found}
        url = found["ILLUME_DATABASE_URL"]
        yield Site(f"http://127.0.0.1:{port}", port, folder, environment, lambda: empty_one(folder, url))


@contextlib.contextmanager
def sub_path(folder: Path, model: Path) -> Iterator[Site]:
    """The same behind nginx, which ends TLS and serves it below a path."""
    certificates = make_certificates(folder / "certificates")
    port, public = free_port(), free_port()
    address = f"https://127.0.0.1:{public}/illume"
    server = server_below(port)
    with services(folder) as found, nginx(folder / "nginx", certificates, server, port=public):
        environment = {**settings(folder, model), **found, **behind_proxy(address)}
        url = found["ILLUME_DATABASE_URL"]
        yield Site(address, port, folder, environment, lambda: empty_one(folder, url), certificates.authority)


@contextlib.contextmanager
def tls(folder: Path, model: Path) -> Iterator[Site]:
    """The same with a PostgreSQL, a Redis and a bucket that are reached by TLS alone."""
    certificates = make_certificates(folder / "certificates")
    port = free_port()
    with (
        postgres(certificates) as url,
        tls_redis(folder / "redis", certificates) as broker,
        s3_server(folder / "s3", certificates) as variables,
    ):
        s3_client(variables).create_bucket(Bucket=BUCKET)
        environment = {
            **settings(folder, model),
            **variables,
            "ILLUME_DATABASE_URL": url,
            "ILLUME_REDIS_URL": broker,
            "ILLUME_STORE_URL": f"s3://{BUCKET}/store",
        }

        def elsewhere() -> dict[str, str]:
            copy_bucket(variables, BUCKET, f"{BUCKET}-copy")
            return {**empty_one(folder, url), "ILLUME_STORE_URL": f"s3://{BUCKET}-copy/store"}

        yield Site(f"http://127.0.0.1:{port}", port, folder, environment, elsewhere)


CASES: dict[str, Callable[[Path, Path], contextlib.AbstractContextManager[Site]]] = {
    "bare": bare,
    "nginx, sub-path and TLS": sub_path,
    "PostgreSQL, Redis and bucket by TLS": tls,
}


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that other accounts may pass through."""
    with tempfile.TemporaryDirectory(prefix="illume-deployment-") as name:
        Path(name).chmod(0o711)
        yield Path(name)
