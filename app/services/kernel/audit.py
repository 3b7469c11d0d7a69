"""The audit log: who did what. Written in the same transaction as the action, and read by admins."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import AuditEvent, Project, User
from app.services.kernel.actors import Actor, require_admin
from app.services.kernel.paging import check_limit


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An entry of the audit log. `who` is an address; None for the system itself, or for an erased person."""

    id: int
    at: datetime
    who: str | None
    action: str
    subject: str
    project: str | None
    data: dict[str, Any]


def record(
    session: Session, actor: Actor, action: str, subject: str, project_id: int | None = None, **data: Any
) -> None:
    """Record that `actor` did `action` to `subject`, such as `version:12`. `data` is JSON without secrets."""
    session.add(AuditEvent(project_id=project_id, user_id=actor.stored_id, action=action, subject=subject, data=data))


def list_events(
    session: Session,
    actor: Actor,
    *,
    who: str = "",
    action: str = "",
    project: str = "",
    since: datetime | None = None,
    until: datetime | None = None,
    before: int | None = None,
    limit: int = 100,
) -> list[AuditEntry]:
    """The newest audit entries, for an admin. `before` is the id of the last entry of the previous page.

    `who` is part of an address, `action` a prefix (`round` for everything about rounds), `project` a slug.
    """
    require_admin(actor)
    query = (
        select(AuditEvent, User.email, Project.slug)
        .outerjoin(User, User.id == AuditEvent.user_id)
        .outerjoin(Project, Project.id == AuditEvent.project_id)
        .order_by(AuditEvent.id.desc())
        .limit(check_limit(limit))
    )
    if who:
        query = query.where(User.email.icontains(who, autoescape=True))
    if action:
        query = query.where(AuditEvent.action.startswith(action, autoescape=True))
    if project:
        query = query.where(Project.slug == project)
    if since is not None:
        query = query.where(AuditEvent.at >= since)
    if until is not None:
        query = query.where(AuditEvent.at < until)
    if before is not None:
        query = query.where(AuditEvent.id < before)
    return [
        AuditEntry(event.id, event.at, email, event.action, event.subject, slug, event.data)
        for event, email, slug in session.execute(query)
    ]


def list_subject_kinds(session: Session, actor: Actor) -> list[str]:
    """The kinds of subjects in the audit log: `round`, `user` ..."""
    require_admin(actor)
    return sorted({action.partition(".")[0] for action in session.scalars(select(AuditEvent.action).distinct())})
