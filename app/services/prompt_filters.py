"""What prompts may be looked for by, beyond their own columns: what critics said of them, and who wrote for them."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import ColumnElement, exists, select, text
from sqlalchemy.sql import Select

from app.models import CandidateSet, ModelVersion, Prompt, Verdict, VerdictKind

# Sets of a prompt that two or more critics judged, and whether some candidate of theirs was picked by some but not all.
APART = """
SELECT FROM (
    SELECT v.candidate_set_id AS set_id, count(*) AS critics FROM verdicts v
    WHERE v.prompt_id = prompts.id AND v.current AND v.state = 'counted' AND v.kind IN ('picked', 'none_fit')
    GROUP BY 1 HAVING count(*) > 1
) judged
"""
SPLIT = """
WHERE EXISTS (
    SELECT FROM picks k JOIN verdicts v ON v.id = k.verdict_id
    WHERE v.candidate_set_id = judged.set_id AND v.current AND v.state = 'counted'
    GROUP BY k.candidate_id HAVING count(*) < judged.critics
)
"""


class Said(StrEnum):
    """What critics said of a prompt, as a list is filtered by."""

    accepted = "accepted"
    open = "open"
    flagged = "flagged"
    apart = "apart"
    alike = "alike"


def said(what: Said) -> ColumnElement[bool]:
    """Prompts of which critics said this: `apart` and `alike` are of those that two or more critics judged."""
    if what is Said.accepted:
        return Prompt.has_accepted.is_(True)
    if what is Said.open:
        return ~Prompt.has_accepted
    if what is Said.flagged:
        return exists().where(Verdict.prompt_id == Prompt.id, Verdict.current, Verdict.kind == VerdictKind.flagged)
    differs = f"EXISTS ({APART} {SPLIT})"
    if what is Said.apart:
        return text(differs)  # type: ignore[return-value]  # a text stands where a condition may
    return text(f"EXISTS ({APART}) AND NOT {differs}")  # type: ignore[return-value]  # as above


def written_by(query: Select[Prompt], number: int) -> Select[Prompt]:
    """`query`, only of prompts that version `number` of their project wrote candidates for."""
    version = (
        select(CandidateSet.id)
        .join(ModelVersion, ModelVersion.id == CandidateSet.version_id)
        .where(CandidateSet.prompt_id == Prompt.id, ModelVersion.number == number)
    )
    return query.where(version.exists())
