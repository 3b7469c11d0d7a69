"""`illume restore`: read a backup into the database and the store."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeAlias

import click
import psycopg
from pydantic import ValidationError

from app.cli.files.backup import (
    ABOUT,
    PROGRESS_SECONDS,
    ROWS,
    SECRET,
    SIGNATURE,
    STORE,
    Summary,
    next_xid,
    signature,
    silent,
    sometimes,
)
from app.cli.files.table_data import replace_database
from app.cli.terminal import FilePath, Say, data_dir_option, say, warn
from app.db import migrations
from app.db.engine import libpq_url
from app.errors import NotFound
from app.processes.connect import Refused, refuse_few_rights, services, wait_for_database
from app.services.kernel.store import KEY_FORM, Store
from app.settings import Settings, get_settings
from illume.files import make_private_folder, replace_file
from illume.validation import describe_problem

Adding: TypeAlias = Callable[[str, int, IO[bytes]], None]
"""Adds an object: its key, its size and its bytes."""
XIDS_AT_A_TIME = 250_000
"""Transactions used up in one statement, which takes about a second."""
MOST_SMALL_BYTES = 1 << 20
OLD_DUMP = "database.dump"
MOST_XIDS = 500_000_000
"""If more are missing, renumbering the verdicts is faster."""


@click.command("restore")
@click.argument("file", type=FilePath, help="A file made by `illume backup`.")
@click.option("--replace", is_flag=True, help="Replace what the database holds now. It is lost.")
@data_dir_option
def restore_command(file: Path, *, replace: bool) -> None:
    """Restore an installation from a backup.

    The database must be empty, unless --replace is given. Rows are loaded into tables that this version creates
    itself: no statement and no program in the file is ever run.

    A backup is signed with the key of its installation. One that was signed with another key than that of this
    installation is restored too, with a warning. It brings everything from the other installation: accounts with
    their passwords, roles and tokens, so that its people can sign in; webhooks, which send verdicts to addresses
    chosen there; base models, adapters and settings, with which workers will sample and train; and the secret key. Only
    restore such a backup if you would let its makers administer this installation.
    """
    with services():
        settings = get_settings()
        wait_for_database(settings, say=warn)
        found = restore(settings, file.absolute(), replace=replace, say=say)
    say(f"Restored the backup of {found.made_at}: the database and {found.objects} stored objects.")


def restore(settings: Settings, source: Path, *, replace: bool, say: Say = silent) -> Summary:
    """Read `source` into the database and the store. What the database holds is replaced only with `replace`.

    The store comes first: objects added there do no harm, and the database is then loaded in one transaction. Where
    it raises Refused the database is unchanged.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(source, "r:") as tar, tempfile.TemporaryDirectory(dir=settings.data_dir) as folder:
            names = tar.getnames()
            if OLD_DUMP in names:
                raise Refused(
                    f"{source} was made by an older release: restore it with that one, then back up again.", code=2
                )
            if not {ABOUT, SIGNATURE, SECRET} <= set(names):
                raise Refused(f"{source} is not a backup made by Illume.", code=2)
            summary = read_summary(tar, source, settings, say)
            refuse_full_database(settings, replace=replace)
            refuse_few_rights(settings)
            add_objects(tar, settings, summary, say)
            unpack_rows(tar, summary, Path(folder))
            loading = sometimes(say, "The database: loading the rows of ")
            replace_database(settings.database_url, summary.database, Path(folder), progress=loading)
            keep_secret(tar, settings)
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise Refused(f"{source} could not be read: {reason}.", code=2) from error
    settle_feed(settings, summary, say)
    return summary


def read_summary(tar: tarfile.TarFile, source: Path, settings: Settings, say: Say) -> Summary:
    """The summary of a backup. Raises Refused for one that is odd, changed, or of a newer version.

    Says so where the backup was not signed with the key of this installation.
    """
    about, secret = read_bytes(tar, ABOUT), read_bytes(tar, SECRET).decode(errors="replace").strip()
    try:
        summary = Summary.model_validate_json(about)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Refused(
            f"{source}: its {ABOUT} was not made by Illume{f', {place}' if place else ''}: {describe_problem(first)}.",
            code=2,
        ) from error
    if not secret or "\ufffd" in secret or not secret.isprintable():
        raise Refused(f"{source}: its {SECRET} is empty or not text.", code=2)
    given = read_bytes(tar, SIGNATURE)
    if not hmac.compare_digest(given.strip(), signature(about, secret).encode()):
        raise Refused(f"{source} is damaged: it was changed after it was signed.", code=2)
    if not migrations.is_known(summary.database.revision):
        raise Refused(f"{source} was made by a newer version of Illume: install that one first.", code=2)
    if not hmac.compare_digest(secret.encode(), settings.secret_key.encode()):
        say(
            "This backup was not signed with the key of this installation. Its accounts, passwords, tokens, webhooks "
            "and models come with it: `illume restore --help` says what that means."
        )
    return summary


