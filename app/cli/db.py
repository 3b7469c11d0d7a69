"""`illume db`: maintain the database."""

from __future__ import annotations

import click

from app.cli.terminal import data_dir_option, say, upgrade_tables
from app.processes.connect import services, wait_for_database
from app.settings import get_settings


@click.group()
def db() -> None:
    """Maintain the database."""


@db.command()
@data_dir_option
def upgrade() -> None:
    """Create the tables, or bring them up to date."""
    from app.db import migrations

    with services():
        settings = get_settings()
        wait_for_database(settings, say=say)
        upgrade_tables(settings)
        say(f"The tables are at revision {migrations.current_revision(settings.database_url)}.")
