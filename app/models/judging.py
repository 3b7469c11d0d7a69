"""Claims and verdicts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, FetchedValue, ForeignKey, Identity, Index, String, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.db.base import Base
from app.db.types import Xid8
from app.models.states import AssignmentState, EnumText, Purpose, VerdictKind, VerdictState, enum_check
from illume.texts import normalise_rationale


def _key_of_rationale(context: Any) -> str | None:
    """The key of the rationale that is inserted; SQLAlchemy calls it for each row."""
    rationale: str | None = context.get_current_parameters().get("rationale")
    return None if rationale is None else normalise_rationale(rationale)


class Assignment(Base):
    """A critic's time-limited claim on a slot of one candidate set.

    `project_id` is that of the set. It is no foreign key: with one, all critics would lock the project's one row, at a
    cost that grows with their number. `shown` is the order in which the candidates are shown, as ids. Only an
    assignment for `work` takes a slot. `repeat`: imported from elsewhere, where the same critic had judged the same set
    before. `is_blind`: its critic rates the image before any candidate is shown; `blind` are these values.
    """

    __tablename__ = "assignments"
    __table_args__ = (
        enum_check("state", AssignmentState),
        enum_check("purpose", Purpose),
        CheckConstraint("slot >= 1", name="slot_positive"),
        Index(
            "uq_assignments_slot",
            "candidate_set_id",
            "slot",
            unique=True,
            postgresql_where=text("state IN ('open', 'judged') AND purpose = 'work'"),
        ),
        Index(
            "uq_assignments_critic",
            "candidate_set_id",
            "critic_id",
            "purpose",
            unique=True,
            postgresql_where=text("state <> 'lapsed' AND NOT repeat"),
        ),
        Index("ix_assignments_open", "critic_id", "project_id", "id", postgresql_where=text("state = 'open'")),
        Index("ix_assignments_expires", "expires_at", postgresql_where=text("state = 'open'")),
        Index("ix_assignments_critic_id_id", "critic_id", "id"),
        Index(
            "ix_assignments_rated",
            "critic_id",
            "candidate_set_id",
            postgresql_where=text("state = 'lapsed' AND blind IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(BigInteger)
    candidate_set_id: Mapped[int] = mapped_column(ForeignKey("candidate_sets.id", ondelete="CASCADE"))
    critic_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    slot: Mapped[int]
    state: Mapped[AssignmentState] = mapped_column(EnumText(AssignmentState))
    purpose: Mapped[Purpose] = mapped_column(EnumText(Purpose), server_default=Purpose.work.value)
    repeat: Mapped[bool] = mapped_column(server_default=text("false"))
    shown: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    claimed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    extensions: Mapped[int] = mapped_column(server_default="0")
    is_blind: Mapped[bool] = mapped_column(server_default=text("false"))
    blind: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    blind_at: Mapped[datetime | None]


class Verdict(Base):
    """What one critic said about one candidate set.

    Its content never changes: a change is a new verdict that `supersedes` it. `current`: no other verdict superseded
    it. `deleted`: it was erased and is only a tombstone; `xid` is then that of the erasure. `xid` orders the feed by
    commit. `weight` is how reliable its critic was when it was given. `exhaustive`: its critic looked at
    all candidates, so that those not picked were rejected. `rationale_key` is the normalised form of the critic's own
    rationale; equal keys are the same rationale. `fields` are the values of the answer's other fields, where the
    project has such fields.
    """

    __tablename__ = "verdicts"
    __table_args__ = (
        enum_check("kind", VerdictKind),
        enum_check("state", VerdictState),
        CheckConstraint("seconds IS NULL OR seconds >= 0", name="seconds_positive"),
        CheckConstraint("(rationale IS NULL) = (rationale_key IS NULL)", name="rationale_has_key"),
        Index("uq_verdicts_supersedes", "supersedes", unique=True),
        Index("uq_verdicts_assignment_current", "assignment_id", unique=True, postgresql_where=text("current")),
        Index("ix_verdicts_feed", "project_id", "xid", "id"),
        Index("ix_verdicts_prompt_id", "prompt_id", postgresql_where=text("current")),
        Index("ix_verdicts_candidate_set_id", "candidate_set_id"),
        Index("ix_verdicts_decided", "candidate_set_id", postgresql_where=text("current AND state = 'decided'")),
        Index("ix_verdicts_critic_id", "critic_id", "project_id", "id"),
        Index("ix_verdicts_repeats", "project_id", postgresql_where=text("current AND state = 'repeat'")),
        Index("ix_verdicts_flagged", "project_id", "prompt_id", postgresql_where=text("current AND kind = 'flagged'")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    xid: Mapped[int] = mapped_column(Xid8, server_default=text("pg_current_xact_id()"), server_onupdate=FetchedValue())
    project_id: Mapped[int] = mapped_column(BigInteger)
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignments.id", ondelete="CASCADE"))
    candidate_set_id: Mapped[int] = mapped_column(ForeignKey("candidate_sets.id", ondelete="CASCADE"))
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompts.id", ondelete="CASCADE"))
    critic_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    kind: Mapped[VerdictKind] = mapped_column(EnumText(VerdictKind))
    state: Mapped[VerdictState] = mapped_column(EnumText(VerdictState), server_default=VerdictState.counted.value)
    current: Mapped[bool] = mapped_column(server_default=text("true"))
    deleted: Mapped[bool] = mapped_column(server_default=text("false"))
    supersedes: Mapped[int | None] = mapped_column(ForeignKey("verdicts.id"))
    reason: Mapped[str | None] = mapped_column(Text)
    rationale: Mapped[str | None] = mapped_column(Text)
    rationale_key: Mapped[str | None] = mapped_column(Text, default=_key_of_rationale)
    edited_from: Mapped[int | None] = mapped_column(ForeignKey("candidates.id"))
    tags: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    comment: Mapped[str | None] = mapped_column(Text)
    seconds: Mapped[float | None]
    exhaustive: Mapped[bool] = mapped_column(server_default=text("true"))
    fields: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    shown: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    weight: Mapped[float] = mapped_column(server_default="1")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    picks: Mapped[list[Pick]] = relationship(lazy="raise")


class Pick(Base):
    """A candidate that fits, in the judgement of the verdict's critic."""

    __tablename__ = "picks"

    verdict_id: Mapped[int] = mapped_column(ForeignKey("verdicts.id", ondelete="CASCADE"), primary_key=True)
    candidate_id: Mapped[int] = mapped_column(
        ForeignKey("candidates.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class IdempotencyKey(Base):
    """The response to a write under this key, kept so that a repeated request gets the same one."""

    __tablename__ = "idempotency_keys"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    request_hash: Mapped[str] = mapped_column(String(64))
    status: Mapped[int]
    response: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)
