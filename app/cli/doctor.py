"""`illume doctor`: check everything an installation depends on, and say how to fix what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, LiteralString

import click
import psycopg
import redis
from sqlalchemy.exc import SQLAlchemyError

from app import broker
from app.cli.terminal import at_least_one, data_dir_option, say
from app.db import database_role, engine, migrations, poolers
from app.errors import DomainError
from app.processes.connect import connection_failure, services, use_kept_public_url
from app.processes.private_files import open_to_others
from app.services.kernel import secret_key
from app.services.kernel.store import Store, StoreAway, StoreMisnamed, redacted
from app.settings import ROOT, Settings, get_settings
from illume.options import MACHINE
from illume.tuning.accelerate_file import check_accelerate_file
from illume.tuning.job import JobError

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
@click.option(
    "--model", help="Only estimate how much memory this base model, a folder or a name on the hub, takes here."
)
@data_dir_option
def doctor(workers: int, *, skip_model: bool, model: str | None) -> int:
    """Check this installation and say how to fix what is wrong.

    Exits with 1 if it found a problem.
    """
    if model is not None:
        return report(estimate_memory(model))
    with services():
        use_kept_public_url(get_settings())
        return report(examine(get_settings(), processes=workers, models=not skip_model))


def report(findings: Iterable[Finding]) -> int:
    """Say what was found; 1 if there is a problem."""
    problems = 0
    for finding in findings:
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
        lambda: check_store(settings),
        lambda: check_database(settings),
        lambda: check_migrations(settings),
        lambda: check_pictures(settings),
        lambda: check_secret_key(settings),
        lambda: check_connections(settings, processes),
        lambda: check_broker(settings),
        lambda: check_public_url(settings),
        check_web_imports,
    ]
    if models:
        checks += [lambda: check_machine(settings), lambda: check_model(settings)]
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


def check_store(settings: Settings) -> Finding:
    """Whether an object can be written to the store, read and removed."""
    probe, url = b"a probe of illume doctor " + os.urandom(16), redacted(settings.store)
    remedy = (
        "Correct ILLUME_STORE_URL and what gives access to it. Images, imports and training rounds wait until then."
    )
    store, folder = Store(settings.store), settings.store_folder
    made = (
        []
        if folder is None
        else [path for path in (folder / sha256(probe).hexdigest()[:2], folder) if not path.exists()]
    )
    try:
        key = store.put_bytes(probe)
        kept = store.read_bytes(key)
        store.remove(key)
    except StoreMisnamed as error:
        return Finding("store", False, str(error), f"{remedy} Web servers and workers refuse to start.")
    except (StoreAway, OSError, DomainError) as error:
        reason = error.reason if isinstance(error, StoreAway) else str(error)
        return Finding("store", False, f"{url}: {reason}", remedy)
    finally:
        for path in made:  # whoever asks may be another account than the one that is to write there
            with contextlib.suppress(OSError):
                path.rmdir()
    if kept != probe:
        return Finding("store", False, f"{url}: what was written is not what is read", remedy)
    return Finding("store", True, str(folder or url))


def check_database(settings: Settings) -> Finding:
    """Whether the database responds, is new enough for `transaction_timeout`, and is ours for a whole connection."""
    try:
        url = engine.libpq_url(settings.database_url)
        with psycopg.connect(url, connect_timeout=3) as connection:
            version = connection.info.server_version
        shared = poolers.shares_connections(url)
    except (psycopg.Error, ValueError) as error:
        reason = connection_failure(error) if isinstance(error, psycopg.Error) else str(error)
        return Finding("database", False, reason, "Start it, or correct ILLUME_DATABASE_URL.")
    if version < 170000:
        return Finding("database", False, f"PostgreSQL {version // 10000}", "Illume needs PostgreSQL 17 or newer.")
    if shared:
        return Finding("database", False, poolers.SHARED, poolers.REMEDY)
    return Finding("database", True, f"PostgreSQL {version // 10000}.{version % 10000}")


def check_migrations(settings: Settings) -> Finding:
    """Whether the tables are those this code needs."""
    wanted = migrations.required_revision()
    try:
        found = migrations.current_revision(settings.database_url)
        obstacle = None if found == wanted else database_role.find_obstacle(engine.libpq_url(settings.database_url))
    except (SQLAlchemyError, psycopg.Error, ValueError):
        return Finding("migrations", False, "unknown until the database answers", "Fix the database first.")
    if found != wanted:
        detail = f"at {found or 'no revision'}, {wanted} needed"
        if obstacle is not None:
            remedy = f"{obstacle.remedy} Then run `illume db upgrade`."
            return Finding("migrations", False, f"{detail}. {obstacle.reason}", remedy)
        return Finding("migrations", False, detail, "Run `illume db upgrade`.")
    return Finding("migrations", True, f"at {found}")


def _first_row(settings: Settings, query: LiteralString) -> tuple[Any, ...] | None:
    """The first row of what the database answers. Raises psycopg.Error, or ValueError for an address that is none."""
    with psycopg.connect(engine.libpq_url(settings.database_url), connect_timeout=3) as connection:
        return connection.execute(query).fetchone()


def check_pictures(settings: Settings) -> Finding:
    """Whether the store has the picture that the database heard of last: machines that work together share one."""
    try:
        row = _first_row(settings, "SELECT sha256 FROM images ORDER BY created_at DESC LIMIT 1")
    except (psycopg.Error, ValueError):
        return Finding("pictures", False, "unknown until the database has its tables", "Fix the database first.")
    if row is None:
        return Finding("pictures", True, "none yet")
    try:
        is_there = Store(settings.store).has(str(row[0]))
    except (StoreAway, StoreMisnamed, OSError):
        return Finding("pictures", False, "unknown until the store answers", "Fix the store first.")
    if not is_there:
        return Finding(
            "pictures",
            False,
            f"the store {redacted(settings.store)} lacks the newest picture of this database",
            "Set ILLUME_STORE_URL to the folder or bucket that the other machines use, or mount that folder here.",
        )
    return Finding("pictures", True, "the newest one of the database is in the store")


def check_secret_key(settings: Settings) -> Finding:
    """Whether this machine has the key that the web server started with: machines that work together share one."""
    try:
        row = _first_row(settings, "SELECT key_check FROM installations")
    except (psycopg.Error, ValueError):
        return Finding("secret key", False, "unknown until the database has its tables", "Fix the database first.")
    if row is None:
        return Finding("secret key", True, "compared once a web server has started")
    if row[0] != secret_key.make_check(settings.secret_key):
        detail = "this machine has another one than the web server: a worker refuses to start"
        return Finding("secret key", False, detail, secret_key.REMEDY)
    return Finding("secret key", True, "the web server's")


def check_connections(settings: Settings, processes: int) -> Finding:
    """Whether PostgreSQL allows the connections of all web processes and workers; each has its own pool."""
    planned = (settings.pool_size + engine.EXTRA_CONNECTIONS) * processes + WORKER_CONNECTIONS + RESERVED
    try:
        row = _first_row(settings, "SELECT current_setting('max_connections')::int")
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
        with broker.connect(settings.redis_url, seconds=2) as client:
            version = client.info("server").get("redis_version", "?")
    except (redis.RedisError, ValueError) as error:
        return Finding(
            "broker", False, broker.reason_of(error), "Start Redis, or correct ILLUME_REDIS_URL. Work waits until then."
        )
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


def check_machine(settings: Settings) -> Finding:
    """Whether this machine can load models as its settings say: their device, numbers, attention and bits."""
    said = ask("illume.model.machine", machine_words(settings))
    if "setting" in said:
        return unavailable(settings, said["setting"], said["reason"])
    if "error" in said:
        return Finding("models", False, said["error"], "Set it up again: `make clean`, then `make demo`.")
    if settings.accelerate_config:
        try:
            check_accelerate_file(
                Path(settings.accelerate_config), quantization=settings.quantization, cards=said["cards"]
            )
        except JobError as error:
            remedy = "Correct ILLUME_ACCELERATE_CONFIG or the file: a worker for models refuses to start."
            return Finding("models", False, str(error), remedy)
    chosen = [f"{name}={value}" for name, value in settings.machine.items() if value != MACHINE[name]]
    return Finding("models", True, ", ".join([f"run on {said['device']} in {said['dtype']}", *chosen]))


def unavailable(settings: Settings, name: str, reason: str) -> Finding:
    """A setting of how models are loaded that this machine cannot meet."""
    remedy = f"Unset ILLUME_{name.upper()}, or provide what it needs: a worker for models refuses to start."
    return Finding("models", False, f"ILLUME_{name.upper()}={settings.machine[name]}: {reason}", remedy)


def machine_words(settings: Settings) -> list[str]:
    """The settings of how models are loaded, as options of a command of `illume`."""
    return [word for name, value in settings.machine.items() for word in (f"--{name.replace('_', '-')}", value)]


def ask(module: str, words: Sequence[str]) -> dict[str, Any]:
    """What a module of `illume` prints in a process of its own; its last words as `error` if it is no JSON."""
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    try:
        said: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {"error": (done.stderr.strip().splitlines() or ["no reason given"])[-1]}
    return said


def estimate_memory(model: str) -> Iterator[Finding]:
    """What a base model takes for sampling and for a training round, and on which devices of this machine it fits."""
    settings = get_settings()
    said = ask("illume.tuning.memory", [*machine_words(settings), "--", model])
    if "setting" in said:
        yield unavailable(settings, said["setting"], said["error"])
        return
    if "error" in said:
        yield Finding("model", False, said["error"], "Name a folder, or a model on the hub that writes about images.")
        return
    rows = said["devices"]
    first = rows[0]["estimate"]
    counted = (
        f"{first['parameters'] / 1e6:,.0f} million parameters, {first['adapter'] / 1e6:,.1f} million in an adapter"
    )
    yield Finding("model", True, f"{counted}; {first['token_bytes'] / 1e3:.0f} kB for each token of a text")
    is_enough = any(row["estimate"]["round"] <= row["device"]["free"] for row in rows)
    for row in rows:
        yield device_finding(row["device"], row["estimate"], is_enough=is_enough)


def device_finding(device: Mapping[str, Any], found: Mapping[str, Any], *, is_enough: bool) -> Finding:
    """Whether a model fits on a device. It is no problem where another one has room: `is_enough`."""
    free = device["free"]
    fits = ["sampling"] if found["sampling"] <= free else []
    if found["round"] <= free:
        fits.append("training rounds")
    elif found["round_checkpointed"] <= free:
        fits.append("training rounds of projects with the setting 'Save memory'")
    bits = "" if found["quantization"] == "none" else f" ({found['quantization']} weights)"
    detail = (
        f"{gigabytes(free)} free; about {gigabytes(found['sampling'])} for sampling in {found['dtype']}{bits}, "
        f"{gigabytes(found['round'])} for a training round "
        f"({gigabytes(found['round_checkpointed'])} with gradient checkpointing): "
        + (f"fits {' and '.join(fits)}" if fits else "too large")
    )
    if len(fits) == 2 or is_enough:
        return Finding(device["name"], True, detail)
    remedy = f"Free memory, use a device with {gigabytes(max(found['sampling'], found['round']))}, or a smaller model."
    return Finding(device["name"], False, detail, remedy)


def gigabytes(size: float) -> str:
    """A size as it is said."""
    return f"{size / 1e9:,.1f} GB"


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a separate Python process, offline."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
