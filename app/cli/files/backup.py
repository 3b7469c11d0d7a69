"""`illume backup`: write the whole installation to one tar file: a dump of the database, the store, the secret key."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import psycopg

from app.cli.terminal import FilePath, Say, data_dir_option, prepared, say
from app.db import migrations
from app.db.engine import libpq_url
from app.processes.connect import Refused
from app.processes.postgres_install import clean_environment, find_binaries
from app.services.kernel.store import KEY_FORM
from app.settings import Settings
from illume.files import replace_file

ABOUT = "backup.json"
DUMP = "database.dump"
STORE = "store"
SECRET = "secret.key"  # noqa: S105 - a file's name

PROGRESS_SECONDS = 2.0
"""How often progress is printed."""


@click.command("backup")
@click.option("--out", type=FilePath, metavar="FILE", help="The file to write.  [default: illume-backup-DATE-TIME.tar]")
@data_dir_option
def backup_command(out: Path | None) -> None:
    """Back up the whole installation to one file.

    The file holds the database, the stored files and the secret key. Everybody can go on working meanwhile.
    """
    target = out or Path(time.strftime("illume-backup-%Y%m%d-%H%M%S.tar"))
    with prepared() as settings:
        made = backup(settings, target.absolute(), say=say)
    say(f"Wrote {target}: the database and {made.objects} objects of the store.")
    if not made.store:
        say("The store is a bucket: back it up with its own means.")


@dataclass(frozen=True)
class Summary:
    """What a backup holds. Without `store` the objects are elsewhere, and need a backup of their own.

    `next_xid` is the next transaction number of the server that was backed up.
    """

    made_at: str
    revision: str | None
    objects: int
    store: bool
    next_xid: int = 0


def silent(_text: str) -> None:
    """Say nothing."""


def backup(settings: Settings, target: Path, *, say: Say = silent) -> Summary:
    """Write `target`, a tar file, reporting progress; others can go on working. Raises Refused.

    The database comes first: every object the dump names is in the store by then, and only erased ones disappear.
    """
    store = local_store(settings)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            dump = Path(folder) / DUMP
            command = ["pg_dump", "--format=custom", f"--file={dump}", f"--dbname={libpq_url(settings.database_url)}"]
            run(command, progress=lambda: say(f"The database: {size_of(dump)} so far."))
            objects = objects_in(store) if store else []
            summary = Summary(
                made_at=datetime.now(UTC).isoformat(timespec="seconds"),
                revision=migrations.current_revision(settings.database_url),
                objects=len(objects),
                store=store is not None,
                next_xid=next_xid(settings),
            )
            with (
                replace_file(target, private=True, sync=True) as file,
                tarfile.open(fileobj=file, mode="w") as tar,
            ):
                add_bytes(tar, ABOUT, json.dumps(summary.__dict__).encode())
                add_bytes(tar, SECRET, settings.secret_key.encode())
                tar.add(dump, DUMP)
                for path in with_progress(objects, say):
                    with contextlib.suppress(FileNotFoundError):  # erased meanwhile
                        tar.add(path, f"{STORE}/{path.parent.name}/{path.name}")
    except OSError as error:
        raise Refused(f"The backup could not be written to {target}: {error.strerror or error}.", code=2) from error
    return summary


def objects_in(store: Path) -> list[Path]:
    """The objects of a store that is a folder, without those being written."""
    return sorted(path for path in store.glob("??/*") if KEY_FORM.fullmatch(path.name))


def with_progress(objects: Sequence[Path], say: Say) -> Iterator[Path]:
    """The objects, printing how many are done every two seconds."""
    last = time.monotonic()
    for done, path in enumerate(objects):
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            say(f"The store: {done:,} of {len(objects):,} objects.")
        yield path


def size_of(path: Path) -> str:
    """The size of a file that is being written."""
    return f"{path.stat().st_size / 1e6:,.1f} MB" if path.exists() else "nothing"


def next_xid(settings: Settings) -> int:
    """The server's next transaction number."""
    with psycopg.connect(libpq_url(settings.database_url)) as connection:
        row = connection.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text").fetchone()
    return int(row[0]) if row else 0


def local_store(settings: Settings) -> Path | None:
    """The store's folder, or None if the store is a bucket."""
    if not settings.store.startswith("file:"):
        return None
    return Path(settings.store_url.removeprefix("file://")) if settings.store_url else settings.data_dir / "store"


def add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a small file to `tar`."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    entry.mode = 0o600
    tar.addfile(entry, io.BytesIO(data))


def run(command: Sequence[str], *, progress: Callable[[], None]) -> None:
    """Run one of PostgreSQL's programs, calling `progress` regularly. Raises Refused with its first error message."""
    program = find_binaries() / command[0]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own programs
            [str(program), *command[1:]],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(PROGRESS_SECONDS)
                except subprocess.TimeoutExpired:
                    progress()
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines() or ["no reason given"]
    if process.returncode:
        raise Refused(f"{command[0]} failed: {lines[0]}")
