"""Lost connections of the pool are noticed before a request meets them."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.db import engine as engine_module
from app.db.sessions import session_scope
from app.services.kernel.store import StoreAway
from tests.conftest import CommittedDatabase

ALIVE = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'illume' AND datname = :name"
KILL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'illume' AND datname = :name"


@pytest.mark.parametrize("idle_seconds", [0.0, 3600.0])
def test_a_connection_lost_between_uses_is_replaced(
    committed_db: CommittedDatabase, monkeypatch: pytest.MonkeyPatch, idle_seconds: float
) -> None:
    engine = engine_module.make_engine(committed_db.url, pool_size=2)
    try:
        with engine.connect() as connection:
            first = connection.scalar(text("SELECT pg_backend_pid()"))
            name = connection.scalar(text("SELECT current_database()"))
        with committed_db.engine.connect() as other:
            other.execute(text(KILL), {"name": name})
            other.rollback()
            while other.scalar(text(ALIVE), {"name": name}):
                time.sleep(0.01)
        monkeypatch.setattr(engine_module, "IDLE_SECONDS", idle_seconds)
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT pg_backend_pid()")) != first
    finally:
        engine.dispose()


def test_a_connection_lost_in_use_fails_once(committed_db: CommittedDatabase) -> None:
    engine = engine_module.make_engine(committed_db.url, pool_size=2)
    try:
        with engine.connect() as connection:
            name = connection.scalar(text("SELECT current_database()"))
            with committed_db.engine.connect() as other:
                other.execute(text(KILL), {"name": name})
            with pytest.raises(DBAPIError) as lost:
                connection.execute(text("SELECT 1"))
            assert lost.value.connection_invalidated
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
    finally:
        engine.dispose()


def test_an_error_stays_what_it_was_where_postgresql_has_ended_the_connection(committed_db: CommittedDatabase) -> None:
    def ask_too_long() -> None:
        with session_scope() as session:
            pid = session.scalar(text("SELECT pg_backend_pid()"))
            with committed_db.engine.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
            raise StoreAway(OSError("silent"))

    with pytest.raises(StoreAway) as raised:
        ask_too_long()
    assert raised.value.reason == "silent"
    with session_scope() as session:
        assert session.scalar(text("SELECT 1")) == 1
