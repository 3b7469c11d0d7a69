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
from app.models import Assignment, AssignmentState, Project, Purpose, Role
from app.services.judging.claim_sql import CLAIM, CLAIM_JSON, claim_values
from app.services.judging.open_claims import lock_critic
from app.services.kernel.actors import Actor, has_role, project_role, require
from app.services.projects.projects import get_project
from app.services.quality import standings

MAX_EXTENSIONS = 4
RETRIES = 20
PAUSE = 0.02

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
    UPDATE assignments a SET state = 'lapsed' FROM late WHERE a.id = late.id
    RETURNING a.candidate_set_id, a.purpose
), freed AS (
    UPDATE candidate_sets s SET taken = s.taken - g.n
    FROM (SELECT candidate_set_id, count(*) AS n FROM gone WHERE purpose = 'work' GROUP BY 1) g
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
    renewed. Needs the role critic. Raises `Forbidden` for who is paused, or has yet to practise.
    """
    # A statement of its own, so that the next one sees what the same critic claimed a moment ago.
    lock_critic(session, actor)
    values = claim_values(actor, slug, max_open=max_open)
    for _ in range(RETRIES):
        row = session.execute(CLAIM, values).one()
        if row.id is not None:
            return Claim(row.id, row.expires_at, row.resumed, row.body)
        if not row.allowed:
            # Raises the error that says what is wrong.
            standings.require_may_judge(session, actor, get_project(session, actor, slug, Role.critic))
            continue
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
    """Hold a claim for another lease, for who is at work on it: where less than half of one is left, and four times.

    Otherwise its time stays what it was. Raises `Conflict` when it is no longer open.
    """
    assignment = _own(session, actor, assignment_id)
    if assignment.state is not AssignmentState.open:
        raise Conflict(f"This assignment is {assignment.state.value}: claim another one.")
    session.execute(text(EXTEND), {"assignment": assignment_id, "most": MAX_EXTENSIONS})
    return get_assignment(session, actor, assignment_id)


EXTEND = """
UPDATE assignments a
SET extensions = a.extensions + 1, expires_at = now() + lease.span
FROM projects p JOIN setting_revisions r ON r.id = p.revision_id
CROSS JOIN LATERAL (
    SELECT make_interval(secs => 60 * (r.settings ->> 'lease_minutes')::double precision) AS span
) lease
WHERE a.id = :assignment AND p.id = a.project_id AND a.extensions < :most AND a.expires_at < now() + lease.span / 2
"""


def release(session: Session, actor: Actor, assignment_id: int) -> None:
    """Give a claim back; its slot is free for others. Giving back what is no longer open does nothing."""
    assignment = _own(session, actor, assignment_id)
    if assignment.state is AssignmentState.open:
        assignment.state = AssignmentState.released
        session.flush()
        if assignment.purpose is not Purpose.work:
            return
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
    if assignment is None or project is None:
        raise NotFound("There is no such assignment.")
    if assignment.critic_id != actor.user_id:
        raise Forbidden("This is another critic's assignment.")
    if project_role(session, actor, project) is None:
        raise NotFound("There is no such assignment.")
    return assignment
