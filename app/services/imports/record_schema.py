"""The schema of exported records that are imported again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from app.errors import DomainError, Invalid
from app.models import (
    CandidateSource,
    PromptState,
    Split,
    VerdictKind,
)
from app.services.exports.line_types import without_absent
from app.services.imports.conversations import name_images, read_parts
from app.services.imports.files import ImportFile, unforeseen
from app.services.imports.tables.rows import TableRow
from app.services.kernel.text_rules import JsonObject, Storable
from app.services.kernel.verdict_schema import FieldValues, Reason, Tag, Words
from app.services.prompts.prompts import PromptText, parse_prompt
from illume.fields.policies import MAX_CATEGORIES
from illume.parts import TextPart, arrange_parts, is_short
from illume.phrases import _
from illume.validation import describe_problem, name_problem, place_of

RecordId = Annotated[str, StringConstraints(min_length=1, max_length=200), Storable]


class RecordCandidate(BaseModel):
    """A candidate, and what the record's critic said about it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: RecordId
    text: PromptText
    temperature: float | None = Field(None, ge=0, le=100)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    mean_logprob: float | None = Field(None, allow_inf_nan=False)
    fields: FieldValues | None = None
    invalid: str | None = Field(None, max_length=32)
    picked: bool = False
    tags: list[Tag] = Field([], max_length=100)


class RecordPolicy(BaseModel):
    """The policy under which a record was judged, as it was then."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: RecordId
    preamble: Annotated[str, Storable] = ""
    categories: list[dict[str, str]] = Field(min_length=1, max_length=MAX_CATEGORIES)


class RecordIn(BaseModel):
    """A record as exported by `records`; other fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: RecordId
    prompt: RecordId
    external_id: str | None = None
    split: Split = Split.train
    images: list[Any] = Field(min_length=1, max_length=16)
    question: Annotated[str, StringConstraints(strip_whitespace=True), Storable]
    parts: list[dict[str, Any]] | None = None
    answer: PromptText | None = None
    answer_source: str | None = Field(None, max_length=8)
    references: list[PromptText] = Field([], max_length=100)
    metadata: JsonObject = {}
    prompt_state: PromptState | None = None
    candidate_set: RecordId
    source: CandidateSource | None = None
    slots: int | None = Field(None, ge=1, le=1000)
    version_number: int | None = None
    served_model: Annotated[str, StringConstraints(max_length=600), Storable] | None = None
    candidates: list[RecordCandidate] = Field(min_length=1, max_length=100)
    shown: list[RecordId]
    critic: RecordId
    kind: VerdictKind
    rationale: Words | None = None
    edited_from: RecordId | None = None
    reason: Reason | None = None
    comment: Words | None = None
    seconds: float | None = Field(None, ge=0, le=10_000_000)
    exhaustive: bool = True
    policy: RecordPolicy | None = None
    gold: FieldValues | None = None
    fields: FieldValues | None = None
    blind: FieldValues | None = None
    critic_weight: float = Field(1, ge=0, le=1)
    deleted: bool = False
    created_at: AwareDatetime

    @property
    def prompt_key(self) -> str:
        """The identity of the prompt at its origin."""
        parts = [orjson.dumps(part, option=orjson.OPT_SORT_KEYS) for part in self.parts or ()]
        policy = [] if self.policy is None else [self.policy.model_dump_json()]
        given = self.prompt, self.external_id, self.question, self.answer, self.split, *self.images, *parts, *policy
        return hash_key("prompt", *given)

    @property
    def content(self) -> dict[str, Any]:
        """The parts, or else the images and the question, as `parse_prompt` reads them."""
        return {"images": self.images, "question": self.question} if self.parts is None else {"parts": self.parts}

    @property
    def set_key(self) -> str:
        """The identity of the candidate set at its origin."""
        return hash_key("set", self.prompt_key, self.candidate_set, *(one.text for one in self.candidates))

    @property
    def verdict_key(self) -> str:
        """The identity of the verdict at its origin."""
        return hash_key("verdict", self.set_key, self.id, self.critic, self.created_at.isoformat())

    @property
    def critic_key(self) -> str:
        """The identity of the critic at the record's origin."""
        return hash_key("critic", self.critic)


def hash_key(*parts: object) -> str:
    """A hash of the values that identify a row."""
    return hashlib.sha256(repr(tuple(str(part) for part in parts)).encode(errors="replace")).hexdigest()


def parse_record(row: TableRow, file: ImportFile | None = None) -> RecordIn | DomainError:
    """Parse a row into a record with its images found in `file`, or into what is wrong with it."""
    if isinstance(row.values, DomainError):
        return row.values
    try:
        record = check_record(row.values)
        if file is None:
            return record
        keys = file.image_keys(record.images)
        record = record.model_copy(update={"images": keys, "parts": rename_parts(record, keys)})
        parse_prompt({**record.content, "external_id": record.external_id})
    except DomainError as error:
        return error
    except RecursionError:
        return Invalid(_("The line is nested too deeply."))
    except Exception as error:  # noqa: BLE001 - of whatever class, it ends this row and not the import
        return unforeseen(row, error)
    return record


def rename_parts(record: RecordIn, keys: Sequence[Any]) -> list[dict[str, Any]] | None:
    """The parts of a record with its images by their names here; None in the short form. Raises `Invalid`."""
    if record.parts is None:
        return None
    parts = read_parts(record.parts, "parts")
    try:
        images, arranged = arrange_parts(
            [TextPart(one["text"]) if one["type"] == "text" else str(one["image"]) for one in parts]
        )
    except ValueError as error:
        raise Invalid(name_problem(*place_of("parts", error)), field="parts") from error
    if is_short(arranged):
        return None
    if len(images) != len(keys):
        raise Invalid(_("parts: they must show each of the images."), field="parts")
    names = dict(zip(images, keys, strict=True))
    return name_images(parts, [names[str(one["image"])] for one in parts if one["type"] == "image"])


def check_record(values: dict[str, Any]) -> RecordIn:
    """Check the values of a row as a record. Raises `Invalid`."""
    if values.get("redacted"):
        raise Invalid(_("The record was erased at its origin."), field="redacted")
    try:
        record = RecordIn.model_validate(without_absent(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise Invalid(name_problem(name, describe_problem(first)), field=name) from error
    ids = {one.id for one in record.candidates}
    if record.deleted:
        raise Invalid(_("The record was deleted at its origin."), field="deleted")
    if len(ids) != len(record.candidates) or not set(record.shown) <= ids or record.edited_from not in {*ids, None}:
        raise Invalid(_("candidates: 'shown' and 'edited_from' must name them, each once."), field="candidates")
    return record
