"""People, their memberships, sessions, tokens and one-time links."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, String, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.db.base import Base
from app.models.states import EnumText, Role, Scope, enum_check

MAX_BROWSER = 300
MAX_NAME = 100
MAX_LANGUAGE = 35
MAX_ISSUER = 500
MAX_SUBJECT = 255
SEEN_MINUTES = 5


class User(Base):
    """A person. `role` applies where no membership says otherwise; an admin is an admin in every project.

    `name` is what they call themselves, and may be empty. `language` is the one in which they read the pages (`en` or a
    folder of `app/locale`); where it is empty their browser says which.
    """

    __tablename__ = "users"
    __table_args__ = (enum_check("role", Role), Index("uq_users_email_lower", func.lower(text("email")), unique=True))

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    email: Mapped[str] = mapped_column(String(320))
    name: Mapped[str] = mapped_column(String(MAX_NAME), default="", server_default="")
    language: Mapped[str] = mapped_column(String(MAX_LANGUAGE), default="", server_default="")
    password_hash: Mapped[str | None]
    role: Mapped[Role] = mapped_column(EnumText(Role))
    judging_keys: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict, server_default=text("'{}'"))
    disabled_at: Mapped[datetime | None]
    erased_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ProviderIdentity(Base):
    """Who a person is at an OpenID Connect provider; `subject` is the provider's own name for them."""

    __tablename__ = "identities"
    __table_args__ = (UniqueConstraint("issuer", "subject"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    issuer: Mapped[str] = mapped_column(String(MAX_ISSUER))
    subject: Mapped[str] = mapped_column(String(MAX_SUBJECT))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Membership(Base):
    """A person's role in a project."""

    __tablename__ = "memberships"
    __table_args__ = (enum_check("role", Role),)

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True, index=True)
    role: Mapped[Role] = mapped_column(EnumText(Role))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WebSession(Base):
    """A signed-in browser. Only the hash of the cookie's value is stored.

    `browser` is what it calls itself; `last_seen_at` is exact to `SEEN_MINUTES`.
    """

    __tablename__ = "sessions"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    csrf_token: Mapped[str] = mapped_column(String(64))
    browser: Mapped[str] = mapped_column(String(MAX_BROWSER), server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]

    user: Mapped[User] = relationship(lazy="raise")


class SignInAttempt(Base):
    """An attempt to sign in, kept for a minute to limit the rate; `key` is a hashed account or address."""

    __tablename__ = "sign_in_tries"
    __table_args__ = (Index("ix_sign_in_tries_key_at", "key", "at"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    key: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class Token(Base):
    """A token for the REST interface. Only its hash is stored.

    `max_open` overrides how many claims its bearer may hold, `requests_per_minute` how often it may be used.
    """

    __tablename__ = "tokens"
    __table_args__ = (
        enum_check("scope", Scope),
        UniqueConstraint("token_hash"),
        CheckConstraint(
            "requests_per_minute IS NULL OR requests_per_minute BETWEEN 1 AND 1000000", name="requests_positive"
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    token_hash: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(200), server_default="")
    scope: Mapped[Scope] = mapped_column(EnumText(Scope))
    max_open: Mapped[int | None]
    requests_per_minute: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]

    user: Mapped[User] = relationship(lazy="raise")


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
