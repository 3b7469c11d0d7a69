"""Verdicts: what critics say of candidate sets. The modules beside this one change and read those already given."""

from __future__ import annotations

import hashlib

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.errors import Conflict, Invalid
from app.models import (
    AssignmentState,
    IdempotencyKey,
    Prompt,
    Purpose,
    ReviewKind,
    Verdict,
    VerdictKind,
    VerdictState,
)
from app.services.acceptance import rules
from app.services.judging.change import change
from app.services.judging.feed import body_of, feed, get_verdict, history, last_verdict_of, today_count
from app.services.judging.give_sql import GIVE, give_values
from app.services.judging.rows import (
    check_candidates,
    close_if_full,
    locked,
    new_verdict,
    start_round_if_due,
    take_slot,
)
from app.services.kernel.actors import Actor
from app.services.kernel.verdict_schema import VerdictIn, VerdictOut, parse_verdict
from app.services.quality import reviews, standings

__all__ = [
    "VerdictIn",
    "VerdictOut",
    "body_of",
    "change",
    "feed",
    "fingerprint",
    "get_verdict",
    "give",
    "history",
    "is_key",
    "last_verdict_of",
    "parse_verdict",
    "today_count",
]


def give(
    session: Session,
    actor: Actor,
    assignment_id: int,
    verdict: VerdictIn,
    *,
    idempotency_key: str | None = None,
) -> VerdictOut:
    """Judge what was claimed. The same `idempotency_key` again is the same verdict again.

    Raises `Forbidden` for another's assignment, `Conflict` when it was judged already, `Invalid` for a candidate that
    is not of the set. A lapsed claim still counts where its slot is free, else the verdict is kept aside.
    """
    if idempotency_key is None:
        return _give(session, actor, assignment_id, verdict)
    known = _reserve_key(session, actor, idempotency_key, fingerprint(assignment_id, verdict))
    if known is not None:
        return known
    out = _give(session, actor, assignment_id, verdict)
    session.execute(
        update(IdempotencyKey)
        .where(IdempotencyKey.user_id == actor.user_id, IdempotencyKey.key == idempotency_key)
        .values(status=out.status, response=out.body)
    )
    return out


def fingerprint(subject: int, verdict: VerdictIn) -> str:
    """What tells a request under a key from another one under the same."""
    return hashlib.sha256(f"{subject} {verdict.model_dump_json()}".encode()).hexdigest()


def is_key(key: str) -> bool:
    """Whether something may be an idempotency key."""
    return 1 <= len(key) <= 200 and key.isprintable()


def _reserve_key(session: Session, actor: Actor, key: str, fingerprint: str) -> VerdictOut | None:
    """The answer that was given under `key`; None when the key is new, which it then is no longer for others."""
    if not is_key(key):
        raise Invalid("An Idempotency-Key has 1 to 200 printable characters.", field="Idempotency-Key")
    reserve = insert(IdempotencyKey).values(
        user_id=actor.user_id, key=key, request_hash=fingerprint, status=0, response={}
    )
    added = session.execute(reserve.on_conflict_do_nothing().returning(IdempotencyKey.user_id))
    if added.one_or_none() is not None:
        return None
    row = session.execute(
        select(IdempotencyKey.request_hash, IdempotencyKey.status, IdempotencyKey.response).where(
            IdempotencyKey.user_id == actor.user_id, IdempotencyKey.key == key
        )
    ).one()
    if row.request_hash != fingerprint:
        raise Conflict("This Idempotency-Key was used for another request.", field="Idempotency-Key")
    return VerdictOut(row.status, row.response)


def _give(session: Session, actor: Actor, assignment_id: int, verdict: VerdictIn) -> VerdictOut:
    values = give_values(actor, assignment_id, verdict)
    row = session.execute(GIVE, values).one_or_none()
    if row is None:
        if not _reopen(session, actor, assignment_id, verdict):
            return _keep_aside(session, actor, assignment_id, verdict)
        row = session.execute(GIVE, values).one()
    is_due = bool(row.is_due)
    if row.purpose == Purpose.gold:
        standings.update_standing(session, row.project_id, actor.user_id)
    elif verdict.kind is VerdictKind.flagged:
        reviews.open_review(session, row.id, ReviewKind.flag)
    if row.purpose == Purpose.work and not row.is_alone:
        is_due = _settle(session, row.project_id, row.prompt_id, row.candidate_set_id, row.adaptive) or is_due
    if is_due:
        start_round_if_due(session, row.project_id)
    return VerdictOut(201, row.body)


def _settle(session: Session, project_id: int, prompt_id: int, set_id: int, adaptive: bool) -> bool:
    """Close a set of several slots once all are judged and count its votes anew. Whether its prompt became fresh."""
    close_if_full(session, set_id, adaptive=adaptive)
    if rules.aggregation_of(session, project_id) == "any":
        return False
    before = session.scalar(select(Prompt.fresh).where(Prompt.id == prompt_id))
    rules.refresh_prompts(session, project_id, [prompt_id])
    return not before and bool(session.scalar(select(Prompt.fresh).where(Prompt.id == prompt_id)))


def _reopen(session: Session, actor: Actor, assignment_id: int, verdict: VerdictIn) -> bool:
    """Open a lapsed assignment again if its slot is free, else False. Raises what else hinders the verdict."""
    assignment, candidate_set, _ = locked(session, actor, assignment_id)
    check_candidates(assignment.shown, verdict)
    given = session.scalar(select(Verdict.id).where(Verdict.assignment_id == assignment.id, Verdict.current))
    if given is not None:
        raise Conflict("This assignment is judged already: change the verdict instead.", verdict=str(given))
    if assignment.state is not AssignmentState.lapsed:
        raise Conflict(f"This assignment is {assignment.state.value}: claim another one.")
    return take_slot(session, assignment, candidate_set, AssignmentState.open)


def _keep_aside(session: Session, actor: Actor, assignment_id: int, verdict: VerdictIn) -> VerdictOut:
    """Store a verdict that came when its slot was somebody else's; it does not count."""
    assignment, candidate_set, prompt = locked(session, actor, assignment_id)
    row = new_verdict(session, assignment, candidate_set, prompt, verdict, VerdictState.kept_aside)
    reviews.open_review(session, row.id, ReviewKind.late)
    body = body_of(session, row.id)
    return VerdictOut(202, body)
