"""The shapes of verdicts: as they come in, and as JSON."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from app.errors import Invalid, NotFound
from app.models import VerdictKind
from app.services.kernel.actors import parse_id
from app.services.kernel.text_rules import Storable
from illume.fields.definitions import MAX_FIELDS
from illume.phrases import _
from illume.texts import normalise_rationale
from illume.validation import describe_problem, name_problem

Words = Annotated[str, StringConstraints(strip_whitespace=True, max_length=4000), Storable]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500), Storable]
Tag = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), Storable]

FieldValue = Annotated[str, StringConstraints(max_length=4000), Storable]
FieldValues = Annotated[dict[str, FieldValue | None], Field(max_length=MAX_FIELDS), Storable]

USES_SLOT = (VerdictKind.picked, VerdictKind.none_fit)
"""The kinds that judge the candidates."""


class VerdictIn(BaseModel):
    """A verdict as it comes in. Candidates are named by their ids."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: VerdictKind
    picks: list[str] = Field([], max_length=100)
    tags: dict[str, list[Tag]] = {}
    reason: Reason | None = None
    rationale: Words | None = None
    edited_from: str | None = None
    comment: Words | None = None
    seconds: float | None = Field(None, ge=0, le=10_000_000)
    exhaustive: bool = Field(True, description="Whether all candidates were looked at: only then others do not fit")
    fields: FieldValues | None = Field(
        None, description="Values of a structured answer that the critic corrects; the others stay as given blind"
    )

    @field_validator("reason", "rationale", "comment", mode="after")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return value or None

    @model_validator(mode="after")
    def _belongs_together(self) -> VerdictIn:
        if self.kind is VerdictKind.picked and not self.picks and self.rationale is None:
            raise ValueError("picked needs a pick or a rationale; where nothing fits say none_fit")
        if self.kind is not VerdictKind.picked and self.picks:
            raise ValueError(f"{self.kind.value} takes no picks")
        if self.edited_from is not None and self.rationale is None:
            raise ValueError("edited_from needs the edited rationale")
        return self

    @property
    def rationale_key(self) -> str | None:
        """The form in which the critic's own rationale is compared with those of others."""
        return None if self.rationale is None else normalise_rationale(self.rationale)

    @property
    def gives_text(self) -> bool:
        """Whether there is something in it that may become an accepted rationale."""
        return self.uses_slot and bool(self.picks or self.rationale)

    @property
    def uses_slot(self) -> bool:
        """Whether it judges the candidates; a skip or a flag leaves the slot to others."""
        return self.kind in USES_SLOT


def parse_verdict(values: dict[str, Any]) -> VerdictIn:
    """A verdict from JSON or a form. Raises `Invalid` that names the field."""
    try:
        return VerdictIn.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or ("edited_from" if "edited" in first["msg"] else "picks")
        raise Invalid(name_problem(field, describe_problem(first)), field=field) from error


def candidate_ids(verdict: VerdictIn) -> tuple[list[int], int | None, list[int]]:
    """Picks, the edited candidate, and all candidates that a verdict mentions. Raises `Invalid`."""
    picks = sorted({candidate_id(pick, "picks") for pick in verdict.picks})
    edited_from = None if verdict.edited_from is None else candidate_id(verdict.edited_from, "edited_from")
    tagged = {candidate_id(key, "tags") for key in verdict.tags}
    return picks, edited_from, sorted({*picks, *tagged, *([] if edited_from is None else [edited_from])})


def candidate_id(value: str, field: str) -> int:
    try:
        return parse_id(value)
    except NotFound as error:
        raise Invalid(
            _("%(field)s: there is no candidate '%(value)s'.", field=field, value=value[:40]), field=field
        ) from error


# What a critic is told of their own verdict: nothing in it tells gold prompts and repeats from others. Only what counts
# gets into a snapshot, so they are told of none.
PLAIN_STATE = "CASE WHEN v.state IN ('gold', 'repeat') THEN 'counted' ELSE v.state END"
STORED_PICKS = "ARRAY(SELECT k.candidate_id FROM picks k WHERE k.verdict_id = v.id ORDER BY k.candidate_id)"
POSTED_PICKS = "CAST(:picks AS bigint[])"
NO_SNAPSHOTS = "'[]'::jsonb"
IN_SNAPSHOTS = """
coalesce((
    SELECT jsonb_agg(DISTINCT i.snapshot_id::text) FROM snapshot_items i JOIN snapshots n ON n.id = i.snapshot_id
    WHERE i.verdict_id = v.id AND n.prepared
), '[]'::jsonb)
"""


def verdict_json(*, state: str = PLAIN_STATE, picks: str = STORED_PICKS, snapshots: str = NO_SNAPSHOTS) -> str:
    """SQL that writes the verdict `v` as JSON: what was posted, and what came of it.

    Of an erased verdict it tells only that it is gone. `picks` is an SQL array, since those of a verdict that the same
    statement stores are not in their table yet.
    """
    return f"""
jsonb_build_object(
    'schema_version', 1,
    'id', v.id::text,
    'prompt', v.prompt_id::text,
    'candidate_set', v.candidate_set_id::text,
    'assignment', v.assignment_id::text,
    'critic', CASE WHEN NOT v.deleted THEN v.critic_id::text END,
    'kind', CASE WHEN NOT v.deleted THEN v.kind END,
    'state', CASE WHEN v.deleted THEN 'deleted' ELSE {state} END,
    'picks', coalesce(to_jsonb(CAST({picks} AS text[])), '[]'::jsonb),
    'tags', v.tags,
    'reason', v.reason,
    'rationale', v.rationale,
    'edited_from', v.edited_from::text,
    'comment', v.comment,
    'seconds', v.seconds,
    'exhaustive', v.exhaustive,
    'shown', to_jsonb(CAST(v.shown AS text[])),
    'supersedes', v.supersedes::text,
    'current', v.current,
    'deleted', v.deleted,
    'snapshots', {snapshots},
    'created_at', to_char(v.created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
) || CASE WHEN v.fields IS NULL THEN '{{}}'::jsonb ELSE jsonb_build_object('fields', v.fields) END
"""


STORED_JSON = verdict_json()
FULL_JSON = verdict_json(state="v.state", snapshots=IN_SNAPSHOTS)
NEW_JSON = verdict_json(picks=POSTED_PICKS)
