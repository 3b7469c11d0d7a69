"""Quality control: gold prompts, practice, critic standings, reviews; and claim positions."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, Text, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base
from app.models.states import EnumText, ReviewKind, ReviewState, enum_check


class GoldPrompt(Base):
    """A candidate set with a known right verdict.

    The candidates in `fits` must be picked and those in `unfit` must not; the others may be either. Critics cannot tell
    a gold prompt from others. One for `practice` is judged before real work, and the critic is told so.
    """

    __tablename__ = "gold_prompts"
    __table_args__ = (
        UniqueConstraint("candidate_set_id"),
        CheckConstraint("cardinality(fits) + cardinality(unfit) > 0", name="something_known"),
        Index("ix_gold_prompts_project_id", "project_id", "practice", postgresql_where=text("active")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompts.id", ondelete="CASCADE"))
    candidate_set_id: Mapped[int] = mapped_column(ForeignKey("candidate_sets.id", ondelete="CASCADE"))
    fits: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    unfit: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    explanation: Mapped[str | None] = mapped_column(Text)
    practice: Mapped[bool] = mapped_column(server_default=text("false"))
    active: Mapped[bool] = mapped_column(server_default=text("true"))
    created_by: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class PracticeAnswer(Base):
    """A critic's answer to a practice prompt, and its score from 0 to 1: null until they have picked.

    `fields` are their values where answers have fields: at first those given before any candidate was shown.
    """

    __tablename__ = "practice_answers"

    gold_id: Mapped[int] = mapped_column(ForeignKey("gold_prompts.id", ondelete="CASCADE"), primary_key=True)
    critic_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    picks: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    score: Mapped[float | None]
    fields: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class CriticStanding(Base):
    """The standing of a critic in a project. `paused_at`: no new claims until an admin resumes them.

    `score` is the mean over the `answered` gold prompts after the verdict `counts_from`. `weight` is the weight of
    their next verdicts. `daily_target`: how many verdicts a day an admin asks of them.
    """

    __tablename__ = "critic_standings"
    __table_args__ = (CheckConstraint("daily_target BETWEEN 1 AND 10000", name="daily_target_possible"),)

    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    critic_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True)
    answered: Mapped[int] = mapped_column(server_default="0")
    score: Mapped[float | None]
    weight: Mapped[float] = mapped_column(server_default="1")
    counts_from: Mapped[int] = mapped_column(BigInteger, server_default="0")
    paused_at: Mapped[datetime | None]
    practised_at: Mapped[datetime | None]
    daily_target: Mapped[int | None]


class Review(Base):
    """A case for a reviewer: a disagreement over a set, a flag, a late verdict, or a prompt that somebody sent them."""

    __tablename__ = "reviews"
    __table_args__ = (
        enum_check("kind", ReviewKind),
        enum_check("state", ReviewState),
        Index(
            "uq_reviews_one_open",
            "candidate_set_id",
            "kind",
            text("coalesce(verdict_id, 0)"),
            unique=True,
            postgresql_where=text("state IN ('open', 'sent_back')"),
        ),
        Index("ix_reviews_project_id", "project_id", "state", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    candidate_set_id: Mapped[int] = mapped_column(ForeignKey("candidate_sets.id", ondelete="CASCADE"))
    verdict_id: Mapped[int | None] = mapped_column(ForeignKey("verdicts.id", ondelete="CASCADE"), index=True)
    kind: Mapped[ReviewKind] = mapped_column(EnumText(ReviewKind))
    state: Mapped[ReviewState] = mapped_column(EnumText(ReviewState), server_default=ReviewState.open.value)
    note: Mapped[str | None] = mapped_column(Text)
    decided_by: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    decided_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ReturnedVerdict(Base):
    """A verdict sent back to its critic with a note. `answered_at`: the critic changed it, or confirmed it."""

    __tablename__ = "returned_verdicts"
    __table_args__ = (
        Index("ix_returned_verdicts_open", "critic_id", "project_id", postgresql_where=text("answered_at IS NULL")),
        Index("uq_returned_verdicts_open", "verdict_id", unique=True, postgresql_where=text("answered_at IS NULL")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    review_id: Mapped[int] = mapped_column(ForeignKey("reviews.id", ondelete="CASCADE"), index=True)
    verdict_id: Mapped[int] = mapped_column(ForeignKey("verdicts.id", ondelete="CASCADE"))
    critic_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    note: Mapped[str] = mapped_column(Text)
    created_by: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    answered_at: Mapped[datetime | None]


class ClaimPosition(Base):
    """Where a critic's next search for a claimable set begins, in the order in which sets are offered.

    Kept only for critics who have judged so many sets that a search went past the first ones. It is reset when a search
    reaches the end.
    """

    __tablename__ = "claim_places"

    critic_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True, index=True)
    taken: Mapped[int]
    rank: Mapped[float]
    set_id: Mapped[int] = mapped_column(BigInteger)
