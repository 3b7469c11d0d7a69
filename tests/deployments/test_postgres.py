"""A PostgreSQL that ends TLS itself: each kind of connection of Illume comes by it, and none without a certificate."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import text

from app.cli import doctor
from app.db import migrations
from app.db.engine import make_engine
from app.db.judging_pool import JudgingPool, statement
from app.settings import Settings
from tests.deployments.servers import make_certificates, postgres, refuses_strangers

pytestmark = pytest.mark.slow
ENCRYPTED = """
    SELECT count(*) FILTER (WHERE ssl), count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
    WHERE usename = 'illume' AND backend_type = 'client backend'
"""


def test_every_connection_is_encrypted(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    with postgres(certificates) as url:
        migrations.upgrade(url)
        assert doctor.check_database(Settings(database_url=url)).ok
        assert migrations.current_revision(url) == migrations.required_revision()
        asyncio.run(hold_pool(url))
        refuses_strangers(url, certificates, make_certificates(tmp_path / "others"))


async def hold_pool(url: str) -> None:
    """Look at all connections while the pool of judging and an engine hold one each."""
    pool, engine = JudgingPool(url, size=1, wait=10), make_engine(url, pool_size=1)
    await pool.open()
    try:
        async with pool.transaction() as transaction:
            [row] = await transaction.run((statement("SELECT 1 AS one"), {}))
            assert row == {"one": 1}
            with engine.connect() as connection:
                assert tuple(connection.execute(text(ENCRYPTED)).one()) == (2, 2)
    finally:
        await pool.close()
        engine.dispose()
