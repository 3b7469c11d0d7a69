"""The database and broker of a command: those of the environment, of the running demo, or temporary ones."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import psycopg

from app.db import database_role, engine, poolers, sessions
from app.processes.embedded import SERVICES_FILE, Embedded, InUse
from app.processes.postgres_install import EmbeddedError
from app.processes.private_files import private_files
from app.settings import Settings, get_settings, url_host
from illume.files import write_text

STARTING_SECONDS = 30.0
PUBLIC_URL_FILE = "public.url"


class Refused(RuntimeError):
    """A command cannot do what it was asked to do. The text is a sentence a person can act on, `code` the exit code."""

    def __init__(self, text: str, *, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


class Stopped(BaseException):
    """This process was asked to stop. Not an `Exception`, so that no handler mistakes it for a failure."""


def set_environment(values: Mapping[str, str]) -> None:
    """Set variables for this process and its children, and discard the settings read before."""
    os.environ.update(values)
    forget_settings()


def forget_settings() -> None:
    """Make this process read its settings again, and close the connections made with the old ones."""
    if engine.get_engine.cache_info().currsize:
        engine.get_engine().dispose()
    get_settings.cache_clear()
    engine.get_engine.cache_clear()
    sessions.session_factory.cache_clear()


@contextlib.contextmanager
def services(*, share: bool = True) -> Iterator[Embedded | None]:
    """Point the settings at a database and a broker during the block.

    Yields the embedded services that this process started and has to supervise; None if another process runs them.
    Without `share` this process needs the data directory for itself: raises Refused if another one holds it.
    """
    with private_files(get_settings()), connected(share=share) as embedded:
        yield embedded


@contextlib.contextmanager
def connected(*, share: bool) -> Iterator[Embedded | None]:
    """The services that `services` yields."""
    ensure_secret_key(get_settings())
    settings = get_settings()
    if share and settings.database_url and settings.redis_url:
        yield None
        return
    embedded = Embedded(settings.data_dir, with_postgres=not settings.database_url, with_redis=not settings.redis_url)
    try:
        embedded.start()
    except InUse as error:
        if not share:
            raise Refused(str(error), code=2) from error
        use_services(find_running_urls(settings.data_dir, error))
        yield None
        return
    except EmbeddedError as error:
        raise Refused(str(error), code=2) from error
    try:
        use_services({"database_url": embedded.database_url, "redis_url": embedded.redis_url})
        yield embedded
    finally:
        forget_settings()
        embedded.stop()


def use_services(urls: Mapping[str, str]) -> None:
    """Point the settings at `urls`, except where the environment names a service."""
    settings = get_settings()
    found = {
        "ILLUME_DATABASE_URL": settings.database_url or urls.get("database_url", ""),
        "ILLUME_REDIS_URL": settings.redis_url or urls.get("redis_url", ""),
    }
    set_environment(found)


def find_running_urls(data_dir: Path, refusal: InUse) -> dict[str, str]:
    """The service addresses of the process that holds `data_dir`; it may still be starting them."""
    path = data_dir / SERVICES_FILE
    end = time.monotonic() + STARTING_SECONDS
    while time.monotonic() < end:
        try:
            return dict(json.loads(path.read_text()))
        except FileNotFoundError:
            time.sleep(0.1)
        except PermissionError:
            raise Refused(f"{refusal} It belongs to another user.", code=2) from refusal
    raise Refused(str(refusal), code=2) from refusal


def ensure_secret_key(settings: Settings) -> None:
    """If the environment has no secret key, generate one and keep it in the data directory. Raises Refused."""
    if settings.secret_key:
        return
    path = settings.data_dir / "secret.key"
    with writing_to(settings.data_dir):
        if not path.exists():
            write_text(path, secrets.token_urlsafe(48), private=True)
        set_environment({"ILLUME_SECRET_KEY": path.read_text().strip()})


@contextlib.contextmanager
def writing_to(data_dir: Path) -> Iterator[None]:
    """Make the data directory for the block. Raises Refused where nothing can be written there."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise Refused(
            f"The data directory {data_dir} cannot be written to ({error.strerror}). "
            "Choose another: --data-dir DIR, or ILLUME_DATA_DIR=DIR.",
            code=2,
        ) from error


