"""The database: engine, sessions, the declarative base and its naming convention."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from select import POLLIN, poll
from typing import Any

import psycopg
from sqlalchemy import BigInteger, ColumnElement, DateTime, Engine, MetaData, any_, cast, create_engine, event, func
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from app.settings import get_settings

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

# Connections of a process beside the `pool_size` of its requests: for kinds with places of their own, and for health.
# A stream has one at its place and some that fetch its next pages.
# Some are the event loop's own (`app/lines.py`), for claims and verdicts.
IMAGES, UPLOADS, STREAMS, FETCHERS, LINES = 2, 2, 2, 2, 8
POOLED = IMAGES + UPLOADS + STREAMS * (1 + FETCHERS) + 1
BESIDE = POOLED + LINES
IDLE_SECONDS = 0.05
"""A connection that was idle for so long is asked whether it still stands before it is used."""


# A server that is cut off says nothing: after 20 s without a sign of it a connection is given up. TCP only.
CUT_OFF = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
}


class Base(DeclarativeBase):
    """Base of all tables. Times are with time zone, dictionaries and lists are JSONB."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own way to declare it
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
        list[str]: JSONB,
        list[int]: JSONB,
    }


def sqlalchemy_url(url: str) -> str:
    """`url` with the driver we use, whatever common spelling of PostgreSQL it has."""
    for prefix in ("postgresql+psycopg://", "postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg://" + url.removeprefix(prefix)
    raise ValueError("ILLUME_DATABASE_URL must start with postgresql://")


def plain_url(url: str) -> str:
    """`url` as the driver and PostgreSQL's own programs take it."""
    return sqlalchemy_url(url).replace("postgresql+psycopg://", "postgresql://", 1)


def connect_arguments(more: str = "") -> dict[str, Any]:
    """How we connect: so that locks, statements that run away and servers that are cut off are given up."""
    options = "-c lock_timeout=2000 -c statement_timeout=10000 -c transaction_timeout=10000 -c timezone=UTC -c jit=off"
    named = {"application_name": "illume", "client_encoding": "utf8"}
    return {"connect_timeout": 3, "options": f"{options} {more}".strip(), **named, **CUT_OFF}


def make_engine(url: str, *, pool_size: int) -> Engine:
    """An engine whose connections give up on locks and on statements that run away."""
    engine = create_engine(
        sqlalchemy_url(url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=5,
        pool_use_lifo=True,  # few connections that have their plans, rather than many that plan
        connect_args=connect_arguments(),
    )
    ping_after_idling(engine)
    return engine


def has_word(connection: DBAPIConnection) -> bool:
    """Whether there is something to read on a connection that nobody uses: mostly that it is over."""
    waiting = poll()
    waiting.register(connection.fileno(), POLLIN)
    return bool(waiting.poll(0))


def ping_after_idling(engine: Engine) -> None:
    """Ask whether a connection still stands before it is used, where it was idle or the server said something on it.

    A server that closes a connection says so; only one that was cut off does not. Asking each time took longer than
    what many requests ask for.
    """

    def note(_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        record.info["idle_since"] = time.monotonic()

    def look(connection: DBAPIConnection, record: ConnectionPoolEntry, _fairy: PoolProxiedConnection) -> None:
        idle = time.monotonic() - record.info.get("idle_since", time.monotonic())
        if idle < IDLE_SECONDS and not has_word(connection):
            return
        try:
            engine.dialect.do_ping(connection)
        except psycopg.Error as error:
            raise DisconnectionError from error

    event.listen(engine, "checkin", note)
    event.listen(engine, "checkout", look)


@functools.cache
def get_engine() -> Engine:
    """The engine of this process."""
    settings = get_settings()
    return make_engine(settings.database_url, pool_size=settings.pool_size + POOLED)


@functools.cache
def session_factory() -> sessionmaker[Session]:
    """The session factory of this process."""
    return sessionmaker(get_engine(), expire_on_commit=False)


def among(column: InstrumentedAttribute[int], ids: Iterable[int]) -> ColumnElement[bool]:
    """Whether a column is one of `ids`, however many: they go as one array, where `in_` takes 65,535 at most."""
    return column == any_(cast(list(ids), ARRAY(BigInteger)))


def now_of(session: Session) -> datetime:
    """The time by the database's clock: all times that are stored or compared come from it, whatever ours says."""
    return session.execute(func.now().select()).scalar_one()


@contextlib.contextmanager
def session_scope() -> Iterator[Session]:
    """A session that commits at the end and rolls back on an error; for workers, commands and streams."""
    with session_factory()() as session, session.begin():
        yield session
