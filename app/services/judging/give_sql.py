"""The statements by which verdicts are given: one for all, and some for the usual ones only."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from sqlalchemy import TextClause, text

from app.models import AssignmentState, VerdictKind
from app.services.kernel.actors import Actor
from app.services.kernel.verdict_schema import GIVEN_JSON, VerdictIn, candidate_ids

# The rule of the settings `r` by which a set's verdicts are dealt with.
RULE = "CROSS JOIN LATERAL (SELECT coalesce((r.settings -> 'adaptive_overlap')::boolean, false) AS adaptive) rule"
# One statement. The rows are locked in one order everywhere: assignment, candidate set, prompt. What stays as it is is
# not written: a set of several slots, and its prompt, mostly wait for the statements that come after.
PARTS = f"""
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
    {RULE}
    WHERE a.id = CAST(:assignment AS bigint) AND a.critic_id = CAST(:critic AS bigint) AND a.state = 'open'
      AND CAST(:mentioned AS bigint[]) <@ a.shown
      AND (:is_admin OR EXISTS (
          SELECT FROM memberships m
          WHERE m.project_id = a.project_id AND m.user_id = CAST(:critic AS bigint) AND m.role <> 'viewer'
      ))
      AND ONLY_IF
    FOR NO KEY UPDATE OF a, s, p
), v AS (
    INSERT INTO verdicts (project_id, assignment_id, candidate_set_id, prompt_id, critic_id, kind, state, reason,
        rationale, rationale_key, edited_from, tags, comment, seconds, exhaustive, shown, weight)
    SELECT project_id, id, candidate_set_id, prompt_id, critic_id, :kind,
        CASE WHEN purpose = 'work' THEN 'counted' ELSE purpose END, :reason, :rationale, :rationale_key,
        CAST(:edited_from AS bigint), CAST(:tags AS jsonb), :comment, CAST(:seconds AS double precision),
        CAST(:exhaustive AS boolean), shown, weight
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
    FROM mine
    WHERE s.id = mine.candidate_set_id AND mine.purpose = 'work' AND (mine.is_alone OR NOT :uses_slot)
), told AS (
    UPDATE prompts p
    SET state = CASE
            WHEN :flags AND mine.purpose <> 'gold' AND p.state <> 'retired' THEN 'held'
            WHEN :uses_slot AND mine.is_alone AND p.state = 'ready' THEN 'judged'
            ELSE p.state END,
        has_accepted = p.has_accepted OR mine.accepts,
        fresh = p.fresh OR (mine.accepts AND NOT p.has_accepted AND p.split = 'train')
    FROM mine
    WHERE p.id = mine.prompt_id AND (
        (:flags AND mine.purpose <> 'gold' AND p.state <> 'retired')
        OR (:uses_slot AND mine.is_alone AND p.state = 'ready')
        OR (mine.accepts AND NOT p.has_accepted)
    )
), given AS (
    SELECT {GIVEN_JSON} AS body, v.id, v.candidate_set_id, v.prompt_id, v.project_id, mine.purpose, mine.adaptive,
        mine.is_alone,
        mine.accepts AND NOT mine.has_accepted AND (mine.settings -> 'auto_rounds')::boolean AND (
            SELECT count(*) + 1 FROM (
                SELECT FROM prompts f WHERE f.project_id = mine.project_id AND f.fresh AND f.id <> mine.prompt_id
                LIMIT (mine.settings ->> 'round_every')::bigint
            ) others
        ) >= (mine.settings ->> 'round_every')::bigint AS is_due
    FROM v, mine
)
"""  # noqa: S608 - constants only
# The answer, under its key: that a key was used before is an error of the statement.
KEEP = """
, kept AS (
    INSERT INTO idempotency_keys (user_id, key, request_hash, status, response)
    SELECT CAST(:critic AS bigint), :key, :fingerprint, 201, body FROM given
)
"""


def giving(condition: str, *, keeps_key: bool = False) -> TextClause:
    """The statement for those verdicts that fulfil a condition; of others it does nothing."""
    parts = PARTS.replace("ONLY_IF", condition) + (KEEP if keeps_key else "")
    return text(f"{parts} SELECT * FROM given")  # noqa: S608 - constants only


GIVE = giving("true")


def array_text(numbers: Sequence[int]) -> str:
    """Numbers as PostgreSQL writes an array."""
    return "{" + ",".join(map(str, numbers)) + "}"


def verdict_tags(verdict: VerdictIn) -> str:
    """The tags as JSON text, for a statement that casts it."""
    return orjson.dumps(verdict.tags).decode()


def give_values(actor: Actor, assignment_id: int, verdict: VerdictIn) -> dict[str, str | bool | None]:
    """What the statement is run with. Raises `Invalid`."""
    picks, edited_from, mentioned = candidate_ids(verdict)
    return {
        # Numbers go as texts that the statement casts: the driver gives small and large ones different types, and each
        # mixture of types would be a statement with plans of its own.
        "assignment": str(assignment_id),
        "critic": str(actor.user_id),
        "is_admin": actor.is_admin,
        "mentioned": array_text(mentioned),
        "kind": verdict.kind.value,
        "reason": verdict.reason,
        "rationale": verdict.rationale,
        "rationale_key": verdict.rationale_key,
        "edited_from": None if edited_from is None else str(edited_from),
        "tags": verdict_tags(verdict),
        "comment": verdict.comment,
        "seconds": None if verdict.seconds is None else str(verdict.seconds),
        "exhaustive": verdict.exhaustive,
        "picks": array_text(picks),
        "gives_text": verdict.gives_text,
        "uses_slot": verdict.uses_slot,
        "flags": verdict.kind is VerdictKind.flagged,
        "closes_as": (AssignmentState.judged if verdict.uses_slot else AssignmentState.released).value,
    }
