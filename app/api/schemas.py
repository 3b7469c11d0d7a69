"""The shapes of the REST interface. Ids are opaque strings, times ISO 8601 in UTC."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

from fastapi import Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.models import (
    AdapterState,
    AssignmentState,
    DeliveryState,
    EngineState,
    Prompt,
    PromptState,
    Role,
    RoundState,
    RoundTrigger,
    Scope,
    Selection,
    SnapshotItemRole,
    SnapshotKind,
    Split,
    VerdictKind,
    VerdictState,
)
from app.services.kernel.paging import MAX_LIMIT
from app.services.kernel.text_rules import JsonObject, Text, Time
from app.services.kernel.verdict_schema import FieldValues
from app.services.projects.policies import PolicyIn
from app.services.projects.projects import ProjectSettings
from app.services.prompts.prompts import (
    MAX_ITEMS,
    GoldFields,
    PartIn,
    PromptIn,
    PromptText,
    QuestionText,
    images_path,
    prompt_parts,
)
from illume.fields.variants import CHANGES, Change

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
    scores: dict[str, float] = Field({}, description="By kind of machine critic, each of the newest one")
    fields: dict[str, str | None] | None = Field(None, description="Of a structured answer; null if it is invalid")
    invalid: str | None = Field(None, description="What is wrong with an answer that should be structured")
    spare: bool = Field(False, description="It was sampled to choose from, and is not shown to critics")
    accepted_by: Id | None = Field(
        None, description="The version of the machine critic that accepted it, while nobody has judged its prompt"
    )


class CandidateSetOut(Out):
    """A candidate set, for everyone but its critics."""

    id: Id
    version: Id | None
    source: str
    state: str
    error: str | None = Field(None, description="Why there are no candidates that can be judged")
    selection: Selection | None = Field(
        None,
        description="selected: a machine critic chose which candidates are shown; unselected: they were left as they "
        "came, to measure that against; null: there was nothing to choose",
    )
    selected_by: Id | None = Field(None, description="The version of the machine critic, also of an unselected set")
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
    policy: Id | None = Field(None, description="The id of a version of a policy")
    fields: dict[str, str | None] | None = Field(None, description="Gold values of a structured answer")
    references: list[str] | None = None
    metadata: dict[str, Any] | None = None
    priority: int | None = None
    has_accepted: bool | None = None
    created_at: datetime
    candidate_sets: list[CandidateSetOut] | None = None


class PolicyOut(PolicyIn):
    """A version of a policy; `text` is what models and critics read, and `sha256` the hash of what it says.

    `prompts` name it or a variant of it. `stale_verdicts` were given under it, and a newer version says something else.
    """

    id: Id
    number: int
    sha256: str
    text: str
    is_latest: bool
    prompts: int
    stale_verdicts: int
    created_at: datetime


class VariantsIn(BaseModel):
    """Which variants of their policy prompts are added for."""

    model_config = ConfigDict(extra="forbid")

    changes: list[Change] = Field(list(CHANGES), min_length=1, max_length=len(CHANGES))
    prompts: list[Id] | None = Field(None, max_length=MAX_ITEMS, description="By default all that gold values allow")


class VariantsOut(Out):
    """How many prompts were added, how many existed already, and how many prompts allow no variant."""

    created: int
    unchanged: int
    skipped: int


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
    """Changes to a prompt. Question, answer, split and policy are fixed once there are candidates."""

    model_config = ConfigDict(extra="forbid")

    question: QuestionText | None = None
    answer: PromptText | None = None
    split: Split | None = None
    references: list[PromptText] | None = None
    metadata: JsonObject | None = None
    priority: int | None = Field(None, ge=-1_000_000, le=1_000_000)
    policy: Text | None = Field(None, min_length=1, max_length=220)
    fields: GoldFields | None = None
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
    fields: dict[str, str | None] | None = Field(None, description="Of a structured answer")


class ShownCategoryOut(Out):
    """A category of a policy as it stands: `text` is what the policy says with this status."""

    name: str
    status: str
    text: str
    default: str | None = Field(None, description="What it says by default, where it has another status")


class ShownPolicyOut(Out):
    """The policy under which a prompt is judged."""

    id: Id
    name: str
    number: int
    text: str
    preamble: str
    categories: list[ShownCategoryOut]


class ClaimOut(Out):
    """A claim as its critic sees it; `candidates` are in the order in which they are shown."""

    id: Id
    state: AssignmentState
    expires_at: datetime
    prompt: ClaimedPromptOut
    candidates: list[ShownCandidateOut] | None = Field(
        description="null where answers have fields and the critic's own values are not stored yet"
    )
    policy: ShownPolicyOut | None = None
    fields: dict[str, str | None] | None = Field(None, description="What the critic said before the candidates")


class RevealedOut(ClaimOut):
    """A claim with its candidates. `warnings` say what in the critic's values does not go together."""

    warnings: list[str]


