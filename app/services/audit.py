"""The audit log: who did what, written in the same transaction as the deed."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from app.models import AuditEvent
from app.services.actors import Actor


def record(
    session: Session, actor: Actor, action: str, subject: str, project_id: int | None = None, **data: Any
) -> None:
    """Note that `actor` did `action` to `subject`, such as `version:12`; `data` is JSON without secrets."""
    session.add(AuditEvent(project_id=project_id, user_id=actor.stored_id, action=action, subject=subject, data=data))
