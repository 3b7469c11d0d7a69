"""Blind comparisons of two versions by critics."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, Text, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, StoredPhrase
from app.models.states import EnumText, enum_check


class ComparisonState(StrEnum):
    open = "open"
    closed = "closed"


class Preferred(StrEnum):
    """Which of two versions a critic preferred."""

    old = "old"
    new = "new"
    neither = "neither"


class Comparison(Base):
    """Two versions whose rationales critics compare blindly.

    `each` is how many critics judge a pair. A `gate` decides whether the new version becomes active.
    """

    __tablename__ = "comparisons"
    __table_args__ = (
        enum_check("state", ComparisonState),
        CheckConstraint("old_id <> new_id", name="two_versions"),
        UniqueConstraint("project_id", "number"),
        Index("ix_comparisons_open", "project_id", "id", postgresql_where=text("state = 'open'")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    number: Mapped[int]
    old_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id"))
    new_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id"))
    state: Mapped[ComparisonState] = mapped_column(EnumText(ComparisonState), server_default=ComparisonState.open.value)
    each: Mapped[int] = mapped_column(server_default="1")
    gate: Mapped[bool] = mapped_column(server_default=text("false"))
    outcome: Mapped[str] = mapped_column(Text, server_default="")
    outcome_phrase: Mapped[StoredPhrase]
    created_by: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    closed_at: Mapped[datetime | None]


class ComparisonPair(Base):
    """What the two versions of a comparison wrote for one prompt. `alike`: the texts are equal, so nobody is asked."""

    __tablename__ = "comparison_pairs"
    __table_args__ = (UniqueConstraint("comparison_id", "position"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    comparison_id: Mapped[int] = mapped_column(ForeignKey("comparisons.id", ondelete="CASCADE"))
    position: Mapped[int]
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompts.id", ondelete="CASCADE"), index=True)
    answer: Mapped[str | None] = mapped_column(Text)
    old_text: Mapped[str] = mapped_column(Text)
    new_text: Mapped[str] = mapped_column(Text)
    alike: Mapped[bool] = mapped_column(server_default=text("false"))


class Preference(Base):
    """What one critic preferred of a pair; `left` says whose text was shown on the left."""

    __tablename__ = "preferences"
    __table_args__ = (
        enum_check("preferred", Preferred),
        CheckConstraint("\"left\" IN ('old', 'new')", name="left_known"),
        UniqueConstraint("pair_id", "critic_id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    pair_id: Mapped[int] = mapped_column(ForeignKey("comparison_pairs.id", ondelete="CASCADE"))
    critic_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    preferred: Mapped[Preferred] = mapped_column(EnumText(Preferred, 8))
    left: Mapped[Preferred] = mapped_column(EnumText(Preferred, 8))
    seconds: Mapped[float | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
