"""The machine critic of a project: the version that rates its candidates."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import ModelVersion, Project, VersionKind
from app.services.projects.projects import settings_of


def newest_critic(session: Session, project: Project, kind: str | None = None) -> ModelVersion | None:
    """The project's newest machine critic, of a kind or of the one in its settings."""
    wanted = kind or settings_of(session, project).machine_critic
    query = select(ModelVersion).where(
        ModelVersion.project_id == project.id,
        ModelVersion.kind == VersionKind.critic,
        ModelVersion.metrics["critic"].astext == wanted,
        ModelVersion.adapter.is_not(None),
    )
    return session.scalar(query.order_by(ModelVersion.id.desc()).limit(1))