def unpack_rows(tar: tarfile.TarFile, summary: Summary, folder: Path) -> None:
    """Unpack the rows of all tables into `folder`. Raises Refused where those of one are missing."""
    for table in summary.database.tables:
        member = next((one for one in tar.getmembers() if one.name == f"{ROWS}/{table.name}" and one.isreg()), None)
        content = None if member is None else tar.extractfile(member)
        if content is None:
            raise Refused(f"The backup is damaged: the rows of {table.name} are missing.", code=2)
        with (folder / table.name).open("wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)


def add_objects(tar: tarfile.TarFile, settings: Settings, summary: Summary, say: Say) -> None:
    """Add a backup's objects to the store, each whole or not at all. Raises Refused for one that is damaged."""
    folder = settings.store_folder
    add = add_to_bucket(Store(settings.store)) if folder is None else add_to_folder(folder)
    last, done = time.monotonic(), 0
    for member in tar:
        key = member.name.rpartition("/")[2]
        if not member.isfile() or not KEY_FORM.fullmatch(key) or member.name != f"{STORE}/{key[:2]}/{key}":
            continue
        done += 1
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            say(f"The store: {done:,} of {summary.objects:,} objects.")
        content = tar.extractfile(member)
        if content is not None:
            add(key, member.size, content)
    os.sync()  # before the database says that they are there


def add_to_folder(store: Path) -> Adding:
    """Adds objects to a store that is a folder. One that is there with its whole size is kept."""

    def add(key: str, size: int, content: IO[bytes]) -> None:
        path = store / key[:2] / key
        if path.exists() and path.stat().st_size == size:
            return
        make_private_folder(path.parent)
        with replace_file(path, private=True) as file:
            shutil.copyfileobj(content, file, 1 << 20)
            file.seek(0)
            refuse_damaged(file, key)

    return add


def add_to_bucket(store: Store) -> Adding:
    """Adds objects to a store that is no folder. One that is there with its whole size is kept.

    S3 has none that are half there; other protocols may have some.
    """

    def add(key: str, size: int, content: IO[bytes]) -> None:
        with contextlib.suppress(NotFound):
            if store.size(key) == size:
                return
            store.remove(key)
        with tempfile.NamedTemporaryFile() as file:
            shutil.copyfileobj(content, file, 1 << 20)
            file.seek(0)
            refuse_damaged(file, key)
            store.put_file(Path(file.name))

    return add


def refuse_damaged(file: Any, key: str) -> None:
    """Raise Refused unless a file is what its key says."""
    if hashlib.file_digest(file, "sha256").hexdigest() != key:
        raise Refused(f"The backup is damaged: object {key} is not what its name says.", code=2)


def settle_feed(settings: Settings, summary: Summary, say: Say) -> None:
    """Advance this server's transaction numbers to those of the server that was backed up.

    They order feeds and exports. With lower ones new verdicts would sort before the positions that clients and
    webhooks have stored, and be skipped. Where advancing would take very long, all verdicts get new numbers instead
    and the stored positions are reset.
    """
    with psycopg.connect(libpq_url(settings.database_url), autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        newest = int(connection.execute("SELECT coalesce(max(xid::text::numeric), 0) FROM verdicts").fetchall()[0][0])
        wanted = max(summary.next_xid, newest + 1)
        if wanted - next_xid(settings) > MOST_XIDS:
            say("The other server was too far ahead: clients that follow the feed have to start again.")
            connection.execute("UPDATE verdicts SET xid = pg_current_xact_id()")
            connection.execute("UPDATE webhooks SET feed_xid = '0', feed_id = 0")
            connection.execute("DELETE FROM agreement_places")
            return
        last = time.monotonic()
        while (missing := wanted - next_xid(settings)) > 0:
            if time.monotonic() - last > PROGRESS_SECONDS:
                last = time.monotonic()
                say(f"The feed's order: {missing:,} transactions to go.")
            connection.execute(
                f"DO $$ BEGIN FOR i IN 1..{min(missing, XIDS_AT_A_TIME)} LOOP "
                "PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
            )


def refuse_full_database(settings: Settings, *, replace: bool) -> None:
    """Raise Refused if the database has accounts already, unless `replace`."""
    with psycopg.connect(libpq_url(settings.database_url)) as connection:
        there = connection.execute("SELECT to_regclass('public.users') IS NOT NULL").fetchone()
        if there and there[0]:
            people = connection.execute("SELECT count(*) FROM users").fetchone()
            if people and people[0] and not replace:
                raise Refused(
                    "The database is not empty. Restore into a new one, or add --replace to overwrite this one.",
                    code=2,
                )


def keep_secret(tar: tarfile.TarFile, settings: Settings) -> None:
    """If the secret key is stored in a file, replace it with the backup's, so that pseudonyms stay the same."""
    path = settings.data_dir / SECRET
    if path.exists() and path.read_text().strip() == settings.secret_key:
        path.write_bytes(read_bytes(tar, SECRET))


def read_bytes(tar: tarfile.TarFile, name: str) -> bytes:
    """A small file of `tar`. Raises Refused for one that is not small, or no file."""
    member = tar.getmember(name)
    file = tar.extractfile(member) if member.isreg() else None
    if file is None or member.size > MOST_SMALL_BYTES:
        raise Refused(f"The backup is damaged: {name} is not a file, or is far too large.", code=2)
    return file.read()
