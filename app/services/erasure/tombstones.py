"""Tombstones of erased verdicts and prompts: they show that something existed, but nothing of its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from sqlalchemy import delete, select, text, update
from sqlalchemy.orm import Session

from app.models import (
    Assignment,
    AssignmentState,
    Candidate,
    CandidateSet,
    ComparisonPair,
    Evaluation,
    GoldPrompt,
    ModelVersion,
    Prompt,
    PromptImage,
    PromptState,
    Purpose,
    Review,
    Verdict,
    VerdictKind,
    VerdictState,
)
from app.services.acceptance import rules
from app.services.judging.change import release_if_unflagged, release_slot
from app.services.quality import reviews

ERASED_TEXT = "(erased)"
TEXT_LISTS = ("rationales", "own", "gold", "answers")  # lists of texts in an evaluation's scores, one entry per prompt
# They appear in the feed once more, as deleted, behind everything that anybody has read.
TOMBSTONE_VERDICTS = text("""
WITH tombstones AS (
    UPDATE verdicts SET deleted = true, current = false, xid = pg_current_xact_id(), kind = 'skipped', reason = NULL,
        rationale = NULL, rationale_key = NULL, edited_from = NULL, tags = '{}', comment = NULL, seconds = NULL,
        exhaustive = true, fields = NULL, shown = '{}', weight = 1
    WHERE id = ANY (CAST(:verdicts AS bigint[]))
), deleted_picks AS (
    DELETE FROM picks WHERE verdict_id = ANY (CAST(:verdicts AS bigint[]))
), blind_values AS (
    UPDATE assignments SET blind = NULL
    WHERE blind IS NOT NULL
      AND id IN (SELECT assignment_id FROM verdicts WHERE id = ANY (CAST(:verdicts AS bigint[])))
), deleted_deliveries AS (
    DELETE FROM webhook_deliveries
    WHERE event = 'verdict' AND payload -> 'data' ->> 'id' = ANY (CAST(:verdicts AS text[]))
)
DELETE FROM returned_verdicts WHERE verdict_id = ANY (CAST(:verdicts AS bigint[]))
""")
RETIRE_SETS = text("""
WITH over AS (
    UPDATE candidate_sets SET state = 'replaced', taken = 0, answer = NULL, worker = NULL, fence = fence + 1
    WHERE prompt_id = ANY (CAST(:prompts AS bigint[])) RETURNING id
)
UPDATE assignments a
SET shown = '{}', blind = NULL, state = CASE a.state WHEN 'judged' THEN 'released' ELSE 'lapsed' END
FROM over WHERE a.candidate_set_id = over.id AND a.state IN ('open', 'judged')
""")


def tombstone_verdicts(session: Session, verdict_ids: Sequence[int]) -> None:
    """Replace verdicts by tombstones; each appears in the feed once more, as deleted."""
    session.execute(TOMBSTONE_VERDICTS, {"verdicts": list(verdict_ids)})
    session.expire_all()


def retract_verdicts(session: Session, verdict_ids: Sequence[int]) -> None:
    """Replace a critic's verdicts by tombstones, free their slots, and recompute what is accepted."""
    prompts: dict[int, set[int]] = {}
    for verdict in session.scalars(select(Verdict).where(Verdict.id.in_(verdict_ids)).order_by(Verdict.id)):
        prompts.setdefault(verdict.project_id, set()).add(verdict.prompt_id)
        if verdict.current:
            _undo_verdict(session, verdict)
    tombstone_verdicts(session, verdict_ids)
    for project_id, prompt_ids in prompts.items():
        rules.refresh_prompts(session, project_id, sorted(prompt_ids))


def _undo_verdict(session: Session, verdict: Verdict) -> None:
    """Free the slot of a current verdict, and end what waited because of it."""
    lock: Mapping[str, Any] = {"with_for_update": {"key_share": True}, "populate_existing": True}
    assignment = session.get_one(Assignment, verdict.assignment_id, **lock)
    offered = session.get_one(CandidateSet, verdict.candidate_set_id, **lock)
    prompt = session.get_one(Prompt, verdict.prompt_id, **lock)
    kind, verdict.current = verdict.kind, False
    session.flush()
    takes_slot = assignment.purpose is Purpose.work and assignment.state is AssignmentState.judged
    if takes_slot and verdict.state is VerdictState.counted:
        release_slot(session, assignment, offered, prompt)
    if kind is VerdictKind.flagged:
        release_if_unflagged(session, offered, prompt)
    reviews.settle_reviews(session, offered.id, verdict.id)


def tombstone_prompts(session: Session, prompt_ids: Sequence[int]) -> int:
    """Replace prompts by tombstones, with their candidates and verdicts. Returns how many verdicts there were.

    Their rows remain, retired and empty, so that the feed can say what is gone.
    """
    ids = list(prompt_ids)
    verdicts = session.scalars(select(Verdict.id).where(Verdict.prompt_id.in_(ids), ~Verdict.deleted)).all()
    tombstone_verdicts(session, verdicts)
    session.execute(RETIRE_SETS, {"prompts": ids})
    sets = select(CandidateSet.id).where(CandidateSet.prompt_id.in_(ids))
    for of_sets in (Review, GoldPrompt):
        session.execute(delete(of_sets).where(of_sets.candidate_set_id.in_(sets)))
    session.execute(delete(ComparisonPair).where(ComparisonPair.prompt_id.in_(ids)))
    session.execute(delete(Candidate).where(Candidate.candidate_set_id.in_(sets)))
    session.execute(delete(PromptImage).where(PromptImage.prompt_id.in_(ids)))
    blank_evaluations(session, ids)
    session.execute(
        update(Prompt)
        .where(Prompt.id.in_(ids))
        .values(
            question=ERASED_TEXT,
            parts=None,
            answer=None,
            policy_version_id=None,
            fields=None,
            references=[],
            extra={},
            external_id=None,
            state=PromptState.retired,
            has_accepted=False,
            fresh=False,
        )
    )
    session.expire_all()
    return len(verdicts)


def blank_evaluations(session: Session, prompt_ids: Sequence[int]) -> None:
    """Blank the texts that versions wrote for these prompts when they were scored; the numbers remain."""
    gone = {str(prompt) for prompt in prompt_ids}
    projects = select(Prompt.project_id).where(Prompt.id.in_(prompt_ids))
    of_projects = select(ModelVersion.id).where(ModelVersion.project_id.in_(projects))
    for evaluation in session.scalars(select(Evaluation).where(Evaluation.version_id.in_(of_projects))):
        prompts = evaluation.scores.get("prompts", ())
        places = {place for place, prompt in enumerate(prompts) if str(prompt) in gone}
        if places:
            evaluation.scores = blank_texts(evaluation.scores, places)
    session.flush()


def blank_texts(scores: Mapping[str, Any], places: Set[int]) -> dict[str, Any]:
    """The scores without the texts at these positions of their lists."""
    found: dict[str, Any] = {}
    for name, value in scores.items():
        if isinstance(value, dict):
            found[name] = blank_texts(value, places)
        elif name in TEXT_LISTS and isinstance(value, list):
            found[name] = [blank_value(one) if place in places else one for place, one in enumerate(value)]
        else:
            found[name] = value
    return found


def blank_value(written: Any) -> Any:
    """The replacement of an erased text, or of a list of texts."""
    return [] if isinstance(written, list) else None
