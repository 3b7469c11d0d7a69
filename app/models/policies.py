"""Policies: the rules by which images are assessed, in versions that never change."""

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

from app.db.base import Base


class Policy(Base):
    """A policy of a project, by its name; its versions say what it says."""

    __tablename__ = "policies"
    __table_args__ = (UniqueConstraint("project_id", "name"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class PolicyVersion(Base):
    """What a policy says from one edit to the next. Never changed, but that the creator may be erased.

    `categories` are as `illume.fields.policies.Policy` has them, and `text` is what models and critics read. A variant
    has the number of the version it was made from, `base_id`, and other statuses; equal ones are the same row.
    """

    __tablename__ = "policy_versions"
    __table_args__ = (
        CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name="sha256_form"),
        UniqueConstraint("policy_id", "number", "sha256"),
        Index(
            "uq_policy_versions_number", "policy_id", "number", unique=True, postgresql_where=text("base_id IS NULL")
        ),
        Index("ix_policy_versions_base_id", "base_id", postgresql_where=text("base_id IS NOT NULL")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    policy_id: Mapped[int] = mapped_column(ForeignKey("policies.id", ondelete="CASCADE"))
    number: Mapped[int]
    base_id: Mapped[int | None] = mapped_column(ForeignKey("policy_versions.id", ondelete="CASCADE"))
    sha256: Mapped[str] = mapped_column(String(64))
    header: Mapped[str] = mapped_column(Text, server_default="")
    categories: Mapped[list[Any]]
    text: Mapped[str] = mapped_column(Text)
    created_by: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
