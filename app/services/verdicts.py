"""Verdicts: what critics say of candidate sets. The modules beside this one change and read those already given."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import orjson
from sqlalchemy import select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.errors import Conflict, Invalid
from app.models import (
    AssignmentState,
    IdempotencyKey,
    Prompt,
    Purpose,
    ReviewKind,
    Role,
    Verdict,
    VerdictKind,
    VerdictState,
)
from app.services import accepted, reviews, standings
from app.services.actors import Actor
from app.services.verdict_changes import change
from app.services.verdict_forms import GIVEN_JSON, VerdictIn, VerdictOut, candidate_ids, parse_verdict
from app.services.verdict_reading import body_of, feed, get_verdict, history, last_verdict_of, today_count
from app.services.verdict_rows import (
    check_candidates,
    close_if_full,
    locked,
    new_verdict,
    start_round_if_due,
    take_slot,
)

__all__ = [
    "VerdictIn",
    "VerdictOut",
    "body_of",
    "change",
    "feed",
    "get_verdict",
    "give",
    "history",
    "last_verdict_of",
    "parse_verdict",
    "today_count",
]

# One statement. The rows are locked in one order everywhere: assignment, candidate set, prompt.
GIVE = text(f"""
WITH mine AS (
    SELECT a.id, a.project_id, a.candidate_set_id, a.critic_id, a.shown, s.slots, s.prompt_id,
        p.has_accepted, p.split, r.settings, a.purpose, rule.adaptive, coalesce(d.weight, 1) AS weight,
        a.purpose = 'work' AND s.slots = 1 AND NOT rule.adaptive AS is_alone,
        :gives_text AND a.purpose = 'work'
            AND (r.settings ->> 'aggregation' = 'any' OR (s.slots = 1 AND NOT rule.adaptive))
            AND NOT EXISTS (
                SELECT FROM verdicts w WHERE w.candidate_set_id = s.id AND w.current AND w.state = 'decided'
            ) AS accepts
    FROM assignments a
    JOIN candidate_sets s ON s.id = a.candidate_set_id
    JOIN prompts p ON p.id = s.prompt_id
    JOIN projects j ON j.id = a.project_id
    JOIN setting_revisions r ON r.id = j.revision_id
    LEFT JOIN critic_standings d ON d.project_id = a.project_id AND d.critic_id = a.critic_id
    CROSS JOIN LATERAL (SELECT coalesce((r.settings -> 'adaptive_overlap')::boolean, false) AS adaptive) rule
    WHERE a.id = CAST(:assignment AS bigint) AND a.critic_id = CAST(:critic AS bigint) AND a.state = 'open'
      AND CAST(:mentioned AS bigint[]) <@ a.shown
      AND (:is_admin OR EXISTS (
          SELECT FROM memberships m
          WHERE m.project_id = a.project_id AND m.user_id = CAST(:critic AS bigint) AND m.role <> 'viewer'
      ))
    FOR NO KEY UPDATE OF a, s, p
), v AS (
    INSERT INTO verdicts (project_id, assignment_id, candidate_set_id, prompt_id, critic_id, kind, state, reason,
        rationale, edited_from, tags, comment, seconds, shown, weight)
    SELECT project_id, id, candidate_set_id, prompt_id, critic_id, :kind,
        CASE WHEN purpose = 'work' THEN 'counted' ELSE purpose END, :reason, :rationale, CAST(:edited_from AS bigint),
        CAST(:tags AS jsonb), :comment, CAST(:seconds AS double precision), shown, weight
    FROM mine
    RETURNING *
), picked AS (
    INSERT INTO picks (verdict_id, candidate_id) SELECT v.id, unnest(CAST(:picks AS bigint[])) FROM v
), closed AS (
    UPDATE assignments a SET state = :closes_as FROM mine WHERE a.id = mine.id
), settled AS (
    UPDATE candidate_sets s
    SET taken = s.taken - CASE WHEN :uses_slot THEN 0 ELSE 1 END,
        state = CASE WHEN :uses_slot AND mine.is_alone THEN 'judged' ELSE s.state END
    FROM mine WHERE s.id = mine.candidate_set_id AND mine.purpose = 'work'
), told AS (
    UPDATE prompts p
    SET state = CASE
            WHEN :flags AND mine.purpose <> 'gold' AND p.state <> 'retired' THEN 'held'
            WHEN :uses_slot AND mine.is_alone AND p.state = 'ready' THEN 'judged'
            ELSE p.state END,
        has_accepted = p.has_accepted OR mine.accepts,
        fresh = p.fresh OR (mine.accepts AND NOT p.has_accepted AND p.split = 'train')
    FROM mine WHERE p.id = mine.prompt_id
)
SELECT {GIVEN_JSON} AS body, v.id, v.candidate_set_id, v.prompt_id, v.project_id, mine.purpose, mine.adaptive,
    mine.is_alone,
    mine.accepts AND NOT mine.has_accepted AND (mine.settings -> 'auto_rounds')::boolean AND (
        SELECT count(*) + 1 FROM (
            SELECT FROM prompts f WHERE f.project_id = mine.project_id AND f.fresh AND f.id <> mine.prompt_id
            LIMIT (mine.settings ->> 'round_every')::bigint
        ) others
    ) >= (mine.settings ->> 'round_every')::bigint AS is_due
