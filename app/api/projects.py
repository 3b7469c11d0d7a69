"""Projects and their settings."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body
from sqlalchemy.orm import Session

from app.api.schemas import Limit, ListOut, ProjectIn, ProjectOut
from app.deps import ActorDep, SessionDep
from app.models import Project
from app.services import projects, stats
from app.services.paging import slice_page

router = APIRouter(tags=["projects"])


def project_out(session: Session, project: Project) -> ProjectOut:
    """A project with its settings in force."""
    return ProjectOut(
        **projects.settings_of(session, project).model_dump(),
        id=str(project.id),
        slug=project.slug,
        name=project.name,
        active_version=None if project.active_version_id is None else str(project.active_version_id),
        created_at=project.created_at,
    )


@router.get("/projects")
def list_projects(
    session: SessionDep, actor: ActorDep, limit: Limit = 100, cursor: str | None = None
) -> ListOut[ProjectOut]:
    """The projects one is a member of, in the order they were made."""
    found = projects.list_projects(session, actor)
    page = slice_page(found, lambda project: project.id, limit=limit, cursor=cursor)
    return ListOut(items=[project_out(session, project) for project in page.items], next=page.next)


@router.post("/projects", status_code=201)
def add_project(session: SessionDep, actor: ActorDep, body: ProjectIn) -> ProjectOut:
    """Make a project with version 0, the base model."""
    given = body.model_dump(exclude={"slug", "name"}, exclude_unset=True)
    name = body.slug if body.name is None else body.name
    return project_out(session, projects.create_project(session, actor, slug=body.slug, name=name, settings=given))


@router.get("/projects/{slug}")
def get_project(session: SessionDep, actor: ActorDep, slug: str) -> ProjectOut:
    """A project and its settings."""
    return project_out(session, projects.get_project(session, actor, slug))


@router.patch("/projects/{slug}")
def change_project(
    session: SessionDep, actor: ActorDep, slug: str, body: Annotated[dict[str, Any], Body()]
) -> ProjectOut:
    """Change the name or settings; only what is given changes."""
    return project_out(session, projects.update_project(session, actor, slug, body))


@router.get("/projects/{slug}/stats")
def get_stats(session: SessionDep, actor: ActorDep, slug: str) -> dict[str, Any]:
    """Counts, pace, agreement, the pool, and how far the next round is."""
    project = projects.get_project(session, actor, slug)
    return stats.as_json(stats.project_stats(session, actor, project))
