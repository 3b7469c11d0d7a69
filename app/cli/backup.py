"""Everything of an installation in one file, and back: PostgreSQL's dump of the database, and the store's folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from app.db import migrations
from app.db.engine import plain_url
from app.processes.connect import Refused
from app.processes.postgres_install import binaries_for, clean_environment
from app.services.kernel.store import KEY_FORM
from app.settings import Settings

ABOUT = "backup.json"
DUMP = "database.dump"
STORE = "store"
SECRET = "secret.key"  # noqa: S105 - a file's name


Say = Callable[[str], None]
TELL_SECONDS = 2.0
A_TIME = 250_000
"""Transactions that are used up at a time, about a second's worth."""
MOST_TRANSACTIONS = 500_000_000


@dataclass(frozen=True)
class Summary:
    """What a backup holds. Without `store` the objects are elsewhere, and need a backup of their own.

    `next_xid` is what the server it was made on had counted its transactions to.
    """

    made_at: str
    revision: str | None
    objects: int
    store: bool
    next_xid: int = 0


def silent(_text: str) -> None:
    """Say nothing."""


def backup(settings: Settings, target: Path, *, say: Say = silent) -> Summary:
    """Write `target`, a tar file, saying how far it is; while it is written others go on working. Raises Refused.

    The database comes first: what the dump speaks of is in the store by then, and only what is erased goes away.
    """
    store = local_store(settings)
    part = target.with_name(target.name + ".part")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            dump = Path(folder) / DUMP
            command = ["pg_dump", "--format=custom", f"--file={dump}", f"--dbname={plain_url(settings.database_url)}"]
            run(command, tell=lambda: say(f"The database: {size_of(dump)} so far."))
            objects = objects_in(store) if store else []
            summary = Summary(
                made_at=datetime.now(UTC).isoformat(timespec="seconds"),
                revision=migrations.current_revision(settings.database_url),
                objects=len(objects),
                store=store is not None,
                next_xid=next_xid(settings),
            )
            with part.open("wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
                part.chmod(0o600)
                add_bytes(tar, ABOUT, json.dumps(summary.__dict__).encode())
                add_bytes(tar, SECRET, settings.secret_key.encode())
                tar.add(dump, DUMP)
                for path in telling(objects, say):
                    with contextlib.suppress(FileNotFoundError):  # erased meanwhile
                        tar.add(path, f"{STORE}/{path.parent.name}/{path.name}")
                file.flush()
                os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        raise Refused(f"The backup could not be written to {target}: {error.strerror or error}.", code=2) from error
    finally:
        part.unlink(missing_ok=True)
    return summary


def objects_in(store: Path) -> list[Path]:
    """The objects of a store that is a folder, without what is just being written."""
    return sorted(path for path in store.glob("??/*") if KEY_FORM.fullmatch(path.name))


def telling(objects: Sequence[Path], say: Say) -> Iterator[Path]:
    """The objects, saying every two seconds how far it is."""
    last = time.monotonic()
    for done, path in enumerate(objects):
        if time.monotonic() - last > TELL_SECONDS:
            last = time.monotonic()
            say(f"The store: {done:,} of {len(objects):,} objects.")
        yield path


def size_of(path: Path) -> str:
    """How large a file that is being written has become."""
    return f"{path.stat().st_size / 1e6:,.1f} MB" if path.exists() else "nothing"


def next_xid(settings: Settings) -> int:
    """What the server has counted its transactions to."""
    with psycopg.connect(plain_url(settings.database_url)) as connection:
        row = connection.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text").fetchone()
    return int(row[0]) if row else 0


def restore(settings: Settings, source: Path, *, replace: bool, say: Say = silent) -> Summary:
    """Read `source` into the database and the store. What the database holds is only overwritten with `replace`.

    The store comes first: what is added there does no harm, and the database is then loaded in one transaction.
    Raises Refused, the database being then as it was.
    """
    store = local_store(settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(source, "r:") as tar, tempfile.TemporaryDirectory(dir=settings.data_dir) as folder:
            names = set(tar.getnames())
            if not {ABOUT, DUMP, SECRET} <= names:
                raise Refused(f"{source} is no backup of Illume.", code=2)
            summary = Summary(**json.loads(read_bytes(tar, ABOUT)))
            clear_tables(settings, replace=replace)
            if store is not None:
                lay_objects(tar, store, summary, say)
            tar.extract(DUMP, folder, filter="data")
            load(settings, Path(folder) / DUMP, say)
            keep_secret(tar, settings)
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Refused(f"{source} could not be read: {reason}.", code=2) from error
    migrations.upgrade(settings.database_url)
    settle_feed(settings, summary, say)
    return summary


def lay_objects(tar: tarfile.TarFile, store: Path, summary: Summary, say: Say) -> None:
    """Add a backup's objects to the store, each whole or not at all. Raises Refused for one that is damaged."""
    last, done = time.monotonic(), 0
    for member in tar:
        key = member.name.rpartition("/")[2]
        if not member.isfile() or not KEY_FORM.fullmatch(key) or member.name != f"{STORE}/{key[:2]}/{key}":
            continue
        done += 1
        if time.monotonic() - last > TELL_SECONDS:
            last = time.monotonic()
            say(f"The store: {done:,} of {summary.objects:,} objects.")
        path = store / key[:2] / key
        content = tar.extractfile(member)
        if content is None or (path.exists() and path.stat().st_size == member.size):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{key}.{os.getpid()}.part")
        try:
            with part.open("w+b") as file:
                shutil.copyfileobj(content, file, 1 << 20)
                file.seek(0)
                if hashlib.file_digest(file, "sha256").hexdigest() != key:
                    raise Refused(f"The backup is damaged: object {key} is not what its name says.", code=2)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    os.sync()  # before the database says that they are there


def settle_feed(settings: Settings, summary: Summary, say: Say) -> None:
    """Bring this server to where the other had counted its transactions, which order feeds and exports.

    Else what is new would come before the places that clients and webhooks have kept, and be passed over. Where that
    would take very long, verdicts are numbered anew and those places begin anew.
    """
    with psycopg.connect(plain_url(settings.database_url), autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        newest = int(connection.execute("SELECT coalesce(max(xid::text::numeric), 0) FROM verdicts").fetchall()[0][0])
        wanted = max(summary.next_xid, newest + 1)
        if wanted - next_xid(settings) > MOST_TRANSACTIONS:
            say("The other server was too far ahead: clients of the feed begin anew.")
            connection.execute("UPDATE verdicts SET xid = pg_current_xact_id()")
            connection.execute("UPDATE webhooks SET feed_xid = '0', feed_id = 0")
            connection.execute("DELETE FROM agreement_places")
            return
        last = time.monotonic()
        while (missing := wanted - next_xid(settings)) > 0:
            if time.monotonic() - last > TELL_SECONDS:
                last = time.monotonic()
                say(f"The feed's order: {missing:,} transactions to go.")
            connection.execute(
                f"DO $$ BEGIN FOR i IN 1..{min(missing, A_TIME)} LOOP "
                "PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
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


def load(settings: Settings, dump: Path, say: Say = silent) -> None:
    """Put the dump in the place of everything that is in the database, in one transaction."""
    script = dump.with_suffix(".sql")
    unpack = ["pg_restore", "--no-owner", "--no-privileges", f"--file={script}", str(dump)]
    run(unpack, tell=lambda: say(f"The database: {size_of(script)} unpacked."))
    words = ["psql", "--quiet", "--no-psqlrc", "--single-transaction", "--set=ON_ERROR_STOP=1"]
    words += ["--command=DROP SCHEMA IF EXISTS public CASCADE", "--command=CREATE SCHEMA public", f"--file={script}"]
    since = time.monotonic()
    told = f"The database: loading {size_of(script)}"
    run([*words, plain_url(settings.database_url)], tell=lambda: say(f"{told}, {time.monotonic() - since:.0f} s."))


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


def run(command: Sequence[str], *, tell: Callable[[], None]) -> None:
    """Run one of PostgreSQL's programs, telling how far it is; raises Refused with the first thing it complained of."""
    program = binaries_for() / command[0]
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own programs
            [str(program), *command[1:]],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(TELL_SECONDS)
                except subprocess.TimeoutExpired:
                    tell()
        finally:
            process.kill()
            process.wait()
        complaints.seek(0)
        lines = complaints.read().decode(errors="replace").strip().splitlines() or ["no reason given"]
    if process.returncode:
        raise Refused(f"{command[0]} failed: {lines[0]}")
