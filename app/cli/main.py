"""The `illume` command: reads the words of the command line and hands them on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from pydantic import ValidationError

from app.cli import commands, server
from app.cli.terminal import warn
from app.errors import DomainError
from app.processes.connect import Refused, set_environment
from app.settings import Settings

Command = Callable[[argparse.Namespace], int]
Subcommands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

ROLES = ("admin", "reviewer", "critic", "viewer")
SCOPES = ("read", "write", "admin")
SPLITS = ("train", "val", "test")
FORMATS = ("records", "sft", "preference", "kto", "sharegpt")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. What a person can mend is one sentence, never a traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["simulate"]:
        server.become(["-m", "illume.simulation", *words[1:]])
    if words[:1] == ["sample"]:
        server.become(["-m", "illume.sampling", *words[1:]])
    if words[:1] == ["scenes"]:
        server.become(["-m", "illume.scenes", *words[1:]])
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
    except ValidationError as error:
        if error.title != Settings.__name__:
            raise
        for one in error.errors(include_url=False):
            warn(f"illume: ILLUME_{str(one['loc'][0]).upper()} is {one['input']!r}: {one['msg']}.")
        return 2
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    """The whole grammar of the command line."""
    top = argparse.ArgumentParser(prog="illume", description="Critics pick rationales; their picks tune the model.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data-dir", type=Path, help="where embedded services and the store keep their files")
    words = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Command, text: str, to: Subcommands = words) -> argparse.ArgumentParser:
        made = to.add_parser(name, help=text, description=text, parents=[common])
        made.set_defaults(run=run)
        return made

    def group(name: str, text: str) -> Subcommands:
        return words.add_parser(name, help=text).add_subparsers(required=True, metavar="COMMAND")

    demo = add("demo", server.run_demo, "set up and run everything on this machine, with an example project")
    demo.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    demo.add_argument("--no-browser", action="store_true", help="open no browser")
    serve = add("serve", server.run_serve, "run the web server")
    serve.add_argument("--host", default=None, help="address to listen at; default: ILLUME_HOST, else 127.0.0.1")
    serve.add_argument("--port", type=int, default=None, help="default: ILLUME_PORT, else 8000")
    serve.add_argument("--workers", type=int, default=1, help="web processes")
    serve.add_argument("--check", action="store_true", help="only say, by the exit code, whether one is running well")
    worker = add("worker", server.run_worker, "run a worker")
    worker.add_argument("--queues", default="default,model", help="default, model or both, with a comma")
    worker.add_argument("--check", action="store_true", help="only say whether one of these runs on this machine")
    beat = add("beat", server.run_beat, "run the clock that looks for what is due")
    beat.add_argument("--check", action="store_true", help="only say whether one runs on this machine")
    add("upgrade", commands.run_upgrade, "bring the tables up to date", group("db", "the database"))
    user = add("add", commands.run_user_add, "add a person", group("user", "people"))
    user.add_argument("email", help="the address they sign in with")
    user.add_argument("--role", choices=ROLES, required=True, help="what they may do")
    user.add_argument("--project", action="append", default=[], help="a project's slug; may be repeated")
    user.add_argument("--password-stdin", action="store_true", help="read the password; else one is made and printed")
    token = add(
        "add", commands.run_token_add, "make a token and print it, once", group("token", "keys of the REST interface")
    )
    token.add_argument("email", help="the address of the person it speaks for")
    token.add_argument("--scope", choices=SCOPES, required=True, help="what it may do, within the person's role")
    token.add_argument("--name", default="", help="to tell it from others")
    project = add("add", commands.run_project_add, "add a project", group("project", "projects"))
    project.add_argument("slug", help="its name in addresses: lower-case letters, digits, hyphens")
    project.add_argument("--name", default=None, help="its name for people; default: the slug")
    tuning = group("round", "tuning rounds")
    starting = add("start", commands.run_round_start, "say what a round would train on, and start it", tuning)
    starting.add_argument("--yes", action="store_true", help="do not ask")
    starting.add_argument("--follow", action="store_true", help="stay and say how far it is, until it has ended")
    showing = add("list", commands.run_round_list, "the rounds of a project", tuning)
    stopping = add("cancel", commands.run_round_cancel, "stop the round that is going on", tuning)
    for one in (starting, showing, stopping):
        one.add_argument("slug", help="the project's")
    importing = add("import", commands.run_import, "import a file of prompts into a project")
    importing.add_argument("slug", help="the project's")
    importing.add_argument("file", type=Path, help="NDJSON, CSV, JSON, Parquet, a zip or a folder with one of them")
    importing.add_argument("--images", type=Path, default=None, help="a folder or a zip of the images that rows name")
    importing.add_argument("--split", choices=SPLITS, default="train", help="the split of rows that name none")
    importing.add_argument(
        "--map", action="append", default=[], metavar="COLUMN=FIELD", help="what a column becomes; may be repeated"
    )
    export = add("export", commands.run_export, "write a project's dataset to a file")
    export.add_argument("slug", help="the project's")
    export.add_argument("--format", choices=FORMATS, default="records", help="default: %(default)s")
    export.add_argument("--out", type=Path, required=True, help="a name in .parquet, .gz or .zst says what to write")
    export.add_argument("--task", choices=("sft", "preference", "kto"), default="sft", help="of sharegpt")
    export.add_argument("--aggregation", choices=("any", "majority", "all", "each"), help="over critics")
    export.add_argument("--image-paths", action="store_true", help="in Parquet: images by path, not embedded")
    export.add_argument("--with-images", action="store_true", help="lay the images beside the file")
    for name in commands.FILTERS:
        export.add_argument(f"--{name}", help=f"only those of this {name}, as in the REST interface")
    erasing = add("erase", commands.run_erase, "erase a person, an image or a project for good")
    erasing.add_argument("kind", choices=("person", "image", "project"), help="what it is")
    erasing.add_argument("subject", help="an address, an image's sha256, or a slug")
    erasing.add_argument("--yes", action="store_true", help="do not ask")
    backing = add("backup", commands.run_backup, "write everything to one file")
    backing.add_argument("--out", type=Path, default=None, help="default: illume-backup-TIME.tar")
    restoring = add("restore", commands.run_restore, "read everything from a file made by `illume backup`")
    restoring.add_argument("file", type=Path, help="the backup")
    restoring.add_argument("--replace", action="store_true", help="lose what the database holds now")
    words.add_parser("simulate", help="run the whole loop with a simulated critic (see `illume simulate --help`)")
    words.add_parser("sample", help="sample rationales of a prompts file (see `illume sample --help`)")
    words.add_parser("scenes", help="make scenes, train the starter model (see `illume scenes --help`)")
    doctor = add("doctor", commands.run_doctor, "look at everything Illume stands on")
    doctor.add_argument("--workers", type=int, default=1, help="how many web processes are planned")
    doctor.add_argument("--skip-model", action="store_true", help="do not load the starter model")
    return top
