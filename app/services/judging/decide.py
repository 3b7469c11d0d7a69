"""Actions on reviews: decide, dismiss, retire, accept a late verdict, send a verdict back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from app.db.sessions import id_in
from app.errors import Conflict, Forbidden, Invalid, NotFound
from app.models import (
    Assignment,
    AssignmentState,
    Candidate,
    CandidateSet,
    CandidateSetState,
    Project,
    Prompt,
    PromptState,
    Purpose,
    ReturnedVerdict,
    Review,
    ReviewKind,
    ReviewState,
    Verdict,
    VerdictState,
)
from app.services.acceptance import rules
from app.services.judging.fields import check_change
from app.services.judging.rows import check_candidates, close_if_full, start_round_if_due, store_verdict, take_slot
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require
from app.services.kernel.rights import Right
from app.services.kernel.verdict_schema import USES_SLOT, VerdictIn
from app.services.projects.projects import settings_of
from app.services.quality import reviews
from app.services.quality.reviews import OPEN_STATES, RETURNED_OF, check_note, lock_review, review_json
from illume.phrases import _

RETURNED = f"""
SELECT jsonb_build_object(
    'id', b.id::text, 'verdict', b.verdict_id::text, 'assignment', v.assignment_id::text, 'note', b.note,
    'prompt', v.prompt_id::text, 'question', p.question,
    'created_at', to_char(b.created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
) AS body
FROM {RETURNED_OF.format(project=":project")}
JOIN verdicts v ON v.id = b.verdict_id JOIN prompts p ON p.id = v.prompt_id
ORDER BY b.id LIMIT 100
"""  # noqa: S608 - constants only


def _lock_set_and_prompt(session: Session, review: Review) -> tuple[CandidateSet, Prompt]:
    """Lock the set and the prompt of a review, in this order."""
    candidate_set = session.get_one(
        CandidateSet, review.candidate_set_id, with_for_update={"key_share": True}, populate_existing=True
    )
    prompt = session.get_one(
        Prompt, candidate_set.prompt_id, with_for_update={"key_share": True}, populate_existing=True
    )
    return candidate_set, prompt


def decide(session: Session, actor: Actor, review_id: int, verdict: VerdictIn) -> dict[str, Any]:
    """Decide which candidates of the set fit. The decision replaces its critics' verdicts. Returns the review.

    It closes all open reviews of the set, and a held prompt is used again.
    """
    review, project = lock_review(session, actor, review_id)
    if not verdict.uses_slot:
        raise Invalid(_("A decision picks candidates, gives a rationale, or says none_fit."), field="kind")
    candidate_set, prompt = _lock_set_and_prompt(session, review)
    assignment = _review_assignment(session, actor, candidate_set)
    check_candidates(assignment.shown, verdict)
    check_change(session, assignment, verdict)
    old = _decision_on(session, candidate_set.id)
    said = fields_in_force(session, [candidate_set.id])[candidate_set.id] | (verdict.fields or {})
    if old is not None:
        old.current = False
        session.flush()
    supersedes = None if old is None else old.id
    if candidate_set.state is CandidateSetState.ready:
        candidate_set.state = CandidateSetState.judged
    if prompt.state in (PromptState.held, PromptState.ready):
        prompt.state = PromptState.judged
    session.flush()
    whole = verdict.model_copy(update={"fields": said or None})
    row = store_verdict(session, assignment, whole, VerdictState.decided, supersedes=supersedes)
    session.execute(
        update(Review)
        .where(Review.candidate_set_id == candidate_set.id, Review.state.in_(OPEN_STATES))
        .values(state=ReviewState.decided, decided_by=actor.stored_id, decided_at=func.now())
        .execution_options(synchronize_session="fetch")
    )
    audit.record(session, actor, "review.decide", f"review:{review.id}", project.id, verdict=row.id)
    _refresh_prompt(session, prompt)
    return review_json(session, review.id)


def fields_in_force(session: Session, set_ids: Sequence[int]) -> dict[int, dict[str, str | None]]:
    """The fields of sets as decided before, else as their critics agree on them: what a decision leaves out."""
    agreed = rules.agreed_fields(session, set_ids)
    decisions = select(Verdict.candidate_set_id, Verdict.fields).where(
        id_in(Verdict.candidate_set_id, set_ids), Verdict.current, Verdict.state == VerdictState.decided
    )
    decided = {row.candidate_set_id: row.fields or {} for row in session.execute(decisions)}
    return {one: agreed.get(one, {}) | decided.get(one, {}) for one in set_ids}


def _decision_on(session: Session, set_id: int) -> Verdict | None:
    return session.scalar(
        select(Verdict).where(
            Verdict.candidate_set_id == set_id, Verdict.current, Verdict.state == VerdictState.decided
        )
    )


def _review_assignment(session: Session, actor: Actor, candidate_set: CandidateSet) -> Assignment:
    """Get or create the reviewer's own assignment on a set. It takes no slot."""
    found = session.scalar(
        select(Assignment).where(
            Assignment.candidate_set_id == candidate_set.id,
            Assignment.critic_id == actor.user_id,
            Assignment.purpose == Purpose.review,
        )
    )
    if found is not None:
        return found
    shown = session.scalars(
        select(Candidate.id)
        .where(Candidate.candidate_set_id == candidate_set.id, Candidate.invalid.is_(None), ~Candidate.spare)
        .order_by(Candidate.position)
    )
    assignment = Assignment(
        project_id=candidate_set.project_id,
        candidate_set_id=candidate_set.id,
        critic_id=actor.user_id,
        slot=1,
        state=AssignmentState.judged,
        purpose=Purpose.review,
        shown=list(shown),
        expires_at=func.now(),
    )
    session.add(assignment)
    session.flush()
    return assignment


def _refresh_prompt(session: Session, prompt: Prompt) -> None:
    fresh = prompt.fresh
    rules.refresh_prompts(session, prompt.project_id, [prompt.id])
    session.refresh(prompt)
    if prompt.fresh and not fresh:
        start_round_if_due(session, prompt.project_id)


def dismiss(session: Session, actor: Actor, review_id: int, note: str | None = None) -> dict[str, Any]:
    """Close a review without a change. If it was about a prompt's last flag, the prompt is released."""
    review, project = lock_review(session, actor, review_id)
    review.note = check_note(note) or review.note
    _close(session, actor, review, ReviewState.dismissed)
    if review.kind is ReviewKind.flag:
        candidate_set, prompt = _lock_set_and_prompt(session, review)
        others = select(Review.id).join(CandidateSet, CandidateSet.id == Review.candidate_set_id)
        left = session.scalar(
            others.where(
                CandidateSet.prompt_id == prompt.id, Review.kind == ReviewKind.flag, Review.state.in_(OPEN_STATES)
            ).limit(1)
        )
        if prompt.state is PromptState.held and left is None:
            prompt.state = _state_before(candidate_set, prompt)
            session.flush()
            if candidate_set.state is CandidateSetState.ready:
                settings = settings_of(session, project)
                close_if_full(session, candidate_set.id, adaptive=settings.adaptive_overlap)
            _refresh_prompt(session, prompt)
    audit.record(session, actor, "review.dismiss", f"review:{review.id}", project.id, note=review.note)
    return review_json(session, review.id)


def _state_before(candidate_set: CandidateSet, prompt: Prompt) -> PromptState:
    if candidate_set.state is CandidateSetState.ready:
        return PromptState.ready
    return PromptState.judged if prompt.has_accepted else PromptState.waiting


def retire(session: Session, actor: Actor, review_id: int, note: str | None = None) -> dict[str, Any]:
    """Retire the prompt, and close all open reviews of its set."""
    review, project = lock_review(session, actor, review_id)
    review.note = check_note(note) or review.note
    candidate_set, prompt = _lock_set_and_prompt(session, review)
    prompt.state = PromptState.retired
    session.execute(
        update(Review)
        .where(Review.candidate_set_id == candidate_set.id, Review.state.in_(OPEN_STATES))
        .values(state=ReviewState.decided, decided_by=actor.stored_id, decided_at=func.now())
        .execution_options(synchronize_session="fetch")
    )
    session.flush()
    audit.record(session, actor, "review.retire", f"review:{review.id}", project.id, prompt=prompt.id)
    return review_json(session, review.id)


def _close(session: Session, actor: Actor, review: Review, state: ReviewState) -> None:
    review.state, review.decided_by = state, actor.stored_id
    review.decided_at = func.now()
    session.flush()


def accept(session: Session, actor: Actor, review_id: int) -> dict[str, Any]:
    """Count a verdict that came too late, in an additional slot if none is free. Needs the role admin.

    Raises `Conflict` if its critic has judged the set again meanwhile.
    """
    review, project = lock_review(session, actor, review_id, Right.administers)
    if review.kind is not ReviewKind.late or review.verdict_id is None:
        raise Conflict(_("Only a late verdict can be accepted."))
    given = session.get_one(Verdict, review.verdict_id, populate_existing=True)
    assignment = session.get_one(Assignment, given.assignment_id, with_for_update={"key_share": True})
    candidate_set, prompt = _lock_set_and_prompt(session, review)
    if not given.current or given.state is not VerdictState.kept_aside:
        raise Conflict(_("This verdict has been changed since: look at the latest one."))
    judges = given.kind in USES_SLOT
    if judges and not take_slot(session, assignment, candidate_set, AssignmentState.judged):
        _add_slot(session, assignment, candidate_set)
    given.state = VerdictState.counted
    session.flush()
    session.execute(  # so that readers of the feed see it as new
        text("UPDATE verdicts SET xid = pg_current_xact_id() WHERE id = :verdict"), {"verdict": given.id}
    )
    _close(session, actor, review, ReviewState.decided)
    settings = settings_of(session, project)
    close_if_full(session, candidate_set.id, adaptive=settings.adaptive_overlap)
    if candidate_set.slots > 1:
        _open_review_if_closed(session, candidate_set)
    _refresh_prompt(session, prompt)
    audit.record(session, actor, "review.accept", f"review:{review.id}", project.id, verdict=given.id)
    return review_json(session, review.id)


def _add_slot(session: Session, assignment: Assignment, candidate_set: CandidateSet) -> None:
    """Add a slot for an assignment. Raises `Conflict` if its critic has another assignment on the set."""
    of_set = (Assignment.candidate_set_id == candidate_set.id, Assignment.purpose == Purpose.work)
    other = session.scalar(
        select(Assignment.id).where(
            *of_set,
            Assignment.critic_id == assignment.critic_id,
            Assignment.id != assignment.id,
            Assignment.state != AssignmentState.lapsed,
        )
    )
    if other is not None:
        raise Conflict(_("Its critic has been given this set again since: only one of the two can count."))
    held = (AssignmentState.open, AssignmentState.judged)
    last = session.scalar(select(func.max(Assignment.slot)).where(*of_set, Assignment.state.in_(held)))
    candidate_set.slots += 1
    candidate_set.taken += 1
    assignment.slot, assignment.state = (last or 0) + 1, AssignmentState.judged
    session.flush()


def _open_review_if_closed(session: Session, candidate_set: CandidateSet) -> None:
    session.refresh(candidate_set)
    if candidate_set.state is CandidateSetState.judged:
        reviews.open_review_if_disagreeing(session, candidate_set.id)


def send_back(session: Session, actor: Actor, review_id: int, verdict_id: int, note: str) -> dict[str, Any]:
    """Ask a critic to reconsider a verdict of the set; the review waits for that. Raises `Conflict`, `Invalid`."""
    review, project = lock_review(session, actor, review_id)
    checked = check_note(note, needed=True)
    given = session.get(Verdict, verdict_id, populate_existing=True)
    if given is None or given.candidate_set_id != review.candidate_set_id:
        raise Invalid(_("This verdict does not belong to the set under review."), field="verdict")
    if not given.current or given.state is VerdictState.decided:
        raise Conflict(_("Only a critic's latest verdict can be sent back."))
    waiting = select(ReturnedVerdict.id).where(
        ReturnedVerdict.verdict_id == given.id, ReturnedVerdict.answered_at.is_(None)
    )
    if session.scalar(waiting) is not None:
        raise Conflict(_("This verdict has already been sent back; its critic has not answered yet."))
    session.add(
        ReturnedVerdict(
            project_id=project.id,
            review_id=review.id,
            verdict_id=given.id,
            critic_id=given.critic_id,
            note=checked or "",
            created_by=actor.stored_id,
        )
    )
    review.state = ReviewState.sent_back
    session.flush()
    audit.record(session, actor, "review.send_back", f"review:{review.id}", project.id, verdict=given.id)
    return review_json(session, review.id)


def list_returned(session: Session, actor: Actor, project: Project) -> list[dict[str, Any]]:
    """The actor's verdicts that were sent back and not answered yet, with the reviewers' notes."""
    require(session, actor, project, Right.judges)
    rows = session.execute(text(RETURNED), {"critic": actor.user_id, "project": project.id})
    return [row.body for row in rows]


def confirm_returned(session: Session, actor: Actor, returned_id: int) -> None:
    """Confirm a verdict that was sent back, and reopen its review. Raises `NotFound`, `Forbidden`."""
    row = session.get(ReturnedVerdict, returned_id, with_for_update=True, populate_existing=True)
    if row is None or row.answered_at is not None:
        raise NotFound(_("There is no such verdict waiting for your answer."))
    if row.critic_id != actor.user_id:
        raise Forbidden(_("This is another critic's verdict."))
    row.answered_at = func.now()
    review = session.get_one(Review, row.review_id, with_for_update=True, populate_existing=True)
    if review.state is ReviewState.sent_back:
        review.state = ReviewState.open
    session.flush()
