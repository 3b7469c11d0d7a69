"""What a critic holds at this moment, by id: for who only has to know which claims those are."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Assignment, AssignmentState, Project
from app.services.actors import Actor
from app.services.assignments import LOCK_CRITIC


def held_ids(session: Session, actor: Actor, project: Project) -> list[int]:
    """The ids of the actor's open claims in a project, oldest first."""
    query = select(Assignment.id).where(
        Assignment.critic_id == actor.user_id,
        Assignment.project_id == project.id,
        Assignment.state == AssignmentState.open,
    )
    return list(session.scalars(query.order_by(Assignment.id)))


def lock_critic(session: Session, actor: Actor) -> None:
    """Let nobody else claim for the actor before this transaction ends.

    Who judges and claims in one transaction does this first: taken after the rows of the verdict, the lock could be
    held by a claim of the same critic that waits for these rows.
    """
    session.execute(LOCK_CRITIC, {"critic": actor.user_id % 2**31})
