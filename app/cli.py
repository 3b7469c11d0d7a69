"""The `illume` command: reads the words of the command line and hands them on."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from app.connect import (
    Refused,
    Stopped,
    refuse_used_port,
    services,
    set_environment,
    until_stopped,
    wait_for_database,
)
from app.embedded import Embedded
from app.errors import DomainError
from app.settings import Settings, get_settings

Command = Callable[[argparse.Namespace], int]
Subcommands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

ROLES = ("admin", "reviewer", "critic", "viewer")
SCOPES = ("read", "write", "admin")
SPLITS = ("train", "val", "test")
FORMATS = ("records", "sft", "preference", "kto", "sharegpt")
FILTERS = ("round", "version", "critic", "since", "split", "snapshot")


def say(text: str) -> None:
    """Tell the person at the terminal, at once."""
    print(text, flush=True)


def warn(text: str) -> None:
    """Tell the person something that does not belong to the output."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. What a person can mend is one sentence, never a traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["simulate"]:
        become(["-m", "illume.simulation", *words[1:]])
    if words[:1] == ["scenes"]:
        become(["-m", "illume.scenes", *words[1:]])
    options = parser().parse_args(words)
    if options.data_dir is not None:
        set_environment({"ILLUME_DATA_DIR": str(options.data_dir.absolute())})
    try:
        command: Command = options.run
        return command(options)
    except Refused as refused:
        warn(f"illume: {refused}")
        return refused.code
    except DomainError as error:
        warn(f"illume: {error.detail}")
        return 1
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    """The whole grammar of the command line."""
    top = argparse.ArgumentParser(prog="illume", description="Critics pick rationales; their picks tune the model.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data-dir", type=Path, help="where embedded services and the store keep their files")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Command, text: str, to: Subcommands = commands) -> argparse.ArgumentParser:
        made = to.add_parser(name, help=text, description=text, parents=[common])
        made.set_defaults(run=run)
        return made

    def group(name: str, text: str) -> Subcommands:
        return commands.add_parser(name, help=text).add_subparsers(required=True, metavar="COMMAND")

    demo = add("demo", run_demo, "set up and run everything on this machine, with an example project")
    demo.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    demo.add_argument("--no-browser", action="store_true", help="open no browser")
    serve = add("serve", run_serve, "run the web server")
    serve.add_argument("--host", default=None)
    serve.add_argument("--port", type=int, default=None)
    serve.add_argument("--workers", type=int, default=1, help="web processes")
    serve.add_argument("--check", action="store_true", help="only say, by the exit code, whether one is running well")
    worker = add("worker", run_worker, "run a worker")
    worker.add_argument("--queues", default="default,model", help="default, model or both, with a comma")
    worker.add_argument("--check", action="store_true", help="only say whether one of these runs on this machine")
    beat = add("beat", run_beat, "run the clock that looks for what is due")
    beat.add_argument("--check", action="store_true", help="only say whether one runs on this machine")
    add("upgrade", run_upgrade, "bring the tables up to date", group("db", "the database"))
    user = add("add", run_user_add, "add a person", group("user", "people"))
    user.add_argument("email")
    user.add_argument("--role", choices=ROLES, required=True)
    user.add_argument("--project", action="append", default=[], help="a project's slug; may be repeated")
    user.add_argument("--password-stdin", action="store_true", help="read the password; else one is made and printed")
    token = add("add", run_token_add, "make a token and print it, once", group("token", "keys of the REST interface"))
    token.add_argument("email")
    token.add_argument("--scope", choices=SCOPES, required=True)
    token.add_argument("--name", default="")
    project = add("add", run_project_add, "add a project", group("project", "projects"))
    project.add_argument("slug")
    project.add_argument("--name", default=None)
    tuning = group("round", "tuning rounds")
    starting = add("start", run_round_start, "say what a round would train on, and start it", tuning)
    starting.add_argument("--yes", action="store_true", help="do not ask")
    starting.add_argument("--follow", action="store_true", help="stay and say how far it is, until it has ended")
    showing = add("list", run_round_list, "the rounds of a project", tuning)
    stopping = add("cancel", run_round_cancel, "stop the round that is going on", tuning)
    for one in (starting, showing, stopping):
        one.add_argument("slug")
    importing = add("import", run_import, "import a file of prompts into a project")
    importing.add_argument("slug")
    importing.add_argument("file", type=Path, help="NDJSON, CSV, JSON, Parquet, a zip or a folder with one of them")
    importing.add_argument("--images", type=Path, default=None, help="a folder or a zip of the images that rows name")
    importing.add_argument("--split", choices=SPLITS, default="train", help="the split of rows that name none")
    importing.add_argument(
        "--map", action="append", default=[], metavar="COLUMN=FIELD", help="what a column becomes; may be repeated"
    )
    export = add("export", run_export, "write a project's dataset to a file")
    export.add_argument("slug")
    export.add_argument("--format", choices=FORMATS, default="records")
    export.add_argument("--out", type=Path, required=True, help="a name in .parquet, .gz or .zst says what to write")
    export.add_argument("--task", choices=("sft", "preference", "kto"), default="sft", help="of sharegpt")
    export.add_argument("--aggregation", choices=("any", "majority", "all", "each"), help="over critics")
    export.add_argument("--image-paths", action="store_true", help="in Parquet: images by path, not embedded")
    export.add_argument("--with-images", action="store_true", help="lay the images beside the file")
    for name in FILTERS:
        export.add_argument(f"--{name}", help=f"only those of this {name}, as in the REST interface")
    erasing = add("erase", run_erase, "erase a person, an image or a project for good")
    erasing.add_argument("kind", choices=("person", "image", "project"))
    erasing.add_argument("subject", help="an address, an image's sha256, or a slug")
    erasing.add_argument("--yes", action="store_true", help="do not ask")
    backing = add("backup", run_backup, "write everything to one file")
    backing.add_argument("--out", type=Path, default=None, help="default: illume-backup-TIME.tar")
    restoring = add("restore", run_restore, "read everything from a file made by `illume backup`")
    restoring.add_argument("file", type=Path)
    restoring.add_argument("--replace", action="store_true", help="lose what the database holds now")
    commands.add_parser("simulate", help="run the whole loop with a simulated critic (see `illume simulate --help`)")
    commands.add_parser("scenes", help="make scenes, train the starter model (see `illume scenes --help`)")
    doctor = add("doctor", run_doctor, "look at everything Illume stands on")
    doctor.add_argument("--workers", type=int, default=1, help="how many web processes are planned")
    doctor.add_argument("--skip-model", action="store_true", help="do not load the starter model")
    return top


