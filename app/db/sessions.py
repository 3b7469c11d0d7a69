"""Database sessions of this process, and expressions that many queries share."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from datetime import datetime

from sqlalchemy import BigInteger, ColumnElement, any_, cast, func
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import InstrumentedAttribute, Session, sessionmaker

from app.db.engine import get_engine


@functools.cache
def session_factory() -> sessionmaker[Session]:
    """The session factory of this process."""
    return sessionmaker(get_engine(), expire_on_commit=False)


def id_in(column: InstrumentedAttribute[int], ids: Iterable[int]) -> ColumnElement[bool]:
    """Whether `column` is one of `ids`. They are sent as one array, because `in_` takes at most 65,535 values."""
    return column == any_(cast(list(ids), ARRAY(BigInteger)))


def database_now(session: Session) -> datetime:
    """The time by the database's clock. All times that are stored or compared come from it, never from ours."""
    return session.execute(func.now().select()).scalar_one()


@contextlib.contextmanager
def session_scope() -> Iterator[Session]:
    """A session that commits at the end and rolls back on an error, for workers, commands and streams.

    The error stays what it was where the rollback fails too, as it does once PostgreSQL has ended the connection.
    """
    failed: Exception | None = None
    try:
        with session_factory()() as session, session.begin():
            try:
                yield session
            except Exception as error:
                failed = error
                raise
    except SQLAlchemyError:
        if failed is None:
            raise
        raise failed from failed.__cause__


def open_session(session: Session | None) -> contextlib.AbstractContextManager[Session]:
    """`session` itself to be left open, or a short one of its own."""
    return session_scope() if session is None else contextlib.nullcontext(session)
