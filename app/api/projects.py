"""Projects and their settings."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.api.schemas import Limit, ListOut, ProjectIn, ProjectOut
from app.http.dependencies import ActorDep, ApiRoute, SessionDep, before_body, in_project
from app.http.responses import Json, Problem
from app.models import Project
from app.services.kernel.actors import Actor, project_rights, require_admin
from app.services.kernel.paging import slice_page
from app.services.kernel.rights import Right
from app.services.kernel.visible_fields import AnswerShape, shown_to
from app.services.projects import pauses, projects
from app.services.read_models import stats
from app.services.rounds import base_checks

router = APIRouter(tags=["projects"], route_class=ApiRoute)


def project_json(session: Session, actor: Actor, project: Project) -> dict[str, Any]:
    """A project with those of its current settings that the actor may see."""
    found = ProjectOut(
        **projects.settings_of(session, project).model_dump(),
        id=str(project.id),
        slug=project.slug,
        name=project.name,
        active_version=None if project.active_version_id is None else str(project.active_version_id),
        created_at=project.created_at,
    )
    return shown_to(project_rights(session, actor, project), AnswerShape.project, found.model_dump(mode="json"))


@router.get("/projects", response_model=ListOut[ProjectOut])
def list_projects(session: SessionDep, actor: ActorDep, limit: Limit = 100, cursor: str | None = None) -> Json:
    """The projects you are a member of, in order of creation."""
    found = projects.list_projects(session, actor)
    page = slice_page(found, lambda project: project.id, limit=limit, cursor=cursor)
    return Json({"items": [project_json(session, actor, project) for project in page.items], "next": page.next})


def check_base_model(session: Session, actor: Actor, wanted: object, known: str = "") -> Problem | None:
    """A problem for a base model that a worker still has to check; None if it is known to be usable.

    The problem is returned, not raised, so that the request to the worker is committed.
    """
    if wanted is None or wanted == known:
        return None
    name = projects.parse_settings({"base_model": wanted}).base_model
    found = base_checks.require_check(session, actor, name)
    if found is None:
        return None
    detail = f"A worker checks '{name}' before a project uses it: send this again in a moment."
    extra = {"field": "base_model", "state": found.state}
    return Problem(409, "Conflict", detail, extra=extra, headers={"Retry-After": "5"})


@router.post("/projects", status_code=201, response_model=ProjectOut)
@before_body(lambda _session, actor, _path: require_admin(actor))
def add_project(session: SessionDep, actor: ActorDep, body: ProjectIn) -> Response:
    """Create a project with version 0, the base model; 409 while a worker checks a new base model."""
    require_admin(actor)
    if problem := check_base_model(session, actor, body.base_model):
        return problem
    given = body.model_dump(exclude={"slug", "name"}, exclude_unset=True)
    name = body.slug if body.name is None else body.name
    project = projects.create_project(session, actor, slug=body.slug, name=name, settings=given)
    return Json(project_json(session, actor, project), status_code=201)


@router.get("/projects/{slug}", response_model=ProjectOut)
def get_project(session: SessionDep, actor: ActorDep, slug: str) -> Json:
    """A project and its settings."""
    return Json(project_json(session, actor, projects.get_project(session, actor, slug)))


@router.patch("/projects/{slug}", response_model=ProjectOut)
@before_body(in_project(Right.administers))
def change_project(
    session: SessionDep, actor: ActorDep, slug: str, body: Annotated[dict[str, Any], Body()]
) -> Response:
    """Change the name or settings; only the given fields change. 409 while a worker checks a new base model."""
    project = projects.get_project(session, actor, slug, Right.administers)
    known = projects.settings_of(session, project).base_model
    if problem := check_base_model(session, actor, body.get("base_model"), known):
        return problem
    return Json(project_json(session, actor, projects.update_project(session, actor, slug, body)))


@router.post("/projects/{slug}/resume", status_code=204)
def resume_project(session: SessionDep, actor: ActorDep, slug: str) -> None:
    """Have a model that could not be used tried again at once, instead of in up to an hour. For admins."""
    pauses.try_now(session, actor, projects.get_project(session, actor, slug, Right.administers))


@router.get("/projects/{slug}/stats")
def get_stats(session: SessionDep, actor: ActorDep, slug: str) -> dict[str, Any]:
    """Counts, pace, agreement, the pool, and progress to the next round. Critics get nothing of what others said."""
    project = projects.get_project(session, actor, slug)
    return stats.load_stats_json(session, actor, project)
