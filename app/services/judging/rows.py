"""Parts shared by storing, changing and reviewing verdicts: locks, slots, states, rows."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import orjson
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.db.judging_pool import Value, statement
from app.errors import DomainError, Forbidden, Invalid, NotFound
from app.models import (
    Assignment,
    AssignmentState,
    CandidateSet,
    Project,
    Prompt,
    Verdict,
    VerdictState,
)
from app.services.acceptance import overlap
from app.services.kernel.actors import Actor, project_role
from app.services.kernel.rights import RIGHTS, Right
from app.services.kernel.verdict_schema import NEW_JSON, VerdictIn, candidate_id, candidate_ids
from app.services.quality import reviews
from app.services.rounds import rounds
from illume.phrases import _

# Run after a verdict on a set of several slots. A separate statement, so that it sees concurrent verdicts.
CLOSE_IF_FULL = statement(f"""
WITH closed AS (
    UPDATE candidate_sets s SET state = 'judged'
    WHERE s.id = CAST(:set AS bigint) AND s.state = 'ready' AND s.slots <= (
        SELECT count(*) FROM assignments a
        WHERE a.candidate_set_id = s.id AND a.state = 'judged' AND a.purpose = 'work'
    )
    RETURNING s.id, s.project_id, s.prompt_id
), prompt_updated AS (
    UPDATE prompts p SET state = 'judged' FROM closed WHERE p.id = closed.prompt_id AND p.state = 'ready'
)
INSERT INTO reviews (project_id, candidate_set_id, kind)
SELECT s.project_id, s.id, 'disagreement' FROM closed s WHERE {reviews.CRITICS_DIFFER} AND NOT {reviews.IS_DECIDED}
ON CONFLICT DO NOTHING
RETURNING id
""")  # noqa: S608 - constants only
# Takes the lowest free slot of a ready set, for an assignment whose own slot may be taken by now. A gold prompt or a
# repeat keeps its slot. Takes none if the critic has another assignment on the set.
TAKE_SLOT = statement("""
WITH mine AS (
    SELECT a.id, a.candidate_set_id, a.purpose, a.slot, s.slots
    FROM assignments a JOIN candidate_sets s ON s.id = a.candidate_set_id
    WHERE a.id = CAST(:assignment AS bigint)
      AND (a.purpose <> 'work' OR (s.state = 'ready' AND s.taken < s.slots))
      AND NOT EXISTS (
          SELECT FROM assignments o
          WHERE o.candidate_set_id = a.candidate_set_id AND o.critic_id = a.critic_id AND o.id <> a.id
            AND o.state <> 'lapsed' AND o.purpose = a.purpose
      )
    FOR NO KEY UPDATE OF a, s
), free AS (
    SELECT mine.id, CASE WHEN mine.purpose = 'work' THEN (
        SELECT min(n) FROM generate_series(1, mine.slots) n
        WHERE NOT EXISTS (
            SELECT FROM assignments b
            WHERE b.candidate_set_id = mine.candidate_set_id AND b.slot = n AND b.state IN ('open', 'judged')
              AND b.purpose = 'work'
        )
    ) ELSE mine.slot END AS slot
    FROM mine
), taken AS (
    UPDATE assignments a SET slot = free.slot, state = :state FROM free
    WHERE a.id = free.id AND free.slot IS NOT NULL
    RETURNING a.candidate_set_id, a.purpose
), counted AS (
    UPDATE candidate_sets s SET taken = s.taken + 1
    FROM taken WHERE s.id = taken.candidate_set_id AND taken.purpose = 'work'
)
SELECT EXISTS (SELECT FROM taken) AS is_taken
""")


def insert_verdict(*, source: str, state: str, supersedes: str = "NULL") -> str:
    """SQL that stores the posted verdict for the assignment row `source`, which has `weight`, `shown`, `blind`
    and `prompt_id`.

    `state` and `supersedes` are SQL expressions. It returns the verdict; `INSERT_PICKS` stores its picks.
    """
    return f"""
    INSERT INTO verdicts (project_id, assignment_id, candidate_set_id, prompt_id, critic_id, kind, state, reason,
        rationale, rationale_key, edited_from, tags, comment, seconds, exhaustive, fields, shown, weight, supersedes)
    SELECT project_id, id, candidate_set_id, prompt_id, critic_id, :kind, {state}, :reason, :rationale, :rationale_key,
        CAST(:edited_from AS bigint), CAST(:tags AS jsonb), :comment, CAST(:seconds AS double precision),
        CAST(:exhaustive AS boolean),
        nullif(coalesce(blind, '{{}}') || coalesce(CAST(:fields AS jsonb), '{{}}'), '{{}}'), shown, weight, {supersedes}
    FROM {source}
    RETURNING *
