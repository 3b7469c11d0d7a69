"""Checks and trials of models, and pauses of projects whose model cannot be used."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, String, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, StoredPhrase
from app.models.states import EnumText, enum_check


class CheckState(StrEnum):
    """State of a base model check. `passed`: a worker could load the model."""

    queued = "queued"
    passed = "passed"
    failed = "failed"


class BaseCheck(Base):
    """A worker's check of a base model before a project uses it.

    `detail`: a description, or why it cannot be used. `pictures_first`: whether the model reads all pictures of a
    prompt before its texts; null if the check could not see it.
    """

    __tablename__ = "base_checks"
    __table_args__ = (enum_check("state", CheckState), Index("ix_base_checks_base_model_id", "base_model", "id"))

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    base_model: Mapped[str] = mapped_column(String(500))
    state: Mapped[CheckState] = mapped_column(EnumText(CheckState), server_default=CheckState.queued.value)
    detail: Mapped[str] = mapped_column(Text, server_default="")
    detail_phrase: Mapped[StoredPhrase]
    pictures_first: Mapped[bool | None]
    created_by: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class SamplingPause(Base):
    """Why a project's version could not be used, how often that was tried, and until when nobody tries again."""

    __tablename__ = "sampling_pauses"

    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id", ondelete="CASCADE"), primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    reason_phrase: Mapped[StoredPhrase]
    tries: Mapped[int] = mapped_column(server_default="1")
    until: Mapped[datetime]


class ModelTrial(Base):
    """A project's version that a worker uses now; one that a dead worker left counts against it."""

    __tablename__ = "model_trials"

    worker: Mapped[str] = mapped_column(String(200), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    version_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id", ondelete="CASCADE"))
    since: Mapped[datetime] = mapped_column(server_default=func.now())
