"""A database without a pooler before it, and the limits that each connection gets. PgBouncer: tests/deployments."""

from __future__ import annotations

import asyncio

import psycopg
from sqlalchemy import Engine, text

from app.db import poolers
from app.db.engine import SERVER_SETTINGS, libpq_url
from app.db.judging_pool import PLANNER, JudgingPool, statement


def test_nothing_stands_before_a_server_itself(database_url: str) -> None:
    assert not poolers.shares_connections(database_url)
    with psycopg.connect(libpq_url(database_url)) as connection:
        assert poolers.server_process(connection) == connection.info.backend_pid


def test_every_connection_has_its_limits_after_a_rollback_too(engine: Engine) -> None:
    with engine.connect() as connection:
        for _ in range(2):
            found = {name: connection.scalar(text(f"SELECT current_setting('{name}')")) for name in SERVER_SETTINGS}
            assert found == SERVER_SETTINGS
            connection.rollback()


def test_the_judging_pool_has_them_and_its_planner(database_url: str) -> None:
    wanted = SERVER_SETTINGS | PLANNER
    columns = ", ".join(f"current_setting('{name}') AS {name}" for name in wanted)

    async def read() -> dict[str, object]:
        pool = JudgingPool(database_url, size=1, wait=5)
        await pool.open()
        try:
            async with pool.reading() as transaction:
                [row] = await transaction.run((statement(f"SELECT {columns}"), {}))
            return dict(row or {})
        finally:
            await pool.close()

    assert asyncio.run(read()) == wanted
