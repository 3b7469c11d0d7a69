"""What a critic holds at this moment, by id, and the lock by which they claim one after the other."""

from __future__ import annotations

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.models import Assignment, AssignmentState, Project
from app.services.kernel.actors import Actor

LOCK_CRITIC = text("SELECT pg_advisory_xact_lock(12, CAST(CAST(:critic AS bigint) % 2147483648 AS int))")


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
    session.execute(LOCK_CRITIC, {"critic": actor.user_id})