def ensure_public_url(settings: Settings, *, host: str, port: int) -> None:
    """If the environment has no public URL, use the one in the data directory; made here at the first start.

    One that only this machine can open follows the host and the port of each start. Raises Refused.
    """
    set_environment({"ILLUME_HOST": host, "ILLUME_PORT": str(port)})
    if settings.public_url:
        return
    path = settings.data_dir / PUBLIC_URL_FILE
    kept = path.read_text().strip() if path.exists() else ""
    if not kept or is_loopback_url(kept):
        kept = f"http://{url_host(host)}:{port}"
        with writing_to(settings.data_dir):
            write_text(path, f"{kept}\n")
    set_environment({"ILLUME_PUBLIC_URL": kept})


def use_kept_public_url(settings: Settings) -> None:
    """If the environment has no public URL, use the one that the server made, if it has been started before."""
    path = settings.data_dir / PUBLIC_URL_FILE
    if not settings.public_url and path.exists():
        set_environment({"ILLUME_PUBLIC_URL": path.read_text().strip()})


def is_loopback_url(url: str) -> bool:
    """Whether only this machine can open `url`."""
    try:
        return ipaddress.ip_address(urlsplit(url).hostname or "").is_loopback
    except ValueError:
        return False


def refuse_used_port(host: str, port: int) -> None:
    """Raise Refused if another process listens on `port` of `host`."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise Refused(
                f"Port {port} of {host} cannot be used ({error.args[-1]}). Choose another with --port.", code=2
            ) from error


@contextlib.contextmanager
def until_stopped() -> Iterator[Callable[[], None]]:
    """Turn SIGINT, SIGTERM and SIGHUP into the end of the block. Call the yielded function to ignore later signals."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # the process may run under `nohup`
        signals.append(signal.SIGHUP)

    def stop(_number: int, _frame: FrameType | None) -> None:
        ignore()
        raise Stopped

    def ignore() -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)

    before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield ignore
    except Stopped:
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def connection_failure(error: psycopg.Error) -> str:
    """Why the database did not answer, in one line: the driver's last line that is not a hint."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reasons = [line for line in lines if not line.startswith("\t")] or lines
    return reasons[-1].strip()


def wait_for_database(settings: Settings, *, say: Callable[[str], None]) -> None:
    """Wait until the database answers, and report it.

    Raises Refused after `settings.database_wait` seconds, and for a pooler that takes away what connections hold.
    """
    try:
        url = engine.libpq_url(settings.database_url)
    except ValueError as error:
        raise Refused(f"{error}.", code=2) from error
    end = time.monotonic() + settings.database_wait
    said = 0.0
    while True:
        try:
            if poolers.shares_connections(url):
                raise Refused(f"{poolers.SHARED} {poolers.REMEDY}", code=2)
            return
        except psycopg.OperationalError as error:
            reason = connection_failure(error)
        left = end - time.monotonic()
        if left <= 0:
            raise Refused(
                f"The database did not answer within {settings.database_wait:g} s ({reason}). "
                "Check that it runs and that ILLUME_DATABASE_URL points to it."
            )
        if time.monotonic() - said > 5:
            say(f"The database does not answer yet; waiting up to {left:.0f} s more.")
            said = time.monotonic()
        time.sleep(min(0.5, left))


def refuse_few_rights(settings: Settings) -> None:
    """Raise Refused where the role of the database may not make the tables, with what an administrator has to do."""
    try:
        found = database_role.find_obstacle(engine.libpq_url(settings.database_url))
    except psycopg.Error as error:
        raise Refused(f"The database does not say what its role may do: {connection_failure(error)}") from error
    if found is not None:
        raise Refused(f"{found.reason} {found.remedy}", code=2)
