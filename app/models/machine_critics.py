"""Machine critics: the jobs that fit them, and their scores of candidates."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, String, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, StoredPhrase
from app.db.types import Xid8
from app.models.states import CriticState, EnumText, enum_check


class CriticJob(Base):
    """The fitting of a machine critic after a round, on what people had judged by then.

    The lease (`worker`, `beats_at`, `fence`) says who runs it, as for rounds.
    """

    __tablename__ = "critic_jobs"
    __table_args__ = (
        enum_check("state", CriticState),
        Index("ix_critic_jobs_project_id_id", "project_id", "id"),
        Index(
            "uq_critic_jobs_one_active",
            "project_id",
            unique=True,
            postgresql_where=text("state IN ('queued', 'running', 'cancelling')"),
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[CriticState] = mapped_column(EnumText(CriticState), server_default=CriticState.queued.value)
    version_id: Mapped[int | None] = mapped_column(ForeignKey("model_versions.id", ondelete="CASCADE"))
    progress: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    error: Mapped[str | None] = mapped_column(Text)
    error_phrase: Mapped[StoredPhrase]
    tries: Mapped[int] = mapped_column(server_default="0")
    worker: Mapped[str | None] = mapped_column(String(200))
    beats_at: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class CandidateScore(Base):
    """A machine critic's score: of `helpfulness` in nats per token, of a `verifier` in nats; null: not to be rated."""

    __tablename__ = "candidate_scores"
    __table_args__ = (Index("ix_candidate_scores_version_id", "version_id"),)

    candidate_id: Mapped[int] = mapped_column(ForeignKey("candidates.id", ondelete="CASCADE"), primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id", ondelete="CASCADE"), primary_key=True)
    score: Mapped[float | None]


class MachineAccept(Base):
    """A candidate that a machine critic accepted for a prompt that nobody has judged.

    It is no verdict: it never makes a prompt accepted or fresh, and counts only while nobody has judged the prompt.
    `xid` is the transaction that added it, so that a round has what stood when it started.
    """

    __tablename__ = "machine_accepts"
    __table_args__ = (Index("ix_machine_accepts_project_id_xid", "project_id", "xid"),)

    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompts.id", ondelete="CASCADE"), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    candidate_id: Mapped[int] = mapped_column(ForeignKey("candidates.id", ondelete="CASCADE"), unique=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id", ondelete="CASCADE"), index=True)
    score: Mapped[float]
    xid: Mapped[int] = mapped_column(Xid8, server_default=func.pg_current_xact_id())
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
