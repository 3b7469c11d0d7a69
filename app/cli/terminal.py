"""What the commands share: output, confirmation, the option `--data-dir`, the database, reporting failures."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from app.errors import DomainError
from app.processes.connect import Refused, services, set_environment, wait_for_database
from app.settings import Settings, get_settings

Say = Callable[[str], None]
FilePath = click.Path(path_type=Path)


def say(text: str) -> None:
    """Print a line to standard output, at once."""
    click.echo(text)


def warn(text: str) -> None:
    """Print a line to standard error, for what is not part of the output."""
    click.echo(text, err=True)


def confirmer(question: str, *, yes: bool) -> Callable[[], bool]:
    """A function that asks for confirmation, unless `yes`. It raises Refused if there is no terminal."""

    def confirm() -> bool:
        if yes:
            return True
        if not sys.stdin.isatty():
            raise Refused("There is no terminal to ask at: add --yes to confirm.", code=2)
        return click.confirm(question)

    return confirm


def set_data_dir(_context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    """Use another data directory, in this process and those it starts."""
    if value is not None:
        set_environment({"ILLUME_DATA_DIR": str(value.absolute())})


data_dir_option = click.option(
    "--data-dir",
    type=FilePath,
    metavar="DIR",
    expose_value=False,
    callback=set_data_dir,
    help="Folder for stored files and embedded services.  [default: ILLUME_DATA_DIR, else `data` beside the code]",
)
"""The option of every command that uses the installation."""


def at_least_one(_context: click.Context, parameter: click.Parameter, value: int) -> int:
    """Refuse a number below 1. click's own `IntRange` would say "0 is not in the range x>=1"."""
    if value < 1:
        raise click.UsageError(f"{parameter.opts[0]} must be at least 1.")
    return value


@contextlib.contextmanager
def prepared() -> Iterator[Settings]:
    """Yield the settings once the database is reachable and has the tables that this version needs."""
    with services():
        settings = get_settings()
        refuse_other_tables(settings)
        yield settings


def refuse_other_tables(settings: Settings) -> None:
    """Wait for the database. Raise Refused if its tables are not those that this version needs."""
    from app.db import migrations

    wait_for_database(settings, say=warn)
    if migrations.current_revision(settings.database_url) != migrations.required_revision():
        raise Refused("The tables are not those this version needs. Run `illume db upgrade` first.")


def report_failures(command: Callable[[], Any]) -> int:
    """Run a command and return its exit code. Errors that the user can correct are printed as one sentence."""
    try:
        return int(command() or 0)
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
