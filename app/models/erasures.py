"""Erasures: what is being deleted for good."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, String, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, StoredPhrase
from app.models.states import EnumText, enum_check


class ErasureKind(StrEnum):
    person = "person"
    image = "image"
    project = "project"


class ErasureState(StrEnum):
    open = "open"
    done = "done"


class Erasure(Base):
    """The erasure of a person, an image or a project. `subject` is an id, or an image's sha256.

    `name` is a project's slug. Of a person nothing is kept but the id.

    `counts` says what was erased so far. An erasure is resumed until nothing is left; each of its steps may run twice.
    """

    __tablename__ = "erasures"
    __table_args__ = (
        enum_check("kind", ErasureKind),
        enum_check("state", ErasureState),
        Index("ix_erasures_open", "id", postgresql_where=text("state = 'open'")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    kind: Mapped[ErasureKind] = mapped_column(EnumText(ErasureKind))
    subject: Mapped[str] = mapped_column(String(64))
    name: Mapped[str | None] = mapped_column(Text)
    state: Mapped[ErasureState] = mapped_column(EnumText(ErasureState), server_default=ErasureState.open.value)
    counts: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    error: Mapped[str | None] = mapped_column(Text)
    error_phrase: Mapped[StoredPhrase]
    created_by: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class StoreRemoval(Base):
    """A key of the store whose bytes are to be removed once nothing refers to it, or a copy of an adapter."""

    __tablename__ = "store_removals"

    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
