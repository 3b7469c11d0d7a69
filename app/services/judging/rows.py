"""Rows of verdicts and what they take or free: locks, slots, states."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.errors import DomainError, Forbidden, Invalid, NotFound
from app.models import (
    Assignment,
    AssignmentState,
    CandidateSet,
    CandidateSetState,
    Pick,
    Project,
    Prompt,
    Purpose,
    Role,
    Verdict,
    VerdictState,
)
from app.services.acceptance import overlap
from app.services.kernel.actors import Actor, has_role, project_role
from app.services.kernel.verdict_schema import VerdictIn, candidate_id, candidate_ids
from app.services.quality import reviews, standings
from app.services.rounds import rounds

# After a verdict on a set of several slots; a statement of its own, because only now others' verdicts are seen.
CLOSE_IF_FULL = f"""
WITH closed AS (
    UPDATE candidate_sets s SET state = 'judged'
    WHERE s.id = :set AND s.state = 'ready' AND s.slots <= (
        SELECT count(*) FROM assignments a
        WHERE a.candidate_set_id = s.id AND a.state = 'judged' AND a.purpose = 'work'
    )
    RETURNING s.id, s.project_id, s.prompt_id
), told AS (
    UPDATE prompts p SET state = 'judged' FROM closed WHERE p.id = closed.prompt_id AND p.state = 'ready'
)
INSERT INTO reviews (project_id, candidate_set_id, kind)
SELECT s.project_id, s.id, 'disagreement' FROM closed s WHERE {reviews.PICKS_DIFFER} AND NOT {reviews.IS_DECIDED}
ON CONFLICT DO NOTHING
"""  # noqa: S608 - constants only


def close_if_full(session: Session, set_id: int, *, adaptive: bool) -> None:
    """Close a set once all its slots are judged, and ask a reviewer where its critics disagree.

    With an adaptive overlap it is first decided how many critics it wants, by what was said of it so far.
    """
    if adaptive:
        session.execute(text(overlap.ADAPT_SET), {"set": set_id})
    session.execute(text(CLOSE_IF_FULL), {"set": set_id})


def start_round_if_due(session: Session, project_id: int) -> None:
    """Start a round once enough prompts are fresh. Whatever hinders that hinders no verdict: the sweep looks again."""
    try:
        with contextlib.suppress(DomainError), session.begin_nested():
            session.execute(text("SET LOCAL statement_timeout = '2s'"))
            rounds.start_if_due(session, project_id)
    except OperationalError as error:
        if error.connection_invalidated:  # with it went the verdict
            raise


def check_candidates(shown: Sequence[int], verdict: VerdictIn) -> None:
    """Raise `Invalid`, naming the field, for a candidate that was not shown."""
    named = {"picks": verdict.picks, "edited_from": [verdict.edited_from or ""], "tags": list(verdict.tags)}
    for field, ids in named.items():
        for candidate in ids:
            if candidate and candidate_id(candidate, field) not in shown:
                raise Invalid(f"{field}: candidate {candidate} is not of this set.", field=field)


def locked(session: Session, actor: Actor, assignment_id: int) -> tuple[Assignment, CandidateSet, Prompt]:
    """The actor's own assignment, its set and its prompt, locked in this order. Raises `NotFound`, `Forbidden`."""
    found = session.scalar(select(Assignment).where(Assignment.id == assignment_id))
    project = None if found is None else session.get(Project, found.project_id)
    role = None if project is None else project_role(session, actor, project)
    if found is None:
        raise NotFound("There is no such assignment.")
    if found.critic_id != actor.user_id:
        raise Forbidden("This is another critic's assignment.")
    if role is None:
        raise NotFound("There is no such assignment.")
    if not has_role(role, Role.critic):
        raise Forbidden("This needs the role 'critic' in this project.")
    session.refresh(found, with_for_update={"key_share": True})
    candidate_set = session.get_one(
        CandidateSet, found.candidate_set_id, with_for_update={"key_share": True}, populate_existing=True
    )
    prompt = session.get_one(
        Prompt, candidate_set.prompt_id, with_for_update={"key_share": True}, populate_existing=True
    )
    return found, candidate_set, prompt


def free_slot(session: Session, candidate_set: CandidateSet) -> int | None:
    """A free slot of a locked set that is still offered, if there is one."""
    if candidate_set.state is not CandidateSetState.ready or candidate_set.taken >= candidate_set.slots:
        return None
    used = session.scalars(
        select(Assignment.slot).where(
            Assignment.candidate_set_id == candidate_set.id,
            Assignment.state.in_((AssignmentState.open, AssignmentState.judged)),
            Assignment.purpose == Purpose.work,
        )
    ).all()
    return next(slot for slot in range(1, candidate_set.slots + 1) if slot not in used)


def take_slot(session: Session, assignment: Assignment, candidate_set: CandidateSet, state: AssignmentState) -> bool:
    """Put a locked assignment on a free slot of its set again, as `state`. False: none is free."""
    is_work = assignment.purpose is Purpose.work
    slot = free_slot(session, candidate_set) if is_work else assignment.slot
    other = session.scalar(
        select(Assignment.id).where(
            Assignment.candidate_set_id == candidate_set.id,
            Assignment.critic_id == assignment.critic_id,
            Assignment.id != assignment.id,
            Assignment.state != AssignmentState.lapsed,
            Assignment.purpose == assignment.purpose,
        )
    )
    if slot is None or other is not None:
        return False
    assignment.slot, assignment.state = slot, state
    if is_work:
        candidate_set.taken += 1
    session.flush()
    return True


def new_verdict(
    session: Session,
    assignment: Assignment,
    candidate_set: CandidateSet,
    prompt: Prompt,
    verdict: VerdictIn,
    state: VerdictState,
    *,
    supersedes: int | None = None,
) -> Verdict:
    picks, edited_from, _ = candidate_ids(verdict)
    row = Verdict(
        project_id=assignment.project_id,
        assignment_id=assignment.id,
        candidate_set_id=candidate_set.id,
        prompt_id=prompt.id,
        critic_id=assignment.critic_id,
        kind=verdict.kind,
        state=state,
        supersedes=supersedes,
        reason=verdict.reason,
        rationale=verdict.rationale,
        edited_from=edited_from,
        tags=verdict.tags,
        comment=verdict.comment,
        seconds=verdict.seconds,
        exhaustive=verdict.exhaustive,
        shown=assignment.shown,
        weight=standings.get_weight(session, assignment.project_id, assignment.critic_id),
    )
    session.add(row)
    session.flush()
    session.add_all(Pick(verdict_id=row.id, candidate_id=pick) for pick in picks)
    session.flush()
    return row