def become(arguments: Sequence[str]) -> None:
    """Go on as another Python program in this process's place."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 - our own interpreter


def run_demo(options: argparse.Namespace) -> int:
    from app import demo

    return demo.run(port=options.port, browser=not options.no_browser, say=say)


def run_serve(options: argparse.Namespace) -> int:
    from app import alive, serving

    if options.check:
        return check(alive.web(get_settings()))
    if options.workers < 1:
        raise Refused("--workers must be at least 1.", code=2)
    settings = get_settings()
    host, port = options.host or settings.host, settings.port if options.port is None else options.port
    refuse_used_port(host, port)
    with until_stopped() as stopping, services() as embedded:
        refuse_other_tables(get_settings())
        if embedded is not None:
            words = ["serve", "--host", host, "--port", str(port), "--workers", str(options.workers)]
            return run_beside(embedded, ["-m", "app.cli", *words], stopping)
        serving.serve(serving.config_of(host=host, port=port, processes=options.workers))
    return 0


def run_worker(options: argparse.Namespace) -> int:
    known = {"default", "model"}
    queues = [name.strip() for name in options.queues.split(",") if name.strip()]
    if not queues or not set(queues) <= known:
        raise Refused("--queues takes `default`, `model` or `default,model`.", code=2)
    if options.check:
        from app import alive

        with services():
            return check(alive.worker(queues))
    return run_worker_program(["--queues", ",".join(queues)])


def run_beat(options: argparse.Namespace) -> int:
    if options.check:
        from app import alive

        with services():
            return check(alive.beat(get_settings()))
    return run_worker_program(["beat"])


def check(alive: bool) -> int:
    """What a health check says, and its exit code."""
    say("alive" if alive else "not alive")
    return 0 if alive else 1


def run_worker_program(words: Sequence[str]) -> int:
    """Go on as the worker; where its services are ours to run, start it as a child and stay."""
    program = ["-m", "worker", *words]
    with until_stopped() as stopping, services() as embedded:
        wait_for_database(get_settings(), say=say)
        if embedded is None:
            become(program)
        else:
            return run_beside(embedded, program, stopping)
    return 0


def run_beside(embedded: Embedded, program: Sequence[str], stopping: Callable[[], None]) -> int:
    """Run a Python program as a child, keeping its services running; its exit code. Raises Refused."""
    from app.supervise import GaveUp, start_child, stop_child

    child = start_child([sys.executable, *program])
    code = 0
    try:
        with contextlib.suppress(Stopped):
            while child.poll() is None:
                for sentence in embedded.look(time.monotonic()):
                    warn(sentence)
                time.sleep(0.2)
    except GaveUp as error:
        raise Refused(f"Stopped: {error}. Its log is in {embedded.data_dir / 'logs'}.") from error
    finally:
        stopping()
        code = stop_child(child, patience=20)
    return code


def run_upgrade(_options: argparse.Namespace) -> int:
    from app import migrate

    with services():
        settings = get_settings()
        wait_for_database(settings, say=say)
        migrate.upgrade(settings.database_url)
        say(f"The tables are at revision {migrate.current_revision(settings.database_url)}.")
    return 0


def run_user_add(options: argparse.Namespace) -> int:
    from app.db import session_scope
    from app.models import Role
    from app.services import users
    from app.services.actors import SYSTEM

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
    from app.db import session_scope
    from app.models import Scope
    from app.services import users
    from app.services.actors import SYSTEM

    with prepared(), session_scope() as session:
        user = users.find_user(session, options.email)
        if user is None:
            raise Refused(f"There is nobody with the address {options.email}. Add them: `illume user add`.")
        _, plain = users.create_token(session, SYSTEM, user_id=user.id, scope=Scope(options.scope), name=options.name)
    say(plain)
    return 0


def run_project_add(options: argparse.Namespace) -> int:
    from app.db import session_scope
    from app.services import projects
    from app.services.actors import SYSTEM

    with prepared(), session_scope() as session:
        projects.create_project(session, SYSTEM, slug=options.slug, name=options.name or options.slug)
    say(f"Added the project {options.slug}.")
    return 0


def asker(question: str, *, yes: bool) -> Callable[[], bool]:
    """Asks a question of who sits there, unless `yes` was said before. Raises Refused where nobody does."""

    def ask() -> bool:
        if yes:
            return True
        if not sys.stdin.isatty():
            raise Refused("Nobody is there to say yes: add --yes.", code=2)
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")

    return ask


def run_round_start(options: argparse.Namespace) -> int:
    from app import round_commands

    with prepared():
        ask = asker("Start it?", yes=options.yes)
        return round_commands.start(options.slug, ask=ask, follow=options.follow, say=say)


def run_erase(options: argparse.Namespace) -> int:
    from app import erase_command

    with prepared():
        ask = asker("Erase it for good?", yes=options.yes)
        return erase_command.erase(options.kind, options.subject, ask=ask, say=say)


def run_round_list(options: argparse.Namespace) -> int:
    from app import round_commands

    with prepared():
        return round_commands.show(options.slug, say=say)


def run_round_cancel(options: argparse.Namespace) -> int:
    from app import round_commands

    with prepared():
        return round_commands.cancel(options.slug, say=say)


def run_import(options: argparse.Namespace) -> int:
    from app import transfer
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
    from app import transfer
    from app.services.datasets import parse_wanted
    from app.services.export_coding import Coding

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
    from app import backup

    target = options.out or Path(time.strftime("illume-backup-%Y%m%d-%H%M%S.tar"))
    with prepared() as settings:
        made = backup.backup(settings, target.absolute(), say=say)
    say(f"Wrote {target}: the database and {made.objects} objects of the store.")
    if not made.store:
        say("The store is a bucket: back it up with its own means.")
    return 0


def run_restore(options: argparse.Namespace) -> int:
    from app import backup

    with services():
        settings = get_settings()
        wait_for_database(settings, say=warn)
        found = backup.restore(settings, options.file.absolute(), replace=options.replace, say=say)
    say(f"Restored what was backed up at {found.made_at}: the database and {found.objects} objects of the store.")
    return 0


def run_doctor(options: argparse.Namespace) -> int:
    from app import doctor

    problems = 0
    with services():
        for finding in doctor.examine(get_settings(), processes=options.workers, models=not options.skip_model):
            say(f"{'ok     ' if finding.ok else 'PROBLEM'}  {finding.what}: {finding.detail}")
            if not finding.ok:
                say(f"         {finding.remedy}")
                problems += 1
    return 1 if problems else 0


@contextlib.contextmanager
def prepared() -> Iterator[Settings]:
    """The settings, with a database behind them that answers and has the tables this version needs."""
    with services():
        settings = get_settings()
        refuse_other_tables(settings)
        yield settings


def refuse_other_tables(settings: Settings) -> None:
    """Wait for the database; raise Refused where it has not the tables this version needs."""
    from app import migrate

    wait_for_database(settings, say=warn)
    if migrate.current_revision(settings.database_url) != migrate.wanted_revision():
        raise Refused("The tables are not those this version needs. Run `illume db upgrade` first.")


if __name__ == "__main__":
    sys.exit(main())
