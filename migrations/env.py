"""How migrations reach the database: one at a time, and never waiting long for a lock that live traffic holds."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, pool, text
from sqlalchemy.dialects.postgresql.base import ischema_names

from app.db.engine import sqlalchemy_url
from app.db.types import PgSnapshot, Xid8
from app.models import Base
from app.settings import get_settings

ONE_AT_A_TIME = 0x111E  # key of the advisory lock

for name, known in (("xid8", Xid8), ("pg_snapshot", PgSnapshot)):
    ischema_names.setdefault(name, known)  # so that `alembic check` can compare the types of columns


def migrate() -> None:
    """Run the migrations on the database of the settings, or on the one or the connection that the caller names."""
    open_connection = context.config.attributes.get("connection")
    if open_connection is not None:
        context.configure(connection=open_connection, target_metadata=Base.metadata)
        context.run_migrations()
        return
    url = context.config.attributes.get("database_url") or get_settings().database_url
    engine = create_engine(
        sqlalchemy_url(url),
        poolclass=pool.NullPool,
        connect_args={"application_name": "illume migrations"},
    )
    with engine.connect() as connection:
        connection.execute(text("SET timezone = 'UTC'"))
        connection.execute(text("SET lock_timeout = '60s'"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ONE_AT_A_TIME})
        connection.execute(text("SET lock_timeout = '5s'"))
        connection.commit()
        context.configure(connection=connection, target_metadata=Base.metadata, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()


migrate()
