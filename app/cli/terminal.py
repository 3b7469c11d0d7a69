"""What commands share: how they speak, ask, and find the database they work on."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from app.processes.connect import Refused, services, wait_for_database
from app.settings import Settings, get_settings


def say(text: str) -> None:
    """Tell the person at the terminal, at once."""
    print(text, flush=True)


def warn(text: str) -> None:
    """Tell the person something that does not belong to the output."""
    print(text, file=sys.stderr, flush=True)


def asker(question: str, *, yes: bool) -> Callable[[], bool]:
    """Asks a question of who sits there, unless `yes` was said before. Raises Refused where nobody does."""

    def ask() -> bool:
        if yes:
            return True
        if not sys.stdin.isatty():
            raise Refused("Nobody is there to say yes: add --yes.", code=2)
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")

    return ask


@contextlib.contextmanager
def prepared() -> Iterator[Settings]:
    """The settings, with a database behind them that answers and has the tables this version needs."""
    with services():
        settings = get_settings()
        refuse_other_tables(settings)
        yield settings


def refuse_other_tables(settings: Settings) -> None:
    """Wait for the database; raise Refused where it has not the tables this version needs."""
    from app.db import migrations

    wait_for_database(settings, say=warn)
    if migrations.current_revision(settings.database_url) != migrations.wanted_revision():
        raise Refused("The tables are not those this version needs. Run `illume db upgrade` first.")
