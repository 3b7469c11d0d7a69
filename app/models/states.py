"""The states and kinds that columns may hold."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Generic, TypeVar

from sqlalchemy import CheckConstraint, Dialect, String
from sqlalchemy.types import TypeDecorator

EnumType = TypeVar("EnumType", bound=StrEnum)


class EnumText(TypeDecorator[EnumType], Generic[EnumType]):
    """A text column whose values are members of an enumeration. The database checks them: see `enum_check`."""

    impl = String
    cache_ok = True

    def __init__(self, states: type[EnumType], length: int = 16) -> None:
        super().__init__(length)
        self.states = states

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 - as the base has it
        """Return the text of a member, or a text unchanged."""
        return None if value is None else str(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> EnumType | None:  # noqa: ARG002 - as the base has it
        """Return the member with this value."""
        return None if value is None else self.states(value)


class Role(StrEnum):
    """What a person is in a project. `app/services/kernel/rights.py` says what each may see and do."""

    admin = "admin"
    reviewer = "reviewer"
    critic = "critic"
    viewer = "viewer"


class Scope(StrEnum):
    """The most that a token may do."""

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


class SamplingFailure(StrEnum):
    """Why no candidates were written: the prompt is too long, all answers are invalid, or something else."""

    too_long = "too_long"
    invalid = "invalid"
    other = "other"


class CandidateSource(StrEnum):
    model = "model"
    imported = "imported"


class CandidateSetState(StrEnum):
    """State of a candidate set.

    `sampling`: leased by a worker. `ready`: claimable. `replaced`: withdrawn before anyone claimed it.
    """

    sampling = "sampling"
    ready = "ready"
    judged = "judged"
    replaced = "replaced"
    failed = "failed"


LIVE_SET_STATES = (CandidateSetState.sampling, CandidateSetState.ready)
"""A prompt has at most one candidate set in these states."""


class Selection(StrEnum):
    """How the candidates of a set that are shown came about, where a machine critic chooses them.

    `selected`: it chose them. `unselected`: the set was left as it was sampled, to measure the choice against.
    """

    selected = "selected"
    unselected = "unselected"


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
    """Why a set was claimed. Only `work` takes a slot."""

    work = "work"
    gold = "gold"
    repeat = "repeat"
    review = "review"


class VerdictState(StrEnum):
    """How a verdict counts.

    `kept_aside`: it came after its slot had gone to another critic, and does not count unless an admin accepts it.
    `gold` and `repeat` measure the critic, not the prompt. `decided`: a reviewer's verdict, which replaces all others
    on its set.
    """

    counted = "counted"
    kept_aside = "kept_aside"
    gold = "gold"
    repeat = "repeat"
    decided = "decided"


class ReviewKind(StrEnum):
    """Why something is reviewed. `asked`: a person sent the prompt to the reviewers."""

    disagreement = "disagreement"
    flag = "flag"
    late = "late"
    asked = "asked"


class ReviewState(StrEnum):
    """State of a review.

    `sent_back`: it waits for a critic who was asked to look again. `dismissed`: there was nothing to decide.
    """

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
        """Whether the round is still in progress."""
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


class VersionKind(StrEnum):
    """What a version does: `sampler` writes candidates, `critic` only rates them."""

    sampler = "sampler"
    critic = "critic"


class CriticState(StrEnum):
    """State of the fitting of a machine critic."""

    queued = "queued"
    running = "running"
    cancelling = "cancelling"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"


class SnapshotKind(StrEnum):
    round = "round"
    frozen = "frozen"


class SnapshotItemRole(StrEnum):
    """`rationale`, `guard`, `rejection` and `machine` rows are trained on; `val` and `heldout` rows are scored.

    A `machine` row is a rationale that nobody but a machine critic has accepted.
    """

    rationale = "rationale"
    guard = "guard"
    val = "val"
    heldout = "heldout"
    rejection = "rejection"
    machine = "machine"


class ImportState(StrEnum):
    """State of an import. `draft`: its columns are being reviewed; nothing is imported yet."""

    draft = "draft"
    queued = "queued"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"


class RepositoryKind(StrEnum):
    """What a repository holds."""

    dataset = "dataset"
    adapter = "adapter"


class PublicationState(StrEnum):
    queued = "queued"
    running = "running"
    uploaded = "uploaded"
    failed = "failed"


class DeliveryState(StrEnum):
    """State of a delivery. `failed`: given up after the last try."""

    pending = "pending"
    delivered = "delivered"
    failed = "failed"


def enum_check(column: str, states: type[StrEnum]) -> CheckConstraint:
    """A check constraint: `column` holds one of `states`."""
    values = ", ".join(f"'{state.value}'" for state in states)
    return CheckConstraint(f"{column} IN ({values})", name=f"{column}_known")
