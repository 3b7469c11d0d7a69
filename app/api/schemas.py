"""The shapes of the REST interface. Ids are opaque strings, times ISO 8601 in UTC."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

from fastapi import Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.models import (
    AssignmentState,
    DeliveryState,
    Prompt,
    PromptState,
    Role,
    RoundState,
    RoundTrigger,
    Scope,
    SnapshotItemRole,
    SnapshotKind,
    Split,
    VerdictKind,
    VerdictState,
)
from app.services.kernel.paging import MAX_LIMIT
from app.services.kernel.text_rules import JsonObject, Time
from app.services.projects.projects import ProjectSettings
from app.services.prompts.prompts import MAX_ITEMS, PartIn, PromptIn, PromptText, QuestionText, prompt_parts

T = TypeVar("T")


def _text_of_id(value: object) -> object:
    return str(value) if isinstance(value, int) else value


Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
Id = Annotated[str, BeforeValidator(_text_of_id)]


class Out(BaseModel):
    """Base class of responses, built from rows."""

    model_config = ConfigDict(from_attributes=True)


class ListOut(Out, Generic[T]):
    """A page of a list; `next` is the cursor of the following page."""

    items: Sequence[T]
    next: str | None = None


class ProblemOut(Out):
    """An error (RFC 9457). `detail` says what to do about it, `field` names the place."""

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None


class ProjectIn(ProjectSettings):
    """A new project; settings that are not given get their defaults."""

    slug: str
    name: str | None = None


class ProjectChange(ProjectSettings):
    """Changes to a project; only the given fields change."""

    name: str | None = None


class ProjectOut(ProjectSettings):
    """A project and its settings. Critics get those of their own work only."""

    id: Id
    slug: str
    name: str
    active_version: Id | None = None
    created_at: datetime


class ImageOut(Out):
    """An image. `sha256` is the hash of the bytes that `url` serves, not of the upload.

    `changes` says what was done to the upload: `turned`, `profile`, `colours`, `depth`, `flattened`, `first_frame`,
    `first_page`, `scaled_down`, `recoded`.
    """

    sha256: str
    url: str
    width: int
    height: int
    media_type: str
    size: int
    changes: list[str]


class PromptImageOut(Out):
    """An image of a prompt."""

    sha256: str
    url: str
    width: int
    height: int


class CandidateOut(Out):
    """A candidate, for everyone but its critics."""

    id: Id
    text: str
    version: Id | None
    temperature: float | None
    seed: str | None
    mean_logprob: float | None


class CandidateSetOut(Out):
    """A candidate set, for everyone but its critics."""

    id: Id
    version: Id | None
    source: str
    state: str
    candidates: list[CandidateOut]


class PromptOut(Out):
    """A prompt. Critics get only what they see when they judge it."""

    id: Id
    external_id: str | None
    split: str
    state: str | None = None
    images: list[PromptImageOut]
    question: str = Field(description="Of a prompt with several texts all of them, joined by spaces")
    parts: list[PartIn]
    answer: str | None
    references: list[str] | None = None
    metadata: dict[str, Any] | None = None
    priority: int | None = None
    has_accepted: bool | None = None
    created_at: datetime
    candidate_sets: list[CandidateSetOut] | None = None


class ItemError(Out):
    """Why one of several items was rejected."""

    index: int
    field: str | None
    detail: str


class PromptsAdded(Out):
    """The result of adding several prompts: `items` are the prompts that exist now, in order."""

    items: list[PromptOut]
    created: int
    unchanged: int
    errors: list[ItemError]


class PromptsIn(BaseModel):
    """Several new prompts. Each stands on its own: good ones are kept."""

    model_config = ConfigDict(extra="forbid")

    items: list[PromptIn] = Field(min_length=1, max_length=MAX_ITEMS)


class PromptChange(BaseModel):
    """Changes to a prompt. Question, answer and split are fixed once there are candidates."""

    model_config = ConfigDict(extra="forbid")

    question: QuestionText | None = None
    answer: PromptText | None = None
    split: Split | None = None
    references: list[PromptText] | None = None
    metadata: JsonObject | None = None
    priority: int | None = Field(None, ge=-1_000_000, le=1_000_000)
    blur: bool | None = Field(None, description="Sets `blur` in `metadata`: images are blurred until a critic asks")
    state: PromptState | None = Field(None, description="`retired`; or, of a prompt that is retired or held, another")


class ClaimedPromptOut(Out):
    """A prompt as its critic sees it."""

    id: Id
    external_id: str | None
    split: Split
    state: PromptState = Field(description="`ready` while the claim is open, then `judged`: never its true state")
    question: str = Field(description="Of a prompt with several texts all of them, joined by spaces")
    answer: str | None
    images: list[PromptImageOut]
    parts: list[PartIn]


class ShownCandidateOut(Out):
    """A candidate as its critics see it."""

    id: Id
    text: str


class ClaimOut(Out):
    """A claim as its critic sees it; `candidates` are in the order in which they are shown."""

    id: Id
    state: AssignmentState
    expires_at: datetime
    prompt: ClaimedPromptOut
    candidates: list[ShownCandidateOut]


class VerdictOut(Out):
    """A verdict: what was posted, and what came of it. Of an erased one only ids and times are left.

    `supersedes` is the verdict that it changed, `current` says that no other changed it. `snapshots` are those that
    hold it; critics are told of none, and see no state but those of plain work.
    """

    schema_version: Literal[1]
    id: Id
    prompt: Id
    candidate_set: Id
    assignment: Id
    critic: Id | None = Field(description="null once it was erased")
    kind: VerdictKind | None = Field(description="null once it was erased")
    state: VerdictState | Literal["deleted"]
    picks: list[Id]
    tags: dict[str, list[str]]
    reason: str | None
    rationale: str | None
    edited_from: Id | None
    comment: str | None
    seconds: float | None
    exhaustive: bool
    shown: list[Id]
    supersedes: Id | None
    current: bool
    deleted: bool
    snapshots: list[Id]
    created_at: datetime


class LeftOut(BaseModel):
    """A prompt that the model could not read: neither trained on nor scored. `role` is its part in the snapshot."""

    prompt: Id
    role: SnapshotItemRole
    rows: int
    reason: str


class RoundOut(Out):
    """A tuning round. `left_out` lists the prompts of its snapshot that the model could not read.

    Critics get its state and progress.
    """

    id: Id
    number: int
    state: RoundState
    progress: dict[str, Any]
    trigger: RoundTrigger
    snapshot: Id | None = None
    parent: Id | None = None
    version: Id | None = None
    losses: list[dict[str, Any]] | None = None
    metrics: dict[str, Any] | None = None
    decision: dict[str, Any] | None = None
    left_out: list[LeftOut] | None = None
    error: str | None = None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class VersionOut(Out):
    """A model version."""

    id: Id
    number: int
    active: bool
    parent: Id | None
    round: Id | None
    base_model: str
    metrics: dict[str, Any]
    created_at: datetime


class SnapshotIn(BaseModel):
    """A data set to freeze."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("", max_length=200)


