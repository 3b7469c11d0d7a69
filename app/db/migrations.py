"""The database schema: upgrade it, and compare it with what this code needs."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, pool

from app.db.engine import sqlalchemy_url
from app.settings import ROOT


def alembic_config(url: str) -> Config:
    """Return Alembic's configuration for the database at `url`."""
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations").replace("%", "%%"))
    config.attributes["database_url"] = url
    return config


def upgrade(url: str, revision: str = "head") -> None:
    """Upgrade the database to `revision`. Concurrent callers wait for each other."""
    command.upgrade(alembic_config(url), revision)


def upgrade_on(connection: Connection, revision: str) -> None:
    """Upgrade the database to `revision` in the transaction of `connection`, which the caller ends."""
    config = alembic_config("")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def is_known(revision: str) -> bool:
    """Whether `revision` is one of those that lead to this version."""
    return any(one.revision == revision for one in ScriptDirectory.from_config(alembic_config("")).walk_revisions())


def downgrade(url: str, revision: str) -> None:
    """Downgrade the database to `revision`; `base` removes all tables."""
    command.downgrade(alembic_config(url), revision)


def check(url: str) -> None:
    """Raise alembic's CommandError if the tables in the database differ from those of `app.models`."""
    command.check(alembic_config(url))


def required_revision() -> str | None:
    """The revision this code needs."""
    return ScriptDirectory.from_config(alembic_config("")).get_current_head()


def current_revision(url: str) -> str | None:
    """The revision of the database; None before the first migration."""
    engine = create_engine(sqlalchemy_url(url), poolclass=pool.NullPool, connect_args={"connect_timeout": 3})
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()
