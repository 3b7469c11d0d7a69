"""Operations: the installation, workers, devices, counts, webhooks, the audit log, and uploads to the Hub."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, String, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, StoredPhrase
from app.models.states import DeliveryState, EnumText, PublicationState, RepositoryKind, enum_check


class Installation(Base):
    """What all machines of an installation have in common, in one row: a check of the secret key, never the key.

    Web servers write it as they start. `app/services/kernel/secret_key.py` says what it is compared with.
    """

    __tablename__ = "installations"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, server_default="1")
    key_check: Mapped[str] = mapped_column(String(64))


class Worker(Base):
    """A worker process. It is alive while `beats_at` is recent; a separate thread sends the heartbeats."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    queues: Mapped[str] = mapped_column(String(100))
    device: Mapped[str] = mapped_column(String(100))
    doing: Mapped[str] = mapped_column(Text, server_default="")
    doing_phrase: Mapped[StoredPhrase]
    memory_mb: Mapped[int] = mapped_column(server_default="0")
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    beats_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Count(Base):
    """The number of items of one kind in a project, without the `CountDelta`s that are not folded in yet."""

    __tablename__ = "counts"

    project_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    what: Mapped[str] = mapped_column(Text, primary_key=True)
    n: Mapped[int] = mapped_column(BigInteger)


class CountDelta(Base):
    """How much one statement changed a count. Appended by triggers, folded in by the sweep."""

    __tablename__ = "count_deltas"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(BigInteger)
    what: Mapped[str] = mapped_column(Text)
    n: Mapped[int] = mapped_column(BigInteger)


class DeviceClaim(Base):
    """Which process holds a device. Only one model process may use a device at a time."""

    __tablename__ = "device_claims"

    device: Mapped[str] = mapped_column(String(200), primary_key=True)
    worker: Mapped[str] = mapped_column(String(200))
    purpose: Mapped[str] = mapped_column(String(100))
    beats_at: Mapped[datetime] = mapped_column(server_default=func.now())


class AuditEvent(Base):
    """Who did what to which object, written in the same transaction as the change."""

    __tablename__ = "audit_events"
    __table_args__ = (Index("ix_audit_events_project_id_id", "project_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int | None] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    action: Mapped[str] = mapped_column(String(100))
    subject: Mapped[str] = mapped_column(String(200))
    data: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class Webhook(Base):
    """An address that receives events: of one project, or without one of all projects.

    Its secret is derived from `salt` and the installation's key, and is stored nowhere. `feed_xid` and `feed_id` are
    the feed position up to which verdicts were delivered.
    """

    __tablename__ = "webhooks"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int | None] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    url: Mapped[str] = mapped_column(String(2000))
    events: Mapped[list[str]]
    salt: Mapped[str] = mapped_column(String(64))
    active: Mapped[bool] = mapped_column(server_default=text("true"))
    feed_xid: Mapped[str] = mapped_column(String(20), server_default="0")
    feed_id: Mapped[int] = mapped_column(BigInteger, server_default="0")
    created_by: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WebhookDelivery(Base):
    """One event for one webhook. A `pending` delivery is due at `next_at`; a sender postpones that before it sends."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        enum_check("state", DeliveryState),
        Index("ix_webhook_deliveries_webhook_id_id", "webhook_id", "id"),
        Index("ix_webhook_deliveries_due", "next_at", postgresql_where=text("state = 'pending'")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    webhook_id: Mapped[int] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    event: Mapped[str] = mapped_column(String(40))
    payload: Mapped[dict[str, Any]]
    state: Mapped[DeliveryState] = mapped_column(EnumText(DeliveryState), server_default=DeliveryState.pending.value)
    tries: Mapped[int] = mapped_column(server_default="0")
    next_at: Mapped[datetime] = mapped_column(server_default=func.now())
    status: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)
    error_phrase: Mapped[StoredPhrase]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class Publication(Base):
    """An upload that an admin asked for: of the snapshot or version `number`, to the repository `repo`.

    A `worker` holds it while it is running; another one takes it over if that one is gone. `address` is where it is.
    """

    __tablename__ = "publications"
    __table_args__ = (
        enum_check("kind", RepositoryKind),
        enum_check("state", PublicationState),
        Index("ix_publications_project_id_id", "project_id", "id"),
        Index("ix_publications_open", "id", postgresql_where=text("state IN ('queued', 'running')")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    kind: Mapped[RepositoryKind] = mapped_column(EnumText(RepositoryKind))
    number: Mapped[int]
    repo: Mapped[str] = mapped_column(String(200))
    public: Mapped[bool]
    licence: Mapped[str] = mapped_column(String(60))
    languages: Mapped[list[str]]
    state: Mapped[PublicationState] = mapped_column(
        EnumText(PublicationState), server_default=PublicationState.queued.value
    )
    worker: Mapped[str | None] = mapped_column(String(200))
    tries: Mapped[int] = mapped_column(server_default="0")
    address: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    error_phrase: Mapped[StoredPhrase]
    created_by: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]