"""  # noqa: S608 - constants only


INSERT_PICKS = "INSERT INTO picks (verdict_id, candidate_id) SELECT v.id, unnest(CAST(:picks AS bigint[])) FROM v"
STORE_VERDICT = statement(f"""
WITH mine AS (
    SELECT a.id, a.project_id, a.candidate_set_id, a.critic_id, a.shown, a.blind, s.prompt_id,
        coalesce(d.weight, 1) AS weight
    FROM assignments a JOIN candidate_sets s ON s.id = a.candidate_set_id
    LEFT JOIN critic_standings d ON d.project_id = a.project_id AND d.critic_id = a.critic_id
    WHERE a.id = CAST(:assignment AS bigint)
), v AS (
    {insert_verdict(source="mine", state=":state", supersedes="CAST(:supersedes AS bigint)")}
), picked AS (
    {INSERT_PICKS}
)
SELECT v.id, {NEW_JSON} AS body FROM v
""")  # noqa: S608 - constants only


def verdict_values(verdict: VerdictIn) -> dict[str, Value]:
    """The parameters of a statement that stores a verdict. Raises `Invalid`.

    Numbers are sent as text that the statement casts. The driver would send small and large numbers with different
    types, and each combination of types would be prepared separately.
    """
    picks, edited_from, _ = candidate_ids(verdict)
    return {
        "kind": verdict.kind.value,
        "reason": verdict.reason,
        "rationale": verdict.rationale,
        "rationale_key": verdict.rationale_key,
        "edited_from": None if edited_from is None else str(edited_from),
        "tags": orjson.dumps(verdict.tags).decode(),
        "comment": verdict.comment,
        "seconds": None if verdict.seconds is None else str(verdict.seconds),
        "exhaustive": verdict.exhaustive,
        "fields": None if not verdict.fields else orjson.dumps(verdict.fields).decode(),
        "picks": array_literal(picks),
    }


def array_literal(numbers: Sequence[int]) -> str:
    """Numbers as a PostgreSQL array literal."""
    return "{" + ",".join(map(str, numbers)) + "}"


def close_if_full(session: Session, set_id: int, *, adaptive: bool) -> None:
    """Close a set once all its slots are judged, and open a review if its critics disagree.

    With an adaptive overlap the number of slots is first updated from the verdicts so far.
    """
    session.flush()
    if adaptive:
        session.execute(overlap.ADAPT_SET.clause, {"set": set_id})
    session.execute(CLOSE_IF_FULL.clause, {"set": set_id})


def start_round_if_due(session: Session, project_id: int) -> None:
    """Start a round if enough prompts are fresh. A failure does not affect the verdict: the sweep tries again."""
    try:
        with contextlib.suppress(DomainError), session.begin_nested():
            session.execute(text("SET LOCAL statement_timeout = '2s'"))
            rounds.start_if_due(session, project_id)
    except OperationalError as error:
        if error.connection_invalidated:  # the verdict is lost too
            raise


def check_candidates(shown: Sequence[int], verdict: VerdictIn) -> None:
    """Raise `Invalid`, naming the field, if the verdict names a candidate that was not shown."""
    named = {"picks": verdict.picks, "edited_from": [verdict.edited_from or ""], "tags": list(verdict.tags)}
    for field, ids in named.items():
        for candidate in ids:
            if candidate and candidate_id(candidate, field) not in shown:
                raise Invalid(
                    _("%(field)s: candidate %(candidate)s is not in this set.", field=field, candidate=candidate),
                    field=field,
                )


def lock_assignment(session: Session, actor: Actor, assignment_id: int) -> tuple[Assignment, CandidateSet, Prompt]:
    """Lock the actor's own assignment, its set and its prompt, in this order. Raises `NotFound`, `Forbidden`."""
    found = session.scalar(select(Assignment).where(Assignment.id == assignment_id))
    project = None if found is None else session.get(Project, found.project_id)
    role = None if project is None else project_role(session, actor, project)
    if found is None:
        raise NotFound(_("There is no such assignment."))
    if found.critic_id != actor.user_id:
        raise Forbidden(_("This is another critic's assignment."))
    if role is None:
        raise NotFound(_("There is no such assignment."))
    if Right.judges not in RIGHTS[role]:
        raise Forbidden(_("This needs the role 'critic' in this project."))
    session.refresh(found, with_for_update={"key_share": True})
    candidate_set = session.get_one(
        CandidateSet, found.candidate_set_id, with_for_update={"key_share": True}, populate_existing=True
    )
    prompt = session.get_one(
        Prompt, candidate_set.prompt_id, with_for_update={"key_share": True}, populate_existing=True
    )
    return found, candidate_set, prompt


def take_slot(session: Session, assignment: Assignment, candidate_set: CandidateSet, state: AssignmentState) -> bool:
    """Give a locked assignment a free slot of its set, and set its state. Returns False if no slot is free."""
    session.flush()
    values = {"assignment": assignment.id, "state": state.value}
    is_taken = bool(session.execute(TAKE_SLOT.clause, values).scalar_one())
    session.refresh(assignment)
    session.refresh(candidate_set)
    return is_taken


def store_verdict(
    session: Session, assignment: Assignment, verdict: VerdictIn, state: VerdictState, *, supersedes: int | None = None
) -> Verdict:
    """Store a verdict with its picks."""
    session.flush()
    values = {
        **verdict_values(verdict),
        "assignment": assignment.id,
        "state": state.value,
        "supersedes": supersedes,
    }
    stored = session.execute(STORE_VERDICT.clause, values).one()
    return session.get_one(Verdict, stored.id)