class BlindIn(BaseModel):
    """What a critic says of the picture: a value for each choice, without the rationale."""

    model_config = ConfigDict(extra="forbid")

    fields: FieldValues


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
    fields: dict[str, str | None] | None = Field(None, description="Where the project has answer fields")
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


class HandOverOut(Out):
    """A version's adapter on the project's model server. `error` says why it was not loaded."""

    name: str
    state: AdapterState
    error: str | None


class VersionOut(Out):
    """A model version. `hand_over` is null without a model server, and for a base model."""

    id: Id
    number: int
    kind: str = Field(description="sampler: it writes candidates; critic: it rates them, and is never active")
    active: bool
    parent: Id | None
    round: Id | None
    base_model: str
    metrics: dict[str, Any]
    hand_over: HandOverOut | None
    created_at: datetime


class CriticPauseOut(Out):
    """That the machine critic cannot be used, when it is tried again, and why, for those who may mend it."""

    until: datetime
    reason: str | None


class IntervalOut(Out):
    """A share of `n` cases, or a difference of two, with an interval of 95 %."""

    mean: float
    low: float
    high: float
    n: int


class SelectionEffectOut(Out):
    """In what share of the judged sets something fitted: of those that a machine critic chose, and of the others."""

    selected: IntervalOut | None
    unselected: IntervalOut | None
    difference: IntervalOut | None = Field(description="selected minus unselected; null without both")


class MachineAcceptsOut(Out):
    """How many prompts have an accepted rationale: by people, and only by the machine critic.

    It accepts from `score` on. `precision` is the share of such candidates that people picked, among verdicts that the
    score was not chosen on. Without a score it accepts nothing, and `reason` says why.
    """

    people: int
    machine: int
    score: float | None
    precision: IntervalOut | None
    reason: str | None


class MachineCriticOut(Out):
    """A project's machine critic: the version that rates candidates now, and how the newest training goes."""

    version: Id | None
    paused: CriticPauseOut | None = Field(description="Why that version rates nothing at the moment; null: it can")
    selection: SelectionEffectOut | None = Field(description="null: no set that it could choose has been judged")
    accepts: MachineAcceptsOut | None = Field(description="null: it is not to accept anything (`machine_accepts`)")
    state: str | None = Field(description="queued, running, cancelling, succeeded, failed or cancelled; null: none yet")
    kind: str | None
    progress: dict[str, Any]
    error: str | None


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
    many images, such as `{"turned": 3}`. `variants_added`: prompts added under variants of policies, beside those of
    the rows; null without `variants`.
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
    variants_added: int | None
    image_changes: dict[str, int]
    unchanged: int
    rejected: int
    problems: list[dict[str, Any]]
    error: str | None
    created_at: datetime
    finished_at: datetime | None


class EngineIn(BaseModel):
    """A model server that speaks OpenAI's chat completions. `adapters_path`: the folder where it sees adapters."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=63)
    kind: Literal["openai"] = "openai"
    base_url: str = Field(min_length=1, max_length=2000)
    model: str = Field(min_length=1, max_length=500)
    api_key: str = Field("", max_length=1000)
    adapters_path: str | None = Field(None, max_length=1000)
    revision: str | None = Field(None, max_length=100)
    in_flight: int = Field(16, ge=1, le=256)


class EngineChange(BaseModel):
    """Changes to a model server."""

    model_config = ConfigDict(extra="forbid")

    base_url: str | None = Field(None, min_length=1, max_length=2000)
    model: str | None = Field(None, min_length=1, max_length=500)
    api_key: str | None = Field(None, max_length=1000)
    adapters_path: str | None = Field(None, max_length=1000)
    revision: str | None = Field(None, max_length=100)
    in_flight: int | None = Field(None, ge=1, le=256)


class EngineOut(Out):
    """A model server. `capabilities` are what its last good probe found, `error` why the last one failed."""

    id: Id
    name: str
    kind: str
    base_url: str
    model: str
    revision: str | None
    has_key: bool
    adapters_path: str | None
    in_flight: int
    state: EngineState
    error: str | None
    capabilities: dict[str, Any] | None
    projects: list[str]
    probed_at: datetime | None
    created_at: datetime


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
    return images_path() + sha256


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
        policy=None if prompt.policy_version_id is None else str(prompt.policy_version_id),
        fields=prompt.fields,
        references=prompt.references,
        metadata=prompt.extra,
        priority=prompt.priority,
        has_accepted=prompt.has_accepted,
        created_at=prompt.created_at,
        candidate_sets=sets,
    )
