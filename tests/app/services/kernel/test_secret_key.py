"""The check of the secret key that the database keeps."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import delete, insert, select, text
from sqlalchemy.orm import Session

from app.db import migrations
from app.models import Installation
from app.processes.connect import forget_settings
from app.services.kernel import secret_key
from app.settings import get_settings
from tests.conftest import CommittedDatabase

BLOCKED = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")


def stored(database: CommittedDatabase) -> str | None:
    with database.sessions() as session:
        return session.scalar(select(Installation.key_check))


def ours() -> str:
    return secret_key.make_check(get_settings().secret_key)


@pytest.fixture
def with_another(committed_db: CommittedDatabase) -> CommittedDatabase:
    """A database that keeps the check of another key."""
    with committed_db.sessions.begin() as session:
        session.execute(insert(Installation).values(key_check=secret_key.make_check("another")))
    return committed_db


class TestMakeCheck:
    def test_it_depends_on_the_key_and_does_not_contain_it(self) -> None:
        assert secret_key.make_check("a") == secret_key.make_check("a") != secret_key.make_check("b")
        assert len(secret_key.make_check("ab" * 32)) == 64
        assert "abab" not in secret_key.make_check("ab" * 32)


class TestIsAnother:
    def test_only_where_the_stored_check_differs(self, session: Session) -> None:
        session.execute(delete(Installation))
        assert not secret_key.is_another(session)
        session.execute(insert(Installation).values(key_check=ours()))
        assert not secret_key.is_another(session)
        session.execute(delete(Installation))
        session.execute(insert(Installation).values(key_check=secret_key.make_check("another")))
        assert secret_key.is_another(session)


class TestStoreCheck:
    def test_the_first_one_is_stored_and_the_same_again_says_nothing(
        self, committed_db: CommittedDatabase, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(2):
            secret_key.store_check()
            assert stored(committed_db) == ours()
        assert caplog.messages == []

    def test_another_one_is_replaced_with_one_warning(
        self, with_another: CommittedDatabase, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(2):
            secret_key.store_check()
        assert stored(with_another) == ours()
        assert caplog.record_tuples == [(secret_key.__name__, logging.WARNING, secret_key.CHANGED)]

    def test_without_a_key_nothing_is_stored(
        self, with_another: CommittedDatabase, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        before = stored(with_another)
        monkeypatch.setenv("ILLUME_SECRET_KEY", "")
        forget_settings()
        secret_key.store_check()
        assert (stored(with_another), caplog.messages) == (before, [])

    def test_a_database_that_is_away_is_named_in_a_line(
        self, committed_db: CommittedDatabase, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("ILLUME_DATABASE_URL", "postgresql://illume@127.0.0.1:1/none")
        forget_settings()
        secret_key.store_check()
        [said] = caplog.messages
        assert said.startswith("The check of the secret key was not stored: (psycopg.OperationalError)")
        assert "\n" not in said

    def test_so_are_tables_of_before(self, committed_db: CommittedDatabase, caplog: pytest.LogCaptureFixture) -> None:
        migrations.downgrade(committed_db.url, "0047")
        secret_key.store_check()
        [said] = caplog.messages
        assert 'not stored: (psycopg.errors.UndefinedTable) relation "installations" does not exist' in said

    def test_a_database_that_cannot_be_written_to(
        self, committed_db: CommittedDatabase, caplog: pytest.LogCaptureFixture
    ) -> None:
        secret_key.store_check()
        with committed_db.engine.begin() as connection:
            name = connection.scalar(text("SELECT quote_ident(current_database())"))
            connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
        forget_settings()  # for new connections
        secret_key.store_check()
        assert caplog.messages == []  # it has the check already
        with committed_db.engine.begin() as connection:
            connection.execute(text("SET TRANSACTION READ WRITE"))
            connection.execute(delete(Installation))
        secret_key.store_check()
        [said] = caplog.messages
        assert "not stored: (psycopg.errors.ReadOnlySqlTransaction)" in said

    def test_of_two_at_once_one_replaces_it(self, with_another: CommittedDatabase) -> None:
        with ThreadPoolExecutor(1) as threads, with_another.sessions() as first:
            assert secret_key.replace_check(first)

            def replace_too() -> bool:
                with with_another.sessions.begin() as second:
                    return secret_key.replace_check(second)

            waiting = threads.submit(replace_too)
            await_block(with_another)
            first.commit()
            assert not waiting.result()
        assert stored(with_another) == ours()

    def test_of_two_first_ones_at_once_one_stores_it(self, committed_db: CommittedDatabase) -> None:
        with ThreadPoolExecutor(1) as threads, committed_db.sessions() as first:
            assert not secret_key.replace_check(first)

            def store_too() -> bool:
                with committed_db.sessions.begin() as second:
                    return secret_key.replace_check(second)

            waiting = threads.submit(store_too)
            await_block(committed_db)
            first.commit()
            assert not waiting.result()
        assert stored(committed_db) == ours()


def await_block(database: CommittedDatabase) -> None:
    """Wait until somebody waits for a lock."""
    deadline = time.monotonic() + 60
    with database.engine.connect() as connection:
        while not connection.scalar(BLOCKED):
            connection.rollback()
            assert time.monotonic() < deadline
            threading.Event().wait(0.02)
