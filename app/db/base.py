"""The declarative base of all tables, and the naming convention of constraints."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from sqlalchemy import DateTime, MetaData, event
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column

from illume.phrases import stored_of

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


StoredPhrase = Annotated[dict[str, Any] | None, mapped_column(JSONB(none_as_null=True), nullable=True)]
"""A phrase as `illume.phrases.Phrase.stored` writes it."""
PHRASE = "_phrase"
"""What the name of a column ends in that holds, as JSON, the phrase of the English text in the column beside it."""


class Base(DeclarativeBase):
    """Base of all tables. Times are with time zone, dictionaries and lists are JSONB.

    Where a text has a column for its phrase, setting the text sets both; statements use `phrased`.
    """

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own way to declare it
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
        list[str]: JSONB,
        list[int]: JSONB,
    }

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for column in cls.__table__.columns:
            name = column.key.removesuffix(PHRASE)
            if name != column.key and name in cls.__table__.columns:
                event.listen(getattr(cls, name), "set", _keep_phrase)


def _keep_phrase(row: Base, text: str | None, _before: object, initiator: Any) -> None:
    setattr(row, initiator.key + PHRASE, stored_of(text))


def phrased(**texts: str | None) -> dict[str, Any]:
    """The values of columns and of those for their phrases, for a statement that sets both."""
    return {**texts, **{name + PHRASE: stored_of(text) for name, text in texts.items()}}
