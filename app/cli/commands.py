"""The commands that do one thing and end."""

from __future__ import annotations

import argparse
import getpass
import secrets
import sys
import time
from pathlib import Path

from app.cli.terminal import asker, prepared, say, warn
from app.processes.connect import Refused, services, wait_for_database
from app.settings import get_settings

FILTERS = ("round", "version", "critic", "since", "split", "snapshot")


def run_upgrade(_options: argparse.Namespace) -> int:
    from app.db import migrations

    with services():
        settings = get_settings()
        wait_for_database(settings, say=say)
        migrations.upgrade(settings.database_url)
        say(f"The tables are at revision {migrations.current_revision(settings.database_url)}.")
    return 0


def run_user_add(options: argparse.Namespace) -> int:
    from app.db.sessions import session_scope
    from app.models import Role
    from app.services.accounts import users
    from app.services.kernel.actors import SYSTEM

    if options.password_stdin:
        password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    else:
        password = secrets.token_urlsafe(12)
    with prepared(), session_scope() as session:
        users.add_user(
            session,
            SYSTEM,
            email=options.email,
            role=Role(options.role),
            password=password,
            project_slugs=options.project,
        )
    say(f"Added {options.email} as {options.role}.")
    if not options.password_stdin:
        say(f"password: {password}")
    return 0


def run_token_add(options: argparse.Namespace) -> int:
    from app.db.sessions import session_scope
    from app.models import Scope
    from app.services.accounts import users
    from app.services.kernel.actors import SYSTEM

    with prepared(), session_scope() as session:
        user = users.find_user(session, options.email)
        if user is None:
            raise Refused(f"There is nobody with the address {options.email}. Add them: `illume user add`.")
        _, plain = users.create_token(session, SYSTEM, user_id=user.id, scope=Scope(options.scope), name=options.name)
    say(plain)
    return 0


def run_project_add(options: argparse.Namespace) -> int:
    from app.db.sessions import session_scope
    from app.services.kernel.actors import SYSTEM
    from app.services.projects import projects

    with prepared(), session_scope() as session:
        projects.create_project(session, SYSTEM, slug=options.slug, name=options.name or options.slug)
    say(f"Added the project {options.slug}.")
    return 0


def run_round_start(options: argparse.Namespace) -> int:
    from app.cli import rounds

    with prepared():
        ask = asker("Start it?", yes=options.yes)
        return rounds.start(options.slug, ask=ask, follow=options.follow, say=say)


def run_erase(options: argparse.Namespace) -> int:
    from app.cli import erase

    with prepared():
        ask = asker("Erase it for good?", yes=options.yes)
        return erase.erase(options.kind, options.subject, ask=ask, say=say)


def run_round_list(options: argparse.Namespace) -> int:
    from app.cli import rounds

    with prepared():
        return rounds.show(options.slug, say=say)


def run_round_cancel(options: argparse.Namespace) -> int:
    from app.cli import rounds

    with prepared():
        return rounds.cancel(options.slug, say=say)


def run_import(options: argparse.Namespace) -> int:
    from app.cli import transfer
    from app.models import Split

    pairs = [pair.partition("=") for pair in options.map]
    if not all(column and field for column, _, field in pairs):
        raise Refused("--map takes COLUMN=FIELD, such as --map caption=question.", code=2)
    with prepared():
        return transfer.import_file(
            options.slug,
            options.file,
            say=say,
            warn=warn,
            images=options.images,
            split=Split(options.split),
            mapping={column: field for column, _, field in pairs} or None,
        )


def run_export(options: argparse.Namespace) -> int:
    from app.cli import transfer
    from app.services.exports.compression import Coding
    from app.services.exports.plan import parse_wanted

    packed: dict[str, Coding] = {".gz": "gzip", ".zst": "zstd"}
    names = ("format", "task", "aggregation", *FILTERS)
    wanted = parse_wanted({name: value for name in names if (value := getattr(options, name)) is not None})
    export = transfer.Export(
        wanted,
        parquet=options.out.suffix == ".parquet",
        embed=not options.image_paths,
        compression=packed.get(options.out.suffix),
        images=options.with_images,
    )
    with prepared():
        return transfer.export_file(options.slug, options.out, export, say=say)


def run_backup(options: argparse.Namespace) -> int:
    from app.cli import backup

    target = options.out or Path(time.strftime("illume-backup-%Y%m%d-%H%M%S.tar"))
    with prepared() as settings:
        made = backup.backup(settings, target.absolute(), say=say)
    say(f"Wrote {target}: the database and {made.objects} objects of the store.")
    if not made.store:
        say("The store is a bucket: back it up with its own means.")
    return 0


def run_restore(options: argparse.Namespace) -> int:
    from app.cli import backup

    with services():
        settings = get_settings()
        wait_for_database(settings, say=warn)
        found = backup.restore(settings, options.file.absolute(), replace=options.replace, say=say)
    say(f"Restored what was backed up at {found.made_at}: the database and {found.objects} objects of the store.")
    return 0


def run_doctor(options: argparse.Namespace) -> int:
    from app.cli import doctor

    if options.workers < 1:
        raise Refused("--workers must be at least 1.", code=2)
    problems = 0
    with services():
        for finding in doctor.examine(get_settings(), processes=options.workers, models=not options.skip_model):
            say(f"{'ok     ' if finding.ok else 'PROBLEM'}  {finding.what}: {finding.detail}")
            if not finding.ok:
                say(f"         {finding.remedy}")
                problems += 1
    return 1 if problems else 0
