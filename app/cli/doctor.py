"""`illume doctor`: check everything an installation depends on, and say how to fix what is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click
import psycopg
import redis
from sqlalchemy.exc import SQLAlchemyError

from app.cli.terminal import at_least_one, data_dir_option, say
from app.db import engine, migrations
from app.processes.connect import connection_failure, services, use_kept_public_url
from app.processes.private_files import open_to_others
from app.settings import ROOT, Settings, get_settings

HEAVY = ("torch", "transformers", "peft")
RESERVED = 5  # connections that PostgreSQL keeps for superusers, and some for commands
WORKER_CONNECTIONS = 12  # of three workers: for tasks, heartbeats and queries
FREE_BYTES = 1 << 30


@click.command()
@click.option(
    "--workers",
    type=int,
    default=1,
    show_default=True,
    callback=at_least_one,
    help="How many web processes `illume serve` will run.",
)
@click.option("--skip-model", is_flag=True, help="Do not load the starter model.")
@data_dir_option
def doctor(workers: int, *, skip_model: bool) -> int:
    """Check this installation and say how to fix what is wrong.

    Exits with 1 if it found a problem.
    """
    problems = 0
    with services():
        use_kept_public_url(get_settings())
        for finding in examine(get_settings(), processes=workers, models=not skip_model):
            say(f"{'ok     ' if finding.ok else 'PROBLEM'}  {finding.what}: {finding.detail}")
            if not finding.ok:
                say(f"         {finding.remedy}")
                problems += 1
    return 1 if problems else 0


@dataclass(frozen=True)
class Finding:
    """The result of a check. `remedy` says how to fix it if it is not `ok`."""

    what: str
    ok: bool
    detail: str
    remedy: str = ""


def examine(settings: Settings, *, processes: int = 1, models: bool = True) -> Iterator[Finding]:
    """Run independent checks one after the other, for an installation with `processes` web processes."""
    checks: list[Callable[[], Finding]] = [
        lambda: check_data_dir(settings),
        lambda: check_database(settings),
        lambda: check_migrations(settings),
        lambda: check_connections(settings, processes),
        lambda: check_broker(settings),
        lambda: check_public_url(settings),
        check_web_imports,
    ]
    if models:
        checks.append(lambda: check_model(settings))
    for check in checks:
        yield check()


def check_data_dir(settings: Settings) -> Finding:
    """Whether the data directory can be written to and has room."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.data_dir):
            free = shutil.disk_usage(settings.data_dir).free
    except OSError as error:
        remedy = "Choose another with ILLUME_DATA_DIR, or give this user the right to write there."
        return Finding("data directory", False, f"{settings.data_dir}: {error.strerror}", remedy)
    opened = open_to_others(settings)
    if opened:
        return Finding(
            "data directory",
            False,
            f"other accounts can enter {opened[0]}",
            "Start a server or a worker as its owner, which closes it to others, or run `chmod -R go= FOLDER`.",
        )
    if free < FREE_BYTES:
        return Finding("data directory", False, f"{free >> 20} MB are free", "Free at least 1 GB there.")
    return Finding("data directory", True, f"{settings.data_dir}, {free >> 30} GB free")


def check_database(settings: Settings) -> Finding:
    """Whether the database responds and is new enough for `transaction_timeout`."""
    try:
        with psycopg.connect(engine.libpq_url(settings.database_url), connect_timeout=3) as connection:
            version = connection.info.server_version
    except (psycopg.Error, ValueError) as error:
        reason = connection_failure(error) if isinstance(error, psycopg.Error) else str(error)
        return Finding("database", False, reason, "Start it, or correct ILLUME_DATABASE_URL.")
    if version < 170000:
        return Finding("database", False, f"PostgreSQL {version // 10000}", "Illume needs PostgreSQL 17 or newer.")
    return Finding("database", True, f"PostgreSQL {version // 10000}.{version % 10000}")


def check_migrations(settings: Settings) -> Finding:
    """Whether the tables are those this code needs."""
    wanted = migrations.required_revision()
    try:
        found = migrations.current_revision(settings.database_url)
    except (SQLAlchemyError, ValueError):
        return Finding("migrations", False, "unknown until the database answers", "Fix the database first.")
    if found != wanted:
        return Finding("migrations", False, f"at {found or 'no revision'}, {wanted} needed", "Run `illume db upgrade`.")
    return Finding("migrations", True, f"at {found}")


def check_connections(settings: Settings, processes: int) -> Finding:
    """Whether PostgreSQL allows the connections of all web processes and workers; each has its own pool."""
    planned = (settings.pool_size + engine.EXTRA_CONNECTIONS) * processes + WORKER_CONNECTIONS + RESERVED
    try:
        with psycopg.connect(engine.libpq_url(settings.database_url), connect_timeout=3) as connection:
            row = connection.execute("SELECT current_setting('max_connections')::int").fetchone()
    except (psycopg.Error, ValueError):
        return Finding("connections", False, "unknown until the database answers", "Fix the database first.")
    allowed = int(row[0]) if row else 0
    detail = f"up to {planned} of {allowed} for {processes} web process(es) and three workers"
    if planned > allowed:
        remedy = "Raise max_connections of PostgreSQL, or lower ILLUME_POOL_SIZE or the number of web processes."
        return Finding("connections", False, detail, remedy)
    return Finding("connections", True, detail)


def check_broker(settings: Settings) -> Finding:
    """Whether Redis responds."""
    try:
        with redis.Redis.from_url(settings.redis_url, socket_connect_timeout=2, socket_timeout=2) as client:
            version = client.info("server").get("redis_version", "?")
    except (redis.RedisError, ValueError) as error:
        return Finding("broker", False, str(error), "Start Redis, or correct ILLUME_REDIS_URL. Work waits until then.")
    return Finding("broker", True, f"Redis {version}")


def check_public_url(settings: Settings) -> Finding:
    """Which address links name, and whether cookies keep to https where people use it."""
    if not settings.public_url:
        return Finding("public URL", True, f"set when the server first starts; until then {settings.address}")
    if settings.public_url.startswith("https:") and not settings.secure_cookies:
        remedy = "Set ILLUME_SECURE_COOKIES=true, so that browsers send cookies over https only."
        return Finding("public URL", False, f"{settings.public_url}, but cookies would also be sent over http", remedy)
    proxies = settings.trusted_proxies or "none"
    return Finding("public URL", True, f"{settings.public_url}; trusted proxies: {proxies}")


def check_web_imports() -> Finding:
    """Whether the web process stays small: it must not import a model library."""
    code = f"import sys, app.main; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = python(code)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        return Finding("web process", False, lines[-1], "Set it up again: `make clean`, then `make demo`.")
    found = done.stdout.split()
    if found:
        return Finding(
            "web process", False, f"imports {', '.join(found)}", "Please report this: it is a bug in Illume."
        )
    return Finding("web process", True, "imports no model library")


def check_model(settings: Settings) -> Finding:
    """Whether the starter model loads, in a process of its own."""
    model = settings.starter_dir / "model"
    code = (
        "from transformers import AutoModelForImageTextToText as M, AutoProcessor as P\n"
        f"M.from_pretrained({str(model)!r}, trust_remote_code=False, use_safetensors=True)\n"
        f"P.from_pretrained({str(model)!r}, trust_remote_code=False, backend='pil')"
    )
    done = python(code)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        return Finding("starter model", False, lines[-1], f"Restore {model} from the repository.")
    return Finding("starter model", True, "loads")


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a separate Python process, offline."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
