"""Changes of verdicts: a new verdict supersedes the old one, and slots and states are updated."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import Conflict, NotFound
from app.models import (
    Assignment,
    AssignmentState,
    CandidateSet,
    CandidateSetState,
    Project,
    Prompt,
    PromptState,
    ReviewKind,
    Verdict,
    VerdictKind,
    VerdictState,
)
from app.services.acceptance import rules
from app.services.judging.feed import body_of
from app.services.judging.fields import check_change
from app.services.judging.rows import (
    check_candidates,
    close_if_full,
    lock_assignment,
    start_round_if_due,
    store_verdict,
    take_slot,
)
from app.services.kernel import audit
from app.services.kernel.actors import Actor
from app.services.kernel.verdict_schema import USES_SLOT, VerdictIn
from app.services.projects.projects import settings_of
from app.services.quality import reviews, standings
from illume.phrases import _


def change(session: Session, actor: Actor, verdict_id: int, verdict: VerdictIn) -> dict[str, Any]:
    """Supersede the actor's own verdict with a new one, and return that.

    Raises `Forbidden` for another critic's verdict, `Conflict` for one that was changed already, and `Invalid`. A
    judgement that replaces a skip needs a free slot; without one the new verdict is kept aside.
    """
    old, assignment, candidate_set, prompt = lock_own(session, actor, verdict_id)
    if not old.current:
        newest = select(Verdict.id).where(Verdict.assignment_id == old.assignment_id, Verdict.current)
        newest_id = session.scalar(newest)
        raise Conflict(_("This verdict has already been changed: change the latest one."), verdict=str(newest_id))
    check_candidates(assignment.shown, verdict)
    check_change(session, assignment, verdict)
    state = old.state
    used = old.kind in USES_SLOT
    old.current = False
    session.flush()
    if state is VerdictState.counted:
        if used and not verdict.uses_slot:
            release_slot(session, assignment, candidate_set, prompt)
        elif (
            verdict.uses_slot and not used and not take_slot(session, assignment, candidate_set, AssignmentState.judged)
        ):
            state = VerdictState.kept_aside
    new = store_verdict(session, assignment, verdict, state, supersedes=old.id)
    if state is VerdictState.counted:
        adaptive = _is_adaptive(session, prompt.project_id)
        _update_hold(session, candidate_set, prompt, verdict, was_flag=old.kind is VerdictKind.flagged)
        close_if_full(session, candidate_set.id, adaptive=adaptive)
        session.refresh(prompt)
    _update_reviews(session, candidate_set, old, new)
    if state is VerdictState.gold:
        standings.update_standing(session, prompt.project_id, actor.user_id)
    fresh = prompt.fresh
    rules.refresh_prompts(session, prompt.project_id, [prompt.id])
    session.refresh(prompt)
    if prompt.fresh and not fresh:
        start_round_if_due(session, prompt.project_id)
    audit.record(session, actor, "verdict.change", f"verdict:{new.id}", prompt.project_id, supersedes=old.id)
    return body_of(session, new.id)


def lock_own(session: Session, actor: Actor, verdict_id: int) -> tuple[Verdict, Assignment, CandidateSet, Prompt]:
    """The actor's own verdict, with what it is about, locked. Raises `NotFound`, `Forbidden`."""
    found = session.get(Verdict, verdict_id)
    if found is None:
        raise NotFound(_("There is no such verdict."))
    locked = lock_assignment(session, actor, found.assignment_id)
    session.refresh(found)
    return found, *locked


def release_slot(session: Session, assignment: Assignment, candidate_set: CandidateSet, prompt: Prompt) -> None:
    """Free a judged slot. The set becomes ready again, unless its prompt has another live set by now."""
    assignment.state = AssignmentState.released
    candidate_set.taken -= 1
    live = (CandidateSetState.sampling, CandidateSetState.ready)
    other = session.scalar(
        select(CandidateSet.id).where(
            CandidateSet.prompt_id == prompt.id, CandidateSet.state.in_(live), CandidateSet.id != candidate_set.id
        )
    )
    if candidate_set.state is CandidateSetState.judged and other is None:
        candidate_set.state = CandidateSetState.ready
        if prompt.state in (PromptState.judged, PromptState.waiting):
            prompt.state = PromptState.ready
    session.flush()


def _update_hold(
    session: Session, candidate_set: CandidateSet, prompt: Prompt, verdict: VerdictIn, *, was_flag: bool
) -> None:
    """Put a prompt that is now flagged on hold, and release it if its only flag was withdrawn."""
    if verdict.kind is VerdictKind.flagged:
        if prompt.state is not PromptState.retired:
            prompt.state = PromptState.held
    elif was_flag:
        release_if_unflagged(session, candidate_set, prompt)
    session.flush()


def release_if_unflagged(session: Session, candidate_set: CandidateSet, prompt: Prompt) -> None:
    """Release a held prompt once it has no current flag."""
    if prompt.state is not PromptState.held:
        return
    flags = select(Verdict.id).where(
        Verdict.prompt_id == prompt.id, Verdict.current, Verdict.kind == VerdictKind.flagged
    )
    if session.scalar(flags.limit(1)) is None:
        is_ready = candidate_set.state is CandidateSetState.ready
        prompt.state = PromptState.ready if is_ready else PromptState.judged
    session.flush()


def _is_adaptive(session: Session, project_id: int) -> bool:
    return settings_of(session, session.get_one(Project, project_id)).adaptive_overlap


def _update_reviews(session: Session, candidate_set: CandidateSet, old: Verdict, new: Verdict) -> None:
    """Close reviews that the change settled, and open those that it requires."""
    reviews.settle_reviews(session, candidate_set.id, old.id)
    if new.state is VerdictState.kept_aside:
        reviews.open_review(session, new.id, ReviewKind.late)
    elif new.kind is VerdictKind.flagged and new.state in (VerdictState.counted, VerdictState.repeat):
        reviews.open_review(session, new.id, ReviewKind.flag)
    session.refresh(candidate_set, ["state", "slots"])
    if candidate_set.state is CandidateSetState.judged and candidate_set.slots > 1:
        reviews.open_review_if_disagreeing(session, candidate_set.id)
