"""Claims: a critic's time-limited hold on a slot of a candidate set."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.errors import Conflict, Forbidden, NotFound
from app.models import Assignment, AssignmentState, Project, Role
from app.services.actors import Actor, has_role, project_role, require
from app.services.projects import get_project

RETRIES = 20
PAUSE = 0.02

# What a critic gets, as JSON: the prompt without references and metadata, the candidates in the order they are shown.
# `a` is the assignment, `s` its candidate set, `p` its prompt.
CLAIM_JSON = """
jsonb_build_object(
    'id', a.id::text,
    'state', a.state,
    'expires_at', to_char(a.expires_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    'prompt', jsonb_build_object(
        'id', p.id::text,
        'external_id', p.external_id,
        'split', p.split,
        'state', p.state,
        'question', p.question,
        'answer', coalesce(p.answer, s.answer),
        'images', (
            SELECT jsonb_agg(jsonb_build_object(
                'sha256', i.sha256, 'url', '/api/v1/images/' || i.sha256, 'width', i.width, 'height', i.height
            ) ORDER BY pi.position)
            FROM prompt_images pi JOIN images i ON i.sha256 = pi.sha256 WHERE pi.prompt_id = p.id
        )
    ),
    'candidates', (
        SELECT jsonb_agg(jsonb_build_object('id', c.id::text, 'text', c.text) ORDER BY array_position(a.shown, c.id))
        FROM candidates c WHERE c.candidate_set_id = s.id
    )
)
"""

# A set `s` of a ready prompt `p` that this critic may claim.
CLAIMABLE = """
FROM candidate_sets s JOIN prompts p ON p.id = s.prompt_id
WHERE (SELECT count(*) FROM open) < (SELECT max_open FROM allowed)
  AND s.project_id = (SELECT project FROM allowed) AND s.state = 'ready' AND s.taken < s.slots AND p.state = 'ready'
  AND NOT EXISTS (
      SELECT FROM assignments mine
      WHERE mine.candidate_set_id = s.id AND mine.critic_id = :critic AND mine.state <> 'lapsed'
  )
"""

# One statement. `chosen` locks a set that nobody else is about to take; `claimed` may find, by a snapshot older than
# that lock, the same slot free as somebody who was quicker: then it takes nothing and the statement is run again.
CLAIM = text(f"""
WITH allowed AS (
    SELECT j.id AS project, coalesce(CAST(:max_open AS int), (r.settings ->> 'max_open')::int) AS max_open,
        make_interval(secs => 60 * (r.settings ->> 'lease_minutes')::double precision) AS lease
    FROM projects j JOIN setting_revisions r ON r.id = j.revision_id
    WHERE j.slug = :slug AND (:is_admin OR EXISTS (
        SELECT FROM memberships m WHERE m.project_id = j.id AND m.user_id = :critic AND m.role <> 'viewer'
    ))
), open AS (
    SELECT id FROM assignments
    WHERE critic_id = :critic AND project_id = (SELECT project FROM allowed) AND state = 'open'
    ORDER BY id LIMIT (SELECT max_open FROM allowed)
), resumed AS (
    UPDATE assignments SET expires_at = now() + (SELECT lease FROM allowed)
    WHERE id = (SELECT min(id) FROM open HAVING count(*) >= (SELECT max_open FROM allowed)) AND state = 'open'
    RETURNING id, state, candidate_set_id, shown, expires_at
), chosen AS (
    SELECT s.id, s.slots {CLAIMABLE}
    ORDER BY s.taken, s.priority DESC, s.id LIMIT 1
    FOR UPDATE OF s SKIP LOCKED
), claimed AS (
    INSERT INTO assignments (project_id, candidate_set_id, critic_id, slot, state, shown, expires_at)
    SELECT (SELECT project FROM allowed), chosen.id, :critic, free.slot, 'open',
        (SELECT array_agg(c.id ORDER BY random()) FROM candidates c WHERE c.candidate_set_id = chosen.id),
        now() + (SELECT lease FROM allowed)
    FROM chosen CROSS JOIN LATERAL (
        SELECT min(n) AS slot FROM generate_series(1, chosen.slots) n
        WHERE NOT EXISTS (
            SELECT FROM assignments b
            WHERE b.candidate_set_id = chosen.id AND b.slot = n AND b.state IN ('open', 'judged')
        )
    ) free
    WHERE free.slot IS NOT NULL
    ON CONFLICT DO NOTHING
    RETURNING id, state, candidate_set_id, shown, expires_at
), counted AS (
    UPDATE candidate_sets s SET taken = s.taken + 1 FROM claimed WHERE s.id = claimed.candidate_set_id
), a AS (
    SELECT *, true AS resumed FROM resumed UNION ALL SELECT *, false FROM claimed
)
SELECT a.id, a.expires_at, a.resumed, {CLAIM_JSON} AS body, true AS found, true AS allowed
FROM a JOIN candidate_sets s ON s.id = a.candidate_set_id JOIN prompts p ON p.id = s.prompt_id
UNION ALL
SELECT NULL, NULL, NULL, NULL, EXISTS (SELECT {CLAIMABLE}), EXISTS (SELECT FROM allowed)
WHERE NOT EXISTS (SELECT FROM a)
""")  # noqa: S608 - constants only
LOCK_CRITIC = text("SELECT pg_advisory_xact_lock(12, CAST(:critic AS int))")

LOOK = text(f"""
SELECT a.id, a.expires_at, {CLAIM_JSON} AS body, a.critic_id, a.project_id
FROM assignments a JOIN candidate_sets s ON s.id = a.candidate_set_id JOIN prompts p ON p.id = s.prompt_id
WHERE a.id = :assignment
""")  # noqa: S608 - constants only

LAPSE = """
WITH late AS (
    SELECT id FROM assignments WHERE state = 'open' AND expires_at < now()
    ORDER BY expires_at LIMIT :limit FOR UPDATE SKIP LOCKED
), gone AS (
    UPDATE assignments a SET state = 'lapsed' FROM late WHERE a.id = late.id RETURNING a.candidate_set_id
), freed AS (
    UPDATE candidate_sets s SET taken = s.taken - g.n
    FROM (SELECT candidate_set_id, count(*) AS n FROM gone GROUP BY 1) g
    WHERE s.id = g.candidate_set_id
)
SELECT count(*) FROM gone
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim as its critic sees it. `body` is what the REST interface answers; `resumed`: it was held before."""

    assignment_id: int
    expires_at: datetime
    resumed: bool
    body: dict[str, Any]

    @property
    def prompt(self) -> dict[str, Any]:
        """The prompt, without references and metadata."""
        prompt: dict[str, Any] = self.body["prompt"]
        return prompt

    @property
    def candidates(self) -> list[dict[str, str]]:
        """`id` and `text` of each candidate, in the order they are shown."""
        candidates: list[dict[str, str]] = self.body["candidates"]
        return candidates


def claim(session: Session, actor: Actor, project: Project, *, max_open: int | None = None) -> Claim | None:
    """`claim_in`, of a project that is at hand."""
    return claim_in(session, actor, project.slug, max_open=max_open)


def claim_in(session: Session, actor: Actor, slug: str, *, max_open: int | None = None) -> Claim | None:
    """Claim the next candidate set of a project for `actor`, or None when none is ready for them.

    Who holds `max_open` already (a token's own number, else the project's) gets the oldest of those again, its time
    renewed. Needs the role critic.
    """
    values = {
        "slug": slug,
        "critic": actor.user_id,
        "is_admin": actor.role is Role.admin,
        "max_open": max_open or actor.max_open,
    }
    # A statement of its own, so that the next one sees what the same critic claimed a moment ago.
    session.execute(LOCK_CRITIC, {"critic": actor.user_id % 2**31})
    for _ in range(RETRIES):
        row = session.execute(CLAIM, values).one()
        if row.id is not None:
            return Claim(row.id, row.expires_at, row.resumed, row.body)
        if not row.allowed:
            get_project(session, actor, slug, Role.critic)  # says what is wrong
        if not row.found:
            return None
        time.sleep(random.uniform(0, PAUSE))  # somebody else is taking the last sets at this moment
    return None


def get_assignment(session: Session, actor: Actor, assignment_id: int) -> Claim:
    """A claim, for its critic and for the project's reviewers. Raises `NotFound`, `Forbidden`."""
    row = session.execute(LOOK, {"assignment": assignment_id}).one_or_none()
    project = None if row is None else session.get(Project, row.project_id)
    role = None if project is None else project_role(session, actor, project)
    if row is None or role is None:
        raise NotFound("There is no such assignment.")
    if row.critic_id != actor.user_id and not has_role(role, Role.reviewer):
        raise Forbidden("This is another critic's assignment.")
    return Claim(row.id, row.expires_at, True, row.body)


def open_assignments(session: Session, actor: Actor, project: Project) -> list[Claim]:
    """The claims `actor` holds in a project, oldest first."""
    require(session, actor, project, Role.critic)
    ids = session.scalars(
        select(Assignment.id)
        .where(
            Assignment.critic_id == actor.user_id,
            Assignment.project_id == project.id,
            Assignment.state == AssignmentState.open,
        )
        .order_by(Assignment.id)
    )
    return [get_assignment(session, actor, assignment_id) for assignment_id in ids]


def heartbeat(session: Session, actor: Actor, assignment_id: int) -> Claim:
    """Hold a claim for another lease. Raises `Conflict` when it is no longer open."""
    assignment = _own(session, actor, assignment_id)
    if assignment.state is not AssignmentState.open:
        raise Conflict(f"This assignment is {assignment.state.value}: claim another one.")
    session.execute(text(EXTEND), {"assignment": assignment_id})
    return get_assignment(session, actor, assignment_id)


EXTEND = """
UPDATE assignments a
SET extensions = a.extensions + 1,
    expires_at = now() + make_interval(secs => 60 * (r.settings ->> 'lease_minutes')::double precision)
FROM projects p JOIN setting_revisions r ON r.id = p.revision_id
WHERE a.id = :assignment AND p.id = a.project_id
"""


def release(session: Session, actor: Actor, assignment_id: int) -> None:
    """Give a claim back; its slot is free for others. Giving back what is no longer open does nothing."""
    assignment = _own(session, actor, assignment_id)
    if assignment.state is AssignmentState.open:
        assignment.state = AssignmentState.released
        session.flush()
        free = "UPDATE candidate_sets SET taken = taken - 1 WHERE id = :id"
        session.execute(text(free), {"id": assignment.candidate_set_id})


def lapse_expired(session: Session, *, limit: int = 1000) -> int:
    """Free the slots of claims whose time is over. Returns how many there were."""
    return session.scalar(text(LAPSE), {"limit": limit}) or 0


def _own(session: Session, actor: Actor, assignment_id: int) -> Assignment:
    """The actor's own assignment, locked. Raises `NotFound`, `Forbidden`."""
    assignment = session.scalar(
        select(Assignment)
        .where(Assignment.id == assignment_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    project = None if assignment is None else session.get(Project, assignment.project_id)
    if assignment is None or project is None or project_role(session, actor, project) is None:
        raise NotFound("There is no such assignment.")
    if assignment.critic_id != actor.user_id:
        raise Forbidden("This is another critic's assignment.")
    return assignment
