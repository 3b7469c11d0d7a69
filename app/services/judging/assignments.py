"""Open claims: read, renew, release, and expire them."""

from __future__ import annotations

import orjson
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.errors import Conflict, Forbidden, NotFound
from app.models import Assignment, AssignmentState, Project, Purpose
from app.services.judging.claim import EXTEND, GET_CLAIM, Claim
from app.services.kernel.actors import Actor, project_role, require
from app.services.kernel.rights import RIGHTS, Right
from app.services.prompts.prompts import images_path
from illume.phrases import _

EXPIRE_CLAIMS = """
WITH expired AS (
    SELECT id FROM assignments WHERE state = 'open' AND expires_at < now()
    ORDER BY expires_at LIMIT :limit FOR UPDATE SKIP LOCKED
), lapsed AS (
    UPDATE assignments a SET state = 'lapsed' FROM expired WHERE a.id = expired.id
    RETURNING a.candidate_set_id, a.purpose
), freed AS (
    UPDATE candidate_sets s SET taken = s.taken - lapsed_sets.n
    FROM (SELECT candidate_set_id, count(*) AS n FROM lapsed WHERE purpose = 'work' GROUP BY 1) lapsed_sets
    WHERE s.id = lapsed_sets.candidate_set_id
)
SELECT count(*) FROM lapsed
"""


def get_assignment(session: Session, actor: Actor, assignment_id: int) -> Claim:
    """A claim; for its critic and the project's reviewers. Raises `NotFound`, `Forbidden`."""
    row = session.execute(GET_CLAIM.clause, {"assignment": assignment_id, "images": images_path()}).one_or_none()
    project = None if row is None else session.get(Project, row.project_id)
    role = None if project is None else project_role(session, actor, project)
    if row is None or role is None:
        raise NotFound(_("There is no such assignment."))
    if row.critic_id != actor.user_id and Right.reviews not in RIGHTS[role]:
        raise Forbidden(_("This is another critic's assignment."))
    return Claim(row.id, row.expires_at, True, orjson.dumps(row.body), row.is_blurred, row.language)


def list_open_assignments(session: Session, actor: Actor, project: Project) -> list[Claim]:
    """The actor's open claims in a project, oldest first."""
    require(session, actor, project, Right.judges)
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
    """Renew a claim's lease if less than half of it is left, four times at most. Otherwise the lease is unchanged.

    Raises `Conflict` if the claim is no longer open.
    """
    assignment = _lock_own(session, actor, assignment_id)
    if assignment.state is not AssignmentState.open:
        raise Conflict(_("This assignment is %(value)s: claim another one.", value=assignment.state.value))
    session.execute(EXTEND.clause, {"assignment": assignment_id})
    return get_assignment(session, actor, assignment_id)


def release(session: Session, actor: Actor, assignment_id: int) -> None:
    """Release a claim and free its slot. Does nothing if the claim is no longer open."""
    assignment = _lock_own(session, actor, assignment_id)
    if assignment.state is AssignmentState.open:
        assignment.state = AssignmentState.released
        session.flush()
        if assignment.purpose is not Purpose.work:
            return
        free = "UPDATE candidate_sets SET taken = taken - 1 WHERE id = :id"
        session.execute(text(free), {"id": assignment.candidate_set_id})


def expire_claims(session: Session, *, limit: int = 1000) -> int:
    """Mark up to `limit` claims whose lease is over as lapsed and free their slots. Returns the number of claims."""
    return session.scalar(text(EXPIRE_CLAIMS), {"limit": limit}) or 0


def _lock_own(session: Session, actor: Actor, assignment_id: int) -> Assignment:
    """Lock and return the actor's own assignment. Raises `NotFound`, `Forbidden`."""
    assignment = session.scalar(
        select(Assignment)
        .where(Assignment.id == assignment_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    project = None if assignment is None else session.get(Project, assignment.project_id)
    if assignment is None or project is None:
        raise NotFound(_("There is no such assignment."))
    if assignment.critic_id != actor.user_id:
        raise Forbidden(_("This is another critic's assignment."))
    if project_role(session, actor, project) is None:
        raise NotFound(_("There is no such assignment."))
    return assignment
