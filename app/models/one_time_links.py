"""One-time links."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, ForeignKey, Identity, String, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base
from app.models.states import EnumText, enum_check


class LinkPurpose(StrEnum):
    """What a one-time link allows: to choose the first password, or a new one."""

    invitation = "invitation"
    password = "password"  # noqa: S105 - the purpose's name


class OneTimeLink(Base):
    """A link with which a person chooses a password, once. Only its hash is stored."""

    __tablename__ = "one_time_links"
    __table_args__ = (enum_check("purpose", LinkPurpose), UniqueConstraint("token_hash"))

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64))
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    purpose: Mapped[LinkPurpose] = mapped_column(EnumText(LinkPurpose))
    created_by: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
