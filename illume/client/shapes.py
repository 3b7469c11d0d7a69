"""The shapes of answers. A field that a newer server adds is kept, one that your role may not see is None."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from illume.client.errors import Refused

ENDED = ("succeeded", "failed", "cancelled")


class Shape(BaseModel):
    """Base class of answers."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class Project(Shape):
    """A project."""

    id: str
    slug: str
    name: str
    active_version: str | None = None
    created_at: datetime

    @property
    def settings(self) -> dict[str, Any]:
        """Its settings, those of which you may see."""
        return dict(self.model_extra or {})


class Image(Shape):
    """A stored picture. `sha256` names it."""

    sha256: str
    url: str
    width: int
    height: int


class Prompt(Shape):
    """A prompt."""

    id: str
    external_id: str | None = None
    split: str
    state: str | None = None
    images: list[Image]
    question: str
    parts: list[dict[str, Any]] = []
    answer: str | None
    policy: str | None = None
    fields: dict[str, str | None] | None = None
    references: list[str] | None = None
    metadata: dict[str, Any] | None = None
    priority: int | None = None
    has_accepted: bool | None = None

    @property
    def in_order(self) -> list[str | Image]:
        """Its texts and pictures in the order in which they are read, as `NewPrompt` takes them for `parts`."""
        pictures = {one.sha256: one for one in self.images}
        return [part["text"] if part["type"] == "text" else pictures[part["sha256"]] for part in self.parts]


class Policy(Shape):
    """A version of a policy; `text` is what models and critics read."""

    id: str
    name: str
    number: int
    text: str


class Candidate(Shape):
    """One rationale of a claimed set. `fields` are the values of a structured answer."""

    id: str
    text: str
    fields: dict[str, str | None] | None = None


class Claim(Shape):
    """A candidate set that you hold until `expires_at`.

    Where answers have fields there are no `candidates` until you have said what holds of the pictures under the
    `policy` (`ProjectClient.rate`); `fields` is what you said, `warnings` what in it does not go together.
    """

    id: str
    state: str
    expires_at: datetime
    prompt: Prompt
    candidates: list[Candidate]
    policy: Policy | None = None
    fields: dict[str, str | None] | None = None
    warnings: list[str] = []

    @field_validator("candidates", mode="before")
    @classmethod
    def _read_hidden(cls, candidates: Any) -> Any:
        return [] if candidates is None else candidates

    @property
    def is_blind(self) -> bool:
        """Whether you have to rate the pictures before you see the candidates."""
        return not self.candidates


class Verdict(Shape):
    """A verdict. One that came too late has the state `kept_aside`; of an erased one only ids and times are left."""

    id: str
    prompt: str
    candidate_set: str
    assignment: str
    critic: str | None
    kind: str | None
    state: str
    picks: list[str]
    tags: dict[str, list[str]]
    reason: str | None
    rationale: str | None
    edited_from: str | None
    comment: str | None
    seconds: float | None
    exhaustive: bool
    fields: dict[str, str | None] | None = None
    supersedes: str | None
    current: bool
    deleted: bool
    created_at: datetime


class Round(Shape):
    """A tuning round. `losses` are the points of its curves, where one round was asked for."""

    id: str
    number: int
    state: str
    progress: dict[str, Any]
    trigger: str
    snapshot: str | None = None
    parent: str | None = None
    version: str | None = None
    losses: list[dict[str, Any]] | None = None
    metrics: dict[str, Any] | None = None
    decision: dict[str, Any] | None = None
    error: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def fraction(self) -> float:
        """How far it is, from 0 to 1."""
        return float(self.progress.get("fraction") or 0.0)

    @property
    def has_ended(self) -> bool:
        """Whether it will not change any more."""
        return self.state in ENDED


class Version(Shape):
    """A model version. One of the kind `critic` rates candidates and is never active."""

    id: str
    number: int
    kind: str = "sampler"
    active: bool
    parent: str | None
    round: str | None
    base_model: str
    metrics: dict[str, Any]
    created_at: datetime


class ItemError(Shape):
    """Why one of several prompts was turned away; `index` is its place among those that were given, from 0."""

    index: int
    field: str | None = None
    detail: str


class Added(Shape):
    """What became of several prompts: those that exist now, in order, and the errors of the others."""

    prompts: list[Prompt]
    created: int
    unchanged: int
    errors: list[ItemError]

    def raise_for_errors(self) -> None:
        """Raise `Refused` with the first error if there is one."""
        for error in self.errors:
            more = "" if len(self.errors) == 1 else f" ({len(self.errors)} prompts were turned away)"
            raise Refused(422, f"Prompt {error.index}: {error.detail}{more}", field=error.field)


Answer = TypeVar("Answer", bound=Shape)


def read(kind: type[Answer], data: Any) -> Answer:
    """An answer as a `kind`. Raises `Refused` where the server speaks another language than this client."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        detail = f"The answer is no {kind.__name__} as this client knows it ({where}: {first['msg']}): update Illume."
        raise Refused(200, detail, field=where) from error


def id_of(item: Shape | str) -> str:
    """The id of something, which may be named by its id alone."""
    return item if isinstance(item, str) else str(getattr(item, "id"))  # noqa: B009 - not every shape has one
