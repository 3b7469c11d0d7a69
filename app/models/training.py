"""Snapshots, rounds, model versions and their scores."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    String,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, StoredPhrase
from app.db.types import PgSnapshot
from app.models.states import (
    EnumText,
    RoundState,
    RoundTrigger,
    SnapshotItemRole,
    SnapshotKind,
    VersionKind,
    enum_check,
)


class Snapshot(Base):
    """The exact feedback, val prompts and settings that a round used, or that an admin froze.

    A worker makes a round's snapshot in steps; until it is `prepared`, it is not shown.

    `sha256` is the hash of the NDJSON file of its rows. After a redaction the file is `file_key`, and the hash stays.
    `records_key` is the file of all records at that moment. `card` describes both files.
    """

    __tablename__ = "snapshots"
    __table_args__ = (enum_check("kind", SnapshotKind), UniqueConstraint("project_id", "number"))

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    number: Mapped[int]
    kind: Mapped[SnapshotKind] = mapped_column(EnumText(SnapshotKind))
    name: Mapped[str] = mapped_column(String(200))
    sha256: Mapped[str] = mapped_column(String(64))
    file_key: Mapped[str | None] = mapped_column(String(64))
    records_key: Mapped[str | None] = mapped_column(String(64))
    card: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    settings: Mapped[dict[str, Any]]
    counts: Mapped[dict[str, Any]]
    redacted: Mapped[int] = mapped_column(server_default="0")
    prepared: Mapped[bool] = mapped_column(server_default=text("true"))
    created_by: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class SnapshotItem(Base):
    """One row of a snapshot."""

    __tablename__ = "snapshot_items"
    __table_args__ = (
        enum_check("role", SnapshotItemRole),
        Index("ix_snapshot_items_prompt_id", "prompt_id"),
        Index("ix_snapshot_items_verdict_id", "verdict_id"),
    )

    snapshot_id: Mapped[int] = mapped_column(ForeignKey("snapshots.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    role: Mapped[SnapshotItemRole] = mapped_column(EnumText(SnapshotItemRole))
    prompt_id: Mapped[int | None] = mapped_column(ForeignKey("prompts.id", ondelete="SET NULL"))
    verdict_id: Mapped[int | None] = mapped_column(ForeignKey("verdicts.id", ondelete="SET NULL"))
    candidate_id: Mapped[int | None] = mapped_column(ForeignKey("candidates.id", ondelete="SET NULL"))


class ModelVersion(Base):
    """A base model and one whole adapter; number 0 is the base model itself.

    `adapter` is a key of the store, empty for a base model. A base model that is chosen later is a version too; like
    number 0 it has no parent. A version of the kind `critic` is a machine critic, which
    has two adapters, one for each half of the prompts; it never writes candidates and cannot be active.
    """

    __tablename__ = "model_versions"
    __table_args__ = (
        enum_check("kind", VersionKind),
        UniqueConstraint("project_id", "number"),
        Index("ix_model_versions_critics", "project_id", "id", postgresql_where=text("kind = 'critic'")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    number: Mapped[int]
    kind: Mapped[VersionKind] = mapped_column(EnumText(VersionKind), server_default=VersionKind.sampler.value)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("model_versions.id"))
    round_id: Mapped[int | None] = mapped_column(ForeignKey("rounds.id", use_alter=True))
    base_model: Mapped[str] = mapped_column(Text)
    adapter: Mapped[str | None] = mapped_column(String(200))
    metrics: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Round(Base):
    """One tuning round.

    `position` and `revision_id` say what its snapshot holds: what stood at that position in the feed, by those
    settings. A rerun has the snapshot from the start.
    The lease (`worker`, `beats_at`, `fence`) says who runs it; every later write must match the fence.
    """

    __tablename__ = "rounds"
    __table_args__ = (
        enum_check("state", RoundState),
        enum_check("trigger", RoundTrigger),
        CheckConstraint(
            "snapshot_id IS NOT NULL OR (position IS NOT NULL AND revision_id IS NOT NULL)", name="has_content"
        ),
        UniqueConstraint("project_id", "number"),
        Index(
            "uq_rounds_one_active",
            "project_id",
            unique=True,
            postgresql_where=text("state IN ('queued', 'preparing', 'training', 'evaluating', 'cancelling')"),
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    number: Mapped[int]
    state: Mapped[RoundState] = mapped_column(EnumText(RoundState))
    trigger: Mapped[RoundTrigger] = mapped_column(EnumText(RoundTrigger))
    position: Mapped[str | None] = mapped_column(PgSnapshot)
    revision_id: Mapped[int | None] = mapped_column(ForeignKey("setting_revisions.id"))
    snapshot_id: Mapped[int | None] = mapped_column(ForeignKey("snapshots.id"))
    parent_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id"))
    version_id: Mapped[int | None] = mapped_column(ForeignKey("model_versions.id"))
    progress: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    metrics: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    decision: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    reason_phrase: Mapped[StoredPhrase]
    error: Mapped[str | None] = mapped_column(Text)
    error_phrase: Mapped[StoredPhrase]
    tries: Mapped[int] = mapped_column(server_default="0")
    worker: Mapped[str | None] = mapped_column(String(200))
    beats_at: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    created_by: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class RoundEvent(Base):
    """A point of a curve (`step`, `epoch`) or a line of a round's log (`log`).

    `position` is its line in the event file of the child process.
    """

    __tablename__ = "round_events"

    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any]]
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class Evaluation(Base):
    """The scores of one version on exact prompts with exact settings, cached so that they are computed only once."""

    __tablename__ = "evaluations"
    __table_args__ = (UniqueConstraint("version_id", "prompts_hash", "settings_hash"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id", ondelete="CASCADE"))
    prompts_hash: Mapped[str] = mapped_column(String(64))
    settings_hash: Mapped[str] = mapped_column(String(64))
    scores: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
