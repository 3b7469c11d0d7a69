"""Everything of an installation in one file, and back: PostgreSQL's dump of the database, and the store's folder."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from app import migrate
from app.cluster import binaries_for, clean_environment
from app.connect import Refused
from app.db import sqlalchemy_url
from app.settings import Settings

ABOUT = "backup.json"
DUMP = "database.dump"
STORE = "store"
SECRET = "secret.key"  # noqa: S105 - a file's name


@dataclass(frozen=True)
class Summary:
    """What a backup holds. Without `store` the objects are elsewhere, and need a backup of their own."""

    made_at: str
    revision: str | None
    objects: int
    store: bool


def plain_url(url: str) -> str:
    """`url` as PostgreSQL's own programs take it."""
    return sqlalchemy_url(url).replace("postgresql+psycopg://", "postgresql://", 1)


def backup(settings: Settings, target: Path) -> Summary:
    """Write `target`, a tar file; while it is written others go on working. Raises Refused.

    The database comes first: objects are only ever added to the store, so it holds whatever the dump speaks of.
    """
    store = local_store(settings)
    part = target.with_name(target.name + ".part")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            dump = Path(folder) / DUMP
            run(["pg_dump", "--format=custom", f"--file={dump}", f"--dbname={plain_url(settings.database_url)}"])
            objects = sorted(path for path in store.rglob("*") if path.is_file()) if store else []
            summary = Summary(
                made_at=datetime.now(UTC).isoformat(timespec="seconds"),
                revision=migrate.current_revision(settings.database_url),
                objects=len(objects),
                store=store is not None,
            )
            with part.open("wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
                part.chmod(0o600)
                add_bytes(tar, ABOUT, json.dumps(summary.__dict__).encode())
                add_bytes(tar, SECRET, settings.secret_key.encode())
                tar.add(dump, DUMP)
                for path in objects:
                    if store is not None and not path.name.endswith(".part"):
                        tar.add(path, f"{STORE}/{path.relative_to(store)}")
        part.replace(target)
    except OSError as error:
        raise Refused(f"The backup could not be written to {target}: {error.strerror or error}.", code=2) from error
    finally:
        part.unlink(missing_ok=True)
    return summary


def restore(settings: Settings, source: Path, *, replace: bool) -> Summary:
    """Read `source` into the database and the store. What the database holds is only overwritten with `replace`.

    Raises Refused, the database being then as it was.
    """
    store = local_store(settings)
    try:
        with tarfile.open(source, "r:") as tar, tempfile.TemporaryDirectory() as folder:
            names = set(tar.getnames())
            if not {ABOUT, DUMP, SECRET} <= names:
                raise Refused(f"{source} is no backup of Illume.", code=2)
            summary = Summary(**json.loads(read_bytes(tar, ABOUT)))
            clear_tables(settings, replace=replace)
            tar.extract(DUMP, folder, filter="data")
            load(settings, Path(folder) / DUMP)
            if store is not None:
                store.mkdir(parents=True, exist_ok=True)
                for member in tar:
                    if member.isfile() and member.name.startswith(f"{STORE}/"):
                        member.name = member.name.removeprefix(f"{STORE}/")
                        tar.extract(member, store, filter="data")
            keep_secret(tar, settings)
    except (OSError, tarfile.TarError) as error:
        raise Refused(f"{source} could not be read: {error}.", code=2) from error
    migrate.upgrade(settings.database_url)
    settle_feed(settings)
    return summary


def settle_feed(settings: Settings) -> None:
    """Number verdicts anew whose transactions this server has not reached yet: feeds and exports wait for those."""
    with psycopg.connect(plain_url(settings.database_url)) as connection:
        connection.execute(
            "UPDATE verdicts SET xid = pg_current_xact_id() WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())"
        )


def clear_tables(settings: Settings, *, replace: bool) -> None:
    """Refuse to go on where there are people already, unless `replace`."""
    with psycopg.connect(plain_url(settings.database_url)) as connection:
        there = connection.execute("SELECT to_regclass('public.users') IS NOT NULL").fetchone()
        if there and there[0]:
            people = connection.execute("SELECT count(*) FROM users").fetchone()
            if people and people[0] and not replace:
                raise Refused(
                    "The database is not empty. Restore into a new one, or say --replace to lose what this one holds.",
                    code=2,
                )


def load(settings: Settings, dump: Path) -> None:
    """Put the dump in the place of everything that is in the database, in one transaction."""
    script = dump.with_suffix(".sql")
    run(["pg_restore", "--no-owner", "--no-privileges", f"--file={script}", str(dump)])
    words = ["psql", "--quiet", "--no-psqlrc", "--single-transaction", "--set=ON_ERROR_STOP=1"]
    words += ["--command=DROP SCHEMA IF EXISTS public CASCADE", "--command=CREATE SCHEMA public", f"--file={script}"]
    run([*words, plain_url(settings.database_url)])


def keep_secret(tar: tarfile.TarFile, settings: Settings) -> None:
    """Use the backup's secret key from now on, so that pseudonyms stay the same, where the key lives in a file."""
    path = settings.data_dir / SECRET
    if path.exists() and path.read_text().strip() == settings.secret_key:
        path.write_bytes(read_bytes(tar, SECRET))


def local_store(settings: Settings) -> Path | None:
    """The store's folder, or None where it is a bucket."""
    if not settings.store.startswith("file:"):
        return None
    return Path(settings.store_url.removeprefix("file://")) if settings.store_url else settings.data_dir / "store"


def add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a small file to `tar`."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    entry.mode = 0o600
    tar.addfile(entry, io.BytesIO(data))


def read_bytes(tar: tarfile.TarFile, name: str) -> bytes:
    """A small file of `tar`."""
    file = tar.extractfile(name)
    return b"" if file is None else file.read()


def run(command: Sequence[str]) -> None:
    """Run one of PostgreSQL's programs; raises Refused with the last thing it said."""
    program = binaries_for() / command[0]
    done = subprocess.run(  # noqa: S603 - PostgreSQL's own programs
        [str(program), *command[1:]], env=clean_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise Refused(f"{command[0]} failed: {lines[0]}")
