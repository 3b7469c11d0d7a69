"""Publications: uploads of a snapshot or an adapter to the Hugging Face Hub."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, String, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, StoredPhrase
from app.models.states import EnumText, enum_check


class RepositoryKind(StrEnum):
    """What a repository holds."""

    dataset = "dataset"
    adapter = "adapter"


class PublicationState(StrEnum):
    queued = "queued"
    running = "running"
    uploaded = "uploaded"
    failed = "failed"


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
