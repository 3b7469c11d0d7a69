"""`illume backup`: the whole installation in one tar file: the rows of the database, the store, the secret key."""

from __future__ import annotations

import contextlib
import hmac
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import click
import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import BaseModel, ConfigDict

from app.cli.files import table_data
from app.cli.files.table_data import DatabaseData, Number
from app.cli.terminal import FilePath, Say, data_dir_option, prepared, say
from app.db.engine import libpq_url
from app.processes.connect import Refused
from app.services.kernel.store import KEY_FORM, redacted
from app.settings import Settings
from illume.files import replace_file

ABOUT = "backup.json"
SIGNATURE = "signature"
ROWS = "rows"
STORE = "store"
SECRET = "secret.key"  # noqa: S105 - a file's name

PROGRESS_SECONDS = 2.0
"""How often progress is printed."""


@click.command("backup")
@click.option("--out", type=FilePath, metavar="FILE", help="The file to write.  [default: illume-backup-DATE-TIME.tar]")
@click.option("--replace", is_flag=True, help="Replace FILE if it exists.")
@data_dir_option
def backup_command(out: Path | None, *, replace: bool) -> None:
    """Back up the whole installation to one file.

    The file holds the database, the stored files and the secret key, and is signed with that key. Keep it as safe as
    the installation: anyone who can read it can sign in as anyone. People can go on working meanwhile.
    """
    target = out or Path(time.strftime("illume-backup-%Y%m%d-%H%M%S.tar"))
    refuse_existing(target, replace=replace)
    with prepared() as settings:
        say(f"Backing up the database {database_name(settings)} and the store {redacted(settings.store)}.")
        made = backup(settings, target.absolute(), say=say)
    say(f"Wrote {target}: the database and {made.objects} stored objects.")
    if not made.store:
        say("The store is a bucket, and not in this file: back it up with your provider's tools.")


def database_name(settings: Settings) -> str:
    """What the database is called and where it is, without passwords."""
    found = conninfo_to_dict(libpq_url(settings.database_url))
    return f"{found.get('dbname', '')} at {found.get('host') or 'localhost'}"


def refuse_existing(target: Path, *, replace: bool) -> None:
    """Raise Refused if there is something at `target` already, unless `replace`."""
    if target.is_dir():
        raise Refused(f"{target} is a folder: name a file with --out.", code=2)
    if os.path.lexists(target) and not replace:
        raise Refused(f"{target} already exists: name another file with --out, or add --replace.", code=2)


class Summary(BaseModel):
    """What a backup holds. Without `store` the objects are elsewhere, and need a backup of their own.

    `next_xid` is the next transaction number of the server that was backed up.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[2] = 2
    made_at: str
    objects: Number
    store: bool
    next_xid: Number
    database: DatabaseData


def silent(_text: str) -> None:
    """Say nothing."""


def backup(settings: Settings, target: Path, *, say: Say = silent) -> Summary:
    """Write `target`, a tar file, reporting progress; others can go on working. Raises Refused.

    The database comes first: every object its rows name is in the store by then, and only erased ones disappear.
    """
    store = settings.store_folder
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            rows = table_data.dump(settings.database_url, Path(folder), progress=sometimes(say, "The database: "))
            objects = objects_in(store) if store else []
            summary = Summary(
                made_at=datetime.now(UTC).isoformat(timespec="seconds"),
                objects=len(objects),
                store=store is not None,
                next_xid=next_xid(settings),
                database=rows,
            )
            about = summary.model_dump_json().encode()
            with (
                replace_file(target, private=True, sync=True) as file,
                tarfile.open(fileobj=file, mode="w") as tar,
            ):
                add_bytes(tar, ABOUT, about)
                add_bytes(tar, SIGNATURE, signature(about, settings.secret_key).encode())
                add_bytes(tar, SECRET, settings.secret_key.encode())
                for table in rows.tables:
                    tar.add(Path(folder) / table.name, f"{ROWS}/{table.name}")
                for path in with_progress(objects, say):
                    with contextlib.suppress(FileNotFoundError):  # erased meanwhile
                        tar.add(path, f"{STORE}/{path.parent.name}/{path.name}")
    except OSError as error:
        raise Refused(f"The backup could not be written to {target}: {error.strerror or error}.", code=2) from error
    return summary


def signature(about: bytes, key: str) -> str:
    """What shows that the holder of an installation's key wrote a backup's summary, and with it the rows it hashes."""
    return hmac.new(f"backup {key}".encode(), about, "sha256").hexdigest()


def sometimes(say: Say, begin: str) -> Callable[[object], None]:
    """A function that says what goes on, every two seconds."""
    last = time.monotonic()

    def go_on(part: object) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_SECONDS:
            last = time.monotonic()
            say(f"{begin}{part.name if isinstance(part, Path) else part}.")

    return go_on


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


def next_xid(settings: Settings) -> int:
    """The server's next transaction number."""
    with psycopg.connect(libpq_url(settings.database_url)) as connection:
        row = connection.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text").fetchone()
    return int(row[0]) if row else 0


def add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a small file to `tar`."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    entry.mode = 0o600
    tar.addfile(entry, io.BytesIO(data))
