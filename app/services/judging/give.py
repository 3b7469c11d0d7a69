"""Storing verdicts: one path for the browser's page and for REST, described in `docs/claim.md`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from app.db.batches import Row
from app.db.judging_pool import Call, Transaction, Values, statement
from app.errors import Conflict, Forbidden, Invalid, NotFound
from app.models import AssignmentState, Purpose, ReviewKind, Role, VerdictKind, VerdictState
from app.services.acceptance.overlap import ADAPT_SET
from app.services.acceptance.rules import REFRESH
from app.services.judging.fields import check_corrections
from app.services.judging.rows import (
    CLOSE_IF_FULL,
    INSERT_PICKS,
    STORE_VERDICT,
    TAKE_SLOT,
    array_literal,
    check_candidates,
    insert_verdict,
    verdict_values,
)
from app.services.kernel.actors import Actor, check_rights
from app.services.kernel.rights import JUDGING_ROLES, Right
from app.services.kernel.verdict_schema import NEW_JSON, VerdictIn, candidate_ids
from app.services.projects.policies import UNRATED
from app.services.quality.reviews import OPEN_REVIEW
from app.services.quality.standings import RECOUNT
from illume.phrases import _

JUDGED_ALREADY = _("This assignment has already been judged: change the verdict instead.")

# All code takes locks in one order: assignment, candidate set, prompt. Unchanged rows are not written: a set of several
# slots and its prompt are mostly updated by the statements that follow. Nothing is stored for an Idempotency-Key that
# was used before: its first response is returned instead.
GIVE = statement(f"""
WITH mine AS (
    SELECT a.id, a.project_id, a.candidate_set_id, a.critic_id, a.shown, a.blind, s.slots, s.prompt_id,
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
      AND CAST(:mentioned AS bigint[]) <@ a.shown AND (NOT a.is_blind OR a.blind IS NOT NULL OR NOT :uses_slot)
      AND (:is_admin OR EXISTS (
          SELECT FROM memberships m
          WHERE m.project_id = a.project_id AND m.user_id = CAST(:critic AS bigint) AND m.role IN ({JUDGING_ROLES})
      ))
      AND NOT EXISTS (SELECT FROM idempotency_keys k WHERE k.user_id = CAST(:critic AS bigint) AND k.key = :key)
    FOR NO KEY UPDATE OF a, s, p
), v AS (
    {insert_verdict(source="mine", state="CASE WHEN purpose = 'work' THEN 'counted' ELSE purpose END")}
), picks_stored AS (
    {INSERT_PICKS}
), assignment_closed AS (
    UPDATE assignments a SET state = :closes_as FROM mine WHERE a.id = mine.id
), set_updated AS (
    UPDATE candidate_sets s
    SET taken = s.taken - CASE WHEN :uses_slot THEN 0 ELSE 1 END,
        state = CASE WHEN :uses_slot AND mine.is_alone THEN 'judged' ELSE s.state END
    FROM mine
    WHERE s.id = mine.candidate_set_id AND mine.purpose = 'work' AND (mine.is_alone OR NOT :uses_slot)
), prompt_updated AS (
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
    SELECT {NEW_JSON} AS body, v.id, v.candidate_set_id, v.prompt_id, v.project_id, mine.purpose, mine.adaptive,
        mine.is_alone, mine.settings ->> 'aggregation' <> 'any' AS counts_votes,
        mine.accepts AND NOT mine.has_accepted AND mine.split = 'train' AND (
            mine.settings -> 'auto_rounds'
        )::boolean AND (
            SELECT count(*) + 1 FROM (
                SELECT FROM prompts f WHERE f.project_id = mine.project_id AND f.fresh AND f.id <> mine.prompt_id
                LIMIT (mine.settings ->> 'round_every')::bigint
            ) others
        ) >= (mine.settings ->> 'round_every')::bigint AS is_due
    FROM v, mine
), key_stored AS (
    INSERT INTO idempotency_keys (user_id, key, request_hash, status, response)
    SELECT CAST(:critic AS bigint), :key, :fingerprint, 201, body FROM given WHERE CAST(:key AS text) IS NOT NULL
)
SELECT * FROM given
""")  # noqa: S608 - constants only
COUNT_VOTES = statement(f"{REFRESH} RETURNING p.fresh AS is_fresh")

GET_RESPONSE = statement("""
SELECT request_hash, status, response FROM idempotency_keys WHERE user_id = CAST(:critic AS bigint) AND key = :key
""")
STORE_RESPONSE = statement("""
INSERT INTO idempotency_keys (user_id, key, request_hash, status, response)
VALUES (CAST(:critic AS bigint), :key, :fingerprint, CAST(:status AS int), CAST(:response AS jsonb))
RETURNING key
""")
# Why a verdict was not stored. The rows are locked, so that the answer stays true until the verdict is kept aside.
REJECTION = statement("""
SELECT a.critic_id, a.state, a.shown, a.is_blind AND a.blind IS NULL AS is_unrated, j.slug, m.role, v.id AS verdict
FROM assignments a
JOIN candidate_sets s ON s.id = a.candidate_set_id
JOIN prompts p ON p.id = s.prompt_id
JOIN projects j ON j.id = a.project_id
LEFT JOIN memberships m ON m.project_id = a.project_id AND m.user_id = CAST(:critic AS bigint)
LEFT JOIN verdicts v ON v.assignment_id = a.id AND v.current
WHERE a.id = CAST(:assignment AS bigint)
FOR NO KEY UPDATE OF a, s, p
""")


@dataclass(frozen=True, slots=True)
class VerdictOut:
    """The response: 201 with the verdict as JSON, or 202 if it came too late and was kept aside.

    `due_project` is the id of the project if this verdict may have made a round due.
    """

    status: int
    content: bytes
    due_project: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The verdict."""
        body: dict[str, Any] = orjson.loads(self.content)
        return body


