"""What the commands share: output, confirmation, the option `--data-dir`, the database, reporting failures."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from app.errors import DomainError
from app.processes.connect import Refused, refuse_few_rights, services, set_environment, wait_for_database
from app.settings import Settings, get_settings
from illume.root import default_data_dir
from illume.validation import describe_problem

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
            raise Refused("There is no terminal to ask for confirmation: add --yes.", code=2)
        return click.confirm(question)

    return confirm


MAKERS = ("demo", "serve", "restore")
"""The commands that make a new installation where there is none. `illume db upgrade` does so in the default place."""


def set_data_dir(context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    """Use another data directory, in this process and those it starts.

    Raises Refused where there is none yet and nothing is to be made: a misspelt name must not become a new database.
    """
    if value is not None:
        set_environment({"ILLUME_DATA_DIR": str(value.absolute())})
    settings = get_settings()
    embedded = not (settings.database_url and settings.redis_url) and context.info_name != "upgrade"
    if context.info_name not in MAKERS and not settings.data_dir.is_dir() and (value is not None or embedded):
        raise Refused(
            f"There is no data directory {settings.data_dir}: name an existing one with --data-dir. "
            "`illume demo`, `illume serve` and `illume restore` create new ones.",
            code=2,
        )


data_dir_option = click.option(
    "--data-dir",
    type=FilePath,
    metavar="DIR",
    expose_value=False,
    callback=set_data_dir,
    help=f"Folder for stored files and embedded services.  [default: ILLUME_DATA_DIR, else {default_data_dir()}]",
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
        raise Refused("The database does not have the tables that this version needs. Run `illume db upgrade` first.")


def upgrade_tables(settings: Settings) -> None:
    """Create the tables, or bring them up to date. Raises Refused where the role of the database may not do so."""
    from app.db import migrations

    if migrations.current_revision(settings.database_url) != migrations.required_revision():
        refuse_few_rights(settings)
    migrations.upgrade(settings.database_url)


def say_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows in columns."""
    lines = [[str(value) for value in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        say("  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip())


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
            warn(f"illume: ILLUME_{str(one['loc'][0]).upper()} is {one['input']!r}: it {describe_problem(one)}.")
        return 2
