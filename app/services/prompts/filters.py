"""Filters of prompts beyond their own columns: text, feedback, and the version that wrote candidates.

Each returns prompt ids from an index, in order, so that a list reads no more of them than it shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, aliased

from app.models import (
    CandidateSet,
    MachineAccept,
    ModelVersion,
    Project,
    Prompt,
    PromptState,
    PromptWords,
    SetAgreement,
    Split,
    Verdict,
    VerdictKind,
)
from app.services.acceptance.counting import OUT_OF_USE

SORT_LIMIT = 10_000
"""Up to this many matching prompts are read and sorted; with more, a scan by id finds them often enough."""
NO_ID = 0
"""An id that no row has."""
TRIGRAM_LENGTH = 3
"""The trigram index finds parts of at least this many characters."""


class FeedbackFilter(StrEnum):
    """A filter of prompts by what critics said about them; `machine`: by what only a machine critic accepted."""

    accepted = "accepted"
    open = "open"
    flagged = "flagged"
    apart = "apart"
    alike = "alike"
    machine = "machine"


@dataclass(frozen=True, slots=True)
class PromptQuery:
    """Which prompts of a project are meant; None filters nothing.

    `query` is part of the question, answer or external id, `said` what critics said, `version` the number of the
    version that wrote candidates.
    """

    split: Split | None = None
    state: PromptState | None = None
    query: str | None = None
    external_id: str | None = None
    said: FeedbackFilter | None = None
    version: int | None = None


def flagged_prompts(project: Project, after: int) -> Select[int]:
    """Prompts that a critic flagged."""
    return (
        select(Verdict.prompt_id)
        .where(
            Verdict.project_id == project.id,
            Verdict.current,
            Verdict.kind == VerdictKind.flagged,
            Verdict.prompt_id > after,
        )
        .group_by(Verdict.prompt_id)
    )


def machine_accepted_prompts(project: Project, after: int) -> Select[int]:
    """Prompts of which only a machine critic has accepted a rationale, as `app.services.acceptance.machine` counts."""
    judged = select(Verdict.id).where(Verdict.prompt_id == MachineAccept.prompt_id, Verdict.current)
    return (
        select(MachineAccept.prompt_id)
        .join(Prompt, Prompt.id == MachineAccept.prompt_id)
        .where(
            MachineAccept.project_id == project.id,
            MachineAccept.prompt_id > after,
            Prompt.split == Split.train,
            Prompt.state.not_in(OUT_OF_USE),
            ~judged.exists(),
        )
    )


def disagreeing_prompts(project: Project, after: int) -> Select[int]:
    """Prompts with a set that critics disagree on, as of the last sweep."""
    return (
        select(SetAgreement.prompt_id)
        .where(SetAgreement.project_id == project.id, SetAgreement.apart, SetAgreement.prompt_id > after)
        .group_by(SetAgreement.prompt_id)
    )


def agreeing_prompts(project: Project, after: int) -> Select[int]:
    """Prompts with a set that several critics judged, and none that they disagree on, as of the last sweep."""
    other = aliased(SetAgreement)
    differs = select(other.candidate_set_id).where(
        other.project_id == project.id, other.apart, other.prompt_id == SetAgreement.prompt_id
    )
    return (
        select(SetAgreement.prompt_id)
        .where(
            SetAgreement.project_id == project.id,
            ~SetAgreement.apart,
            SetAgreement.prompt_id > after,
            ~differs.exists(),
        )
        .group_by(SetAgreement.prompt_id)
    )


def prompts_written_by(session: Session, project: Project, number: int, after: int) -> Select[int]:
    """Prompts for which the version with this number wrote candidates."""
    version_id = session.scalar(
        select(ModelVersion.id).where(ModelVersion.project_id == project.id, ModelVersion.number == number)
    )
    return (
        select(CandidateSet.prompt_id)
        .where(CandidateSet.version_id == (version_id or NO_ID), CandidateSet.prompt_id > after)
        .group_by(CandidateSet.prompt_id)
    )


def prompts_mentioning(session: Session, project: Project, part: str, after: int) -> Select[int]:
    """Prompts with `part` in their question, answer or external id, ignoring case."""
    fits = select(PromptWords.prompt_id).where(
        PromptWords.project_id == project.id,
        PromptWords.prompt_id > after,
        PromptWords.words.contains(part.lower(), autoescape=True),
    )
    if len(part) < TRIGRAM_LENGTH:
        return fits
    found = session.scalars(fits.limit(SORT_LIMIT + 1)).all()
    if len(found) > SORT_LIMIT:
        return fits
    return select(PromptWords.prompt_id).where(PromptWords.prompt_id.in_(sorted(found)[:SORT_LIMIT]))