async def give(
    transaction: Transaction,
    actor: Actor,
    assignment_id: int,
    verdict: VerdictIn,
    *,
    idempotency_key: str | None = None,
    first: Sequence[Call] = (),
) -> VerdictOut:
    """Judge what was claimed. The same `idempotency_key` again is the same verdict again.

    Statements in `first` are sent together with it, ahead of it. Raises `NotFound`, `Forbidden` for another's
    assignment, `Conflict` when it was judged already, `Invalid` for a candidate that is not of the set. A lapsed claim
    still counts where a slot is free, else the verdict is kept aside.
    """
    values = give_values(actor, assignment_id, verdict, idempotency_key)
    if verdict.fields:
        await check_corrections(transaction, actor, assignment_id, verdict.fields)
    row = (await transaction.run(*first, (GIVE, values)))[-1]
    if row is None:
        response = await stored_response(transaction, values)
        if response is not None:
            return response
        await explain_rejection(transaction, actor, verdict, values)
        if not await reopen(transaction, values):
            return await keep_aside(transaction, values)
        [row] = await transaction.run((GIVE, values))
        if row is None:
            raise Conflict(_("This assignment was changed at the same time: try again."))
    is_due = bool(row["is_due"])
    for result in await transaction.run(*follow_up_calls(actor, verdict, row)):
        is_due = is_due or bool(result is not None and result.get("is_fresh"))
    return VerdictOut(201, row["body"], row["project_id"] if is_due else None)


def give_values(actor: Actor, assignment_id: int, verdict: VerdictIn, key: str | None) -> Values:
    """The parameters of `GIVE`. Raises `Invalid`."""
    if key is not None and not (1 <= len(key) <= 200 and key.isprintable()):
        raise Invalid(_("An Idempotency-Key has 1 to 200 printable characters."), field="Idempotency-Key")
    return {
        **verdict_values(verdict),
        "assignment": str(assignment_id),
        "critic": str(actor.user_id),
        "is_admin": actor.is_admin,
        "mentioned": array_literal(candidate_ids(verdict)[2]),
        "gives_text": verdict.gives_text,
        "uses_slot": verdict.uses_slot,
        "flags": verdict.kind is VerdictKind.flagged,
        "closes_as": (AssignmentState.judged if verdict.uses_slot else AssignmentState.released).value,
        "key": key,
        "fingerprint": fingerprint(assignment_id, verdict),
    }


