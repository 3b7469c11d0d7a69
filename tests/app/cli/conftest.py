"""Fixtures for the tests of commands: a database's role with few rights."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from tests.conftest import CommittedDatabase


def empty(database: CommittedDatabase) -> None:
    """Remove all tables."""
    with database.engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))


@pytest.fixture
def tenant(committed_db: CommittedDatabase) -> Iterator[str]:
    """A role that may make tables in an empty database, and owns nothing: its URL. An admin has added the extension."""
    role = f"tenant_{os.getpid()}"
    empty(committed_db)
    with committed_db.engine.begin() as connection:
        connection.execute(text("CREATE EXTENSION pg_trgm"))
        connection.execute(text(f"CREATE ROLE {role} LOGIN"))
        connection.execute(text(f"GRANT USAGE, CREATE ON SCHEMA public TO {role}"))
    yield committed_db.url.replace("//illume@", f"//{role}@")
    with committed_db.engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role} CASCADE"))
        connection.execute(text(f"DROP ROLE {role}"))
