"""Model servers, and the adapters that they were given."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, String, Text, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, StoredPhrase
from app.models.states import EnumText, enum_check


class EngineState(StrEnum):
    """State of a model server: its probe is due, it can be used, or it cannot."""

    probing = "probing"
    ready = "ready"
    failed = "failed"


class AdapterState(StrEnum):
    """State of a version's adapter on a model server."""

    waiting = "waiting"  # to be handed over
    loaded = "loaded"
    failed = "failed"
    unloaded = "unloaded"


class Engine(Base):
    """A model server that projects may sample from. `sealed_key` is its key, encrypted with the installation's.

    `model` is the name of the base model on the server, `adapters_path` the folder under which the server sees the
    adapters, `revision` the one that the server loaded, as an admin knows it. `capabilities` are what the probe found.
    """

    __tablename__ = "engines"
    __table_args__ = (enum_check("state", EngineState), UniqueConstraint("name"))

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    kind: Mapped[str] = mapped_column(String(16), server_default="openai")
    base_url: Mapped[str] = mapped_column(String(2000))
    model: Mapped[str] = mapped_column(String(500))
    revision: Mapped[str | None] = mapped_column(String(100))
    sealed_key: Mapped[str | None] = mapped_column(Text)
    adapters_path: Mapped[str | None] = mapped_column(String(1000))
    in_flight: Mapped[int] = mapped_column(server_default="16")
    state: Mapped[EngineState] = mapped_column(EnumText(EngineState), server_default=EngineState.probing.value)
    error: Mapped[str | None] = mapped_column(Text)
    error_phrase: Mapped[StoredPhrase]
    capabilities: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    requested_at: Mapped[datetime] = mapped_column(server_default=func.now())
    probed_at: Mapped[datetime | None]
    created_by: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class EngineAdapter(Base):
    """A version's adapter under a name of its own on a model server; `activate`: the version becomes active with it."""

    __tablename__ = "engine_adapters"
    __table_args__ = (
        enum_check("state", AdapterState),
        UniqueConstraint("name"),
        Index("ix_engine_adapters_version_id", "version_id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    engine_id: Mapped[int] = mapped_column(ForeignKey("engines.id", ondelete="CASCADE"))
    version_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    state: Mapped[AdapterState] = mapped_column(EnumText(AdapterState), server_default=AdapterState.waiting.value)
    activate: Mapped[bool] = mapped_column(server_default=text("false"))
    error: Mapped[str | None] = mapped_column(Text)
    error_phrase: Mapped[StoredPhrase]
    requested_at: Mapped[datetime] = mapped_column(server_default=func.now())
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
