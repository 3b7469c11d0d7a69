"""The states and kinds that columns may hold."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Generic, TypeVar

from sqlalchemy import CheckConstraint, Dialect, String
from sqlalchemy.types import TypeDecorator

EnumType = TypeVar("EnumType", bound=StrEnum)


class EnumText(TypeDecorator[EnumType], Generic[EnumType]):
    """A text column whose values are read as members of an enumeration. The database checks them: see `enum_check`."""

    impl = String
    cache_ok = True

    def __init__(self, states: type[EnumType], length: int = 16) -> None:
        super().__init__(length)
        self.states = states

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 - as the base has it
        """The text of a member, or a text itself."""
        return None if value is None else str(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> EnumType | None:  # noqa: ARG002 - as the base has it
        """The member that a text means."""
        return None if value is None else self.states(value)


class Role(StrEnum):
    """What a person may do, most to least: each role may do what those after it may."""

    admin = "admin"
    reviewer = "reviewer"
    critic = "critic"
    viewer = "viewer"


class Scope(StrEnum):
    """What a token may do at most."""

    read = "read"
    write = "write"
    admin = "admin"


class Split(StrEnum):
    train = "train"
    val = "val"
    test = "test"


class PromptState(StrEnum):
    waiting = "waiting"
    ready = "ready"
    judged = "judged"
    held = "held"
    retired = "retired"


class CandidateSource(StrEnum):
    model = "model"
    imported = "imported"


class CandidateSetState(StrEnum):
    """`sampling` is leased by a worker; `ready` may be claimed; `replaced` was taken back before anybody claimed it."""

    sampling = "sampling"
    ready = "ready"
    judged = "judged"
    replaced = "replaced"
    failed = "failed"


class AssignmentState(StrEnum):
    open = "open"
    judged = "judged"
    released = "released"
    lapsed = "lapsed"


class VerdictKind(StrEnum):
    picked = "picked"
    none_fit = "none_fit"
    skipped = "skipped"
    flagged = "flagged"


class Purpose(StrEnum):
    """Why a set is before somebody: only `work` takes a slot of it."""

    work = "work"
    gold = "gold"
    repeat = "repeat"
    review = "review"


class VerdictState(StrEnum):
    """`kept_aside`: given after its slot had gone to somebody else; not counted unless an admin takes it.

    `gold` and `repeat` tell of the critic, not of the prompt. `decided`: a reviewer's, which counts instead of all
    others on its set.
    """

    counted = "counted"
    kept_aside = "kept_aside"
    gold = "gold"
    repeat = "repeat"
    decided = "decided"


class ReviewKind(StrEnum):
    disagreement = "disagreement"
    flag = "flag"
    late = "late"


class ReviewState(StrEnum):
    """`sent_back`: it waits for a critic who was asked to look again; `dismissed`: nothing had to be decided."""

    open = "open"
    sent_back = "sent_back"
    decided = "decided"
    dismissed = "dismissed"


class RoundState(StrEnum):
    queued = "queued"
    preparing = "preparing"
    training = "training"
    evaluating = "evaluating"
    cancelling = "cancelling"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"

    @property
    def is_active(self) -> bool:
        """Whether the round is still going on."""
        return self in ACTIVE_ROUND_STATES


ACTIVE_ROUND_STATES = (
    RoundState.queued,
    RoundState.preparing,
    RoundState.training,
    RoundState.evaluating,
    RoundState.cancelling,
)


class RoundTrigger(StrEnum):
    auto = "auto"
    manual = "manual"
    rerun = "rerun"


class SnapshotKind(StrEnum):
    round = "round"
    frozen = "frozen"


class SnapshotItemRole(StrEnum):
    """`rationale` and `guard` rows are trained on, `val` and `heldout` rows are scored."""

    rationale = "rationale"
    guard = "guard"
    val = "val"
    heldout = "heldout"


class ImportState(StrEnum):
    """`draft`: somebody looks at what its columns mean; nothing is taken in yet."""

    draft = "draft"
    queued = "queued"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"


class DeliveryState(StrEnum):
    """`failed`: given up after the last try."""

    pending = "pending"
    delivered = "delivered"
    failed = "failed"


def enum_check(column: str, states: type[StrEnum]) -> CheckConstraint:
    """A check that `column` holds one of `states`."""
    values = ", ".join(f"'{state.value}'" for state in states)
    return CheckConstraint(f"{column} IN ({values})", name=f"{column}_known")