def fingerprint(assignment_id: int, verdict: VerdictIn) -> str:
    """A hash of the request, to detect that an Idempotency-Key is used again for another one."""
    without = {"fields"} if verdict.fields is None else set()
    return hashlib.sha256(f"{assignment_id} {verdict.model_dump_json(exclude=without)}".encode()).hexdigest()


def follow_up_calls(actor: Actor, verdict: VerdictIn, row: Row) -> list[Call]:
    """The statements to run after `GIVE`, by its result; none if the set has only one slot."""
    if row["purpose"] == Purpose.gold:
        return [(RECOUNT, {"project": row["project_id"], "critic": actor.user_id})]
    calls: list[Call] = []
    if verdict.kind is VerdictKind.flagged:
        calls.append((OPEN_REVIEW, {"verdict": row["id"], "kind": ReviewKind.flag.value}))
    if row["purpose"] == Purpose.work and not row["is_alone"]:
        of_set = {"set": row["candidate_set_id"]}
        calls += [(ADAPT_SET, of_set)] if row["adaptive"] else []
        calls.append((CLOSE_IF_FULL, of_set))
        if row["counts_votes"]:
            votes = {"project": row["project_id"], "prompts": array_literal([row["prompt_id"]])}
            calls.append((COUNT_VOTES, votes))
    return calls


async def stored_response(transaction: Transaction, values: Values) -> VerdictOut | None:
    """The stored response for the Idempotency-Key. Raises `Conflict` if the key was used for another request."""
    if values["key"] is None:
        return None
    [row] = await transaction.run((GET_RESPONSE, values))
    if row is None:
        return None
    if row["request_hash"] != values["fingerprint"]:
        raise Conflict(_("This Idempotency-Key was used for another request."), field="Idempotency-Key")
    return VerdictOut(row["status"], row["response"])


async def explain_rejection(transaction: Transaction, actor: Actor, verdict: VerdictIn, values: Values) -> None:
    """Raise the reason why a verdict was not stored. Returns if the only reason is a lapsed claim.

    Locks the assignment. Raises `NotFound`, `Forbidden`, `Invalid`, `Conflict`.
    """
    [row] = await transaction.run((REJECTION, values))
    role = None if row is None or row["role"] is None else Role(row["role"])
    if row is None:
        raise NotFound(_("There is no such assignment."))
    if row["critic_id"] != actor.user_id:
        raise Forbidden(_("This is another critic's assignment."))
    if not actor.is_admin:
        if role is None:
            raise NotFound(_("There is no such assignment."))
        check_rights(role, Right.judges, slug=row["slug"])
    check_candidates(row["shown"], verdict)
    if row["verdict"] is not None:
        raise Conflict(JUDGED_ALREADY, verdict=str(row["verdict"]))
    if row["is_unrated"] and verdict.uses_slot:
        raise Conflict(UNRATED)
    if row["state"] != AssignmentState.lapsed:
        raise Conflict(_("This assignment is %(state)s and takes no verdict: claim another one.", state=row["state"]))


async def reopen(transaction: Transaction, values: Values) -> bool:
    """Reopen a lapsed assignment if a slot of its set is free. Returns whether it did."""
    [row] = await transaction.run((TAKE_SLOT, {**values, "state": AssignmentState.open.value}))
    return row is not None and bool(row["is_taken"])


async def keep_aside(transaction: Transaction, values: Values) -> VerdictOut:
    """Store a verdict whose slot was taken meanwhile. It does not count, and a review is opened."""
    stored = {**values, "state": VerdictState.kept_aside.value, "supersedes": None}
    [row] = await transaction.run((STORE_VERDICT, stored))
    if row is None:
        raise NotFound(_("There is no such assignment."))
    out = VerdictOut(202, row["body"])
    calls: list[Call] = [(OPEN_REVIEW, {"verdict": row["id"], "kind": ReviewKind.late.value})]
    if values["key"] is not None:
        calls.append((STORE_RESPONSE, {**values, "status": 202, "response": out.content.decode()}))
    await transaction.run(*calls)
    return out