class SnapshotOut(Out):
    """A frozen data set. `sha256` hashes its rows, `records_sha256` all records of that time; `card` describes both."""

    id: Id
    number: int
    kind: SnapshotKind
    name: str
    sha256: str
    records_sha256: str | None = Field(None, validation_alias="records_key")
    counts: dict[str, Any]
    card: dict[str, Any]
    redacted: int
    created_at: datetime


class ImportOut(Out):
    """An import: `done` of `total` lines, and the rejected lines with their reasons.

    `added_to_val`: of the prompts added those in val; null without `propose_val`. `image_changes`: what was done to how
    many images, such as `{"turned": 3}`.
    """

    id: Id
    state: str
    filename: str
    layout: str
    columns: dict[str, str]
    total: int | None
    done: int
    added: int
    added_to_val: int | None
    image_changes: dict[str, int]
    unchanged: int
    rejected: int
    problems: list[dict[str, Any]]
    error: str | None
    created_at: datetime
    finished_at: datetime | None


class WebhookIn(BaseModel):
    """A new webhook; without `project`, a slug, it receives the events of all projects."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(min_length=1, max_length=2000)
    events: list[str] = Field(min_length=1, max_length=20)
    project: str | None = None


class WebhookChange(BaseModel):
    """Changes to a webhook."""

    model_config = ConfigDict(extra="forbid")

    url: str | None = Field(None, min_length=1, max_length=2000)
    events: list[str] | None = Field(None, min_length=1, max_length=20)
    active: bool | None = None


class WebhookOut(Out):
    """A webhook. `secret` signs its deliveries and is shown once."""

    id: Id
    project: str | None
    url: str
    events: list[str]
    active: bool
    created_at: datetime
    secret: str | None = None


class DeliveryOut(Out):
    """One event for one webhook: `tries` so far, the `status` of the last response, and when the next try is due."""

    id: Id
    event: str
    state: DeliveryState
    tries: int
    status: int | None
    error: str | None
    next_at: datetime
    created_at: datetime
    finished_at: datetime | None
    payload: dict[str, Any]


class UserIn(BaseModel):
    """A new person, a member of `projects`."""

    model_config = ConfigDict(extra="forbid")

    email: str
    role: Role
    projects: list[str] = []
    password: str | None = None
    name: str = Field("", description="What they are called; at most 100 characters")


class UserChange(BaseModel):
    """Changes to a person."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    role: Role | None = None
    disabled: bool | None = None
    password: str | None = None
    projects: list[str] | None = None


class UserOut(Out):
    """A person."""

    id: Id
    email: str
    name: str = Field(description="What they call themselves; may be empty")
    role: Role
    projects: list[str]
    disabled: bool
    created_at: datetime


class TokenIn(BaseModel):
    """A new token."""

    model_config = ConfigDict(extra="forbid")

    scope: Scope
    name: str = ""
    max_open: int | None = Field(
        None, description="How many claims its bearer may hold; by default the project's limit"
    )
    requests_per_minute: int | None = Field(
        None, description="Requests per minute; by default the installation's limit"
    )
    expires_at: Time | None = None


class TokenOut(Out):
    """A token. `token` is its plain text, shown once."""

    id: Id
    scope: Scope
    name: str
    max_open: int | None
    requests_per_minute: int | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    token: str | None = None


def image_url(sha256: str) -> str:
    """The URL of an image."""
    return f"/api/v1/images/{sha256}"


def images_out(prompt: Prompt) -> list[PromptImageOut]:
    """The images of a prompt, which must be loaded."""
    return [
        PromptImageOut(
            sha256=shown.sha256,
            url=image_url(shown.sha256),
            width=shown.image.width,
            height=shown.image.height,
        )
        for shown in prompt.images
    ]


def prompt_out(prompt: Prompt, *, sets: list[CandidateSetOut] | None = None) -> PromptOut:
    """A prompt, whose images must be loaded."""
    return PromptOut(
        id=str(prompt.id),
        external_id=prompt.external_id,
        split=prompt.split,
        state=prompt.state,
        images=images_out(prompt),
        question=prompt.question,
        parts=[cast("PartIn", part) for part in prompt_parts(prompt)],
        answer=prompt.answer,
        references=prompt.references,
        metadata=prompt.extra,
        priority=prompt.priority,
        has_accepted=prompt.has_accepted,
        created_at=prompt.created_at,
        candidate_sets=sets,
    )
