"""Tables that make lists over millions of rows fast: searchable text of prompts, and where critics disagree."""

from __future__ import annotations

from sqlalchemy import DDL, BigInteger, ForeignKey, Index, String, Text, event
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base


class PromptWords(Base):
    """Question, answer and external id of a prompt in lower case, one a line. Maintained by triggers."""

    __tablename__ = "prompt_words"
    __table_args__ = (
        Index("ix_prompt_words_project_id", "project_id", "prompt_id"),
        Index("ix_prompt_words_words", "words", postgresql_using="gin", postgresql_ops={"words": "gin_trgm_ops"}),
    )

    prompt_id: Mapped[int] = mapped_column(
        ForeignKey("prompts.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    project_id: Mapped[int] = mapped_column(BigInteger)
    words: Mapped[str] = mapped_column(Text)


event.listen(PromptWords.__table__, "before_create", DDL("CREATE EXTENSION IF NOT EXISTS pg_trgm"))  # type: ignore[no-untyped-call]  # SQLAlchemy's own


class SetAgreement(Base):
    """A candidate set that two or more critics judged. `apart`: they did not all pick the same candidates.

    Maintained by the sweep, which follows the feed of verdicts. `last_verdict_id` is the newest verdict on the set.
    """

    __tablename__ = "agreements"
    __table_args__ = (
        Index("ix_agreements_prompts", "project_id", "apart", "prompt_id"),
        Index("ix_agreements_newest", "project_id", "last_verdict_id"),
    )

    candidate_set_id: Mapped[int] = mapped_column(
        ForeignKey("candidate_sets.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    project_id: Mapped[int] = mapped_column(BigInteger)
    prompt_id: Mapped[int] = mapped_column(BigInteger)
    apart: Mapped[bool]
    last_verdict_id: Mapped[int] = mapped_column(BigInteger)


class AgreementPosition(Base):
    """The position in a project's feed of verdicts up to which its agreements are current."""

    __tablename__ = "agreement_places"

    project_id: Mapped[int] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    feed_xid: Mapped[str] = mapped_column(String(20), server_default="0")
    feed_id: Mapped[int] = mapped_column(BigInteger, server_default="0")
