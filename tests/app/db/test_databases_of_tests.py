"""The databases that tests get: each is like its template, whatever the test before did with it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from app.db.engine import sqlalchemy_url
from tests.conftest import MIGRATED, Databases
from tests.factories import make_project

numbers = itertools.count()
Use = Callable[[Callable[[str], object]], object]
"""Takes a database, calls something with its URL, and puts it back. Returns the number that PostgreSQL has for it."""


@pytest.fixture
def use(databases: Databases) -> Use:
    """Uses a database, whose number is the same if it is the one of the last time."""

    def once(work: Callable[[str], object]) -> object:
        name = f"used_{next(numbers)}"
        url = databases.take(name, MIGRATED)
        with psycopg.connect(url) as connection:
            row = connection.execute("SELECT oid FROM pg_database WHERE datname = current_database()").fetchone()
        work(url)
        databases.put_back(name, MIGRATED)
        assert row is not None
        return row[0]

    return once


def add_project(url: str) -> None:
    engine = create_engine(sqlalchemy_url(url))
    with Session(engine) as session, session.begin():
        assert make_project(session).id == 1
    engine.dispose()


def test_rows_are_gone_and_numbers_begin_at_one_again(use: Use) -> None:
    assert use(add_project) == use(add_project)


def test_a_connection_left_open_ends(use: Use) -> None:
    left: list[psycopg.Connection[tuple[object, ...]]] = []
    use(lambda url: left.append(psycopg.connect(url)))
    with left[0], pytest.raises(psycopg.OperationalError):
        left[0].execute("SELECT 1")


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE projects ADD more integer",
        "DROP INDEX ix_prompts_project_id_id",
        "CREATE SCHEMA more",
        "DROP SCHEMA public CASCADE",
        """DO $$ BEGIN
            EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database());
        END $$""",
        "INSERT INTO audit_events (action, subject) SELECT 'add', repeat('x', 200) FROM generate_series(1, 20000)",
    ],
)
def test_one_with_other_tables_or_much_more_in_it_is_used_no_more(use: Use, statement: str) -> None:
    def change(url: str) -> None:
        with psycopg.connect(url) as connection:
            connection.execute(statement)

    assert use(change) != use(add_project)