FROM v, mine
""")  # noqa: S608 - constants only


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
    known = _reserve_key(session, actor, idempotency_key, _fingerprint(assignment_id, verdict))
    if known is not None:
        return known
    out = _give(session, actor, assignment_id, verdict)
    session.execute(
        update(IdempotencyKey)
        .where(IdempotencyKey.user_id == actor.user_id, IdempotencyKey.key == idempotency_key)
        .values(status=out.status, response=out.body)
    )
    return out


def _fingerprint(subject: int, verdict: VerdictIn) -> str:
    return hashlib.sha256(f"{subject} {verdict.model_dump_json()}".encode()).hexdigest()


def _reserve_key(session: Session, actor: Actor, key: str, fingerprint: str) -> VerdictOut | None:
    """The answer that was given under `key`; None when the key is new, which it then is no longer for others."""
    if not 1 <= len(key) <= 200 or not key.isprintable():
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
    picks, edited_from, mentioned = candidate_ids(verdict)
    values = {
        # Numbers go as texts that the statement casts: the driver gives small and large ones different types, and each
        # mixture of types would be a statement with plans of its own.
        "assignment": str(assignment_id),
        "critic": str(actor.user_id),
        "is_admin": actor.role is Role.admin,
        "mentioned": array_text(mentioned),
        "kind": verdict.kind.value,
        "reason": verdict.reason,
        "rationale": verdict.rationale,
        "edited_from": None if edited_from is None else str(edited_from),
        "tags": verdict_tags(verdict),
        "comment": verdict.comment,
        "seconds": None if verdict.seconds is None else str(verdict.seconds),
        "picks": array_text(picks),
        "gives_text": verdict.gives_text,
        "uses_slot": verdict.uses_slot,
        "flags": verdict.kind is VerdictKind.flagged,
        "closes_as": (AssignmentState.judged if verdict.uses_slot else AssignmentState.released).value,
    }
    row = session.execute(GIVE, values).one_or_none()
    if row is None:
        if not _reopen(session, actor, assignment_id, verdict):
            return _keep_aside(session, actor, assignment_id, verdict)
        row = session.execute(GIVE, values).one()
    is_due = bool(row.is_due)
    if row.purpose == Purpose.gold:
        standings.recount(session, row.project_id, actor.user_id)
    elif verdict.kind is VerdictKind.flagged:
        reviews.ask(session, row.id, ReviewKind.flag)
    if row.purpose == Purpose.work and not row.is_alone:
        is_due = _settle(session, row.project_id, row.prompt_id, row.candidate_set_id, row.adaptive) or is_due
    if is_due:
        start_round_if_due(session, row.project_id)
    return VerdictOut(201, row.body)


def array_text(numbers: Sequence[int]) -> str:
    """Numbers as PostgreSQL writes an array."""
    return "{" + ",".join(map(str, numbers)) + "}"


def verdict_tags(verdict: VerdictIn) -> str:
    """The tags as JSON text, for a statement that casts it."""
    return orjson.dumps(verdict.tags).decode()


def _settle(session: Session, project_id: int, prompt_id: int, set_id: int, adaptive: bool) -> bool:
    """Close a set of several slots once all are judged and count its votes anew. Whether its prompt became fresh."""
    close_if_full(session, set_id, adaptive=adaptive)
    if accepted.aggregation_of(session, project_id) == "any":
        return False
    before = session.scalar(select(Prompt.fresh).where(Prompt.id == prompt_id))
    accepted.refresh_prompts(session, project_id, [prompt_id])
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
    reviews.ask(session, row.id, ReviewKind.late)
    body = body_of(session, row.id)
    return VerdictOut(202, body)
