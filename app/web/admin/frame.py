"""The frame that all pages of a project share: its tabs, and what the person may do."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastapi import Request
from fastapi.responses import RedirectResponse
from sqlalchemy.orm import Session

from app.models import Project, Role
from app.services.kernel.actors import has_role, project_role
from app.web.access import SignedIn, managed_project
from app.web.rendering import Shell, Tab, shell_for

TABS = (
    ("Loop", ""),
    ("Rounds", "/rounds"),
    ("Versions", "/versions"),
    ("Prompts", "/prompts"),
    ("Review", "/review"),
    ("Critics", "/critics"),
    ("Export", "/export"),
    ("Settings", "/settings"),
)


@dataclass(frozen=True, slots=True)
class Frame:
    """A project, the shell of its page, and what the person may do there."""

    project: Project
    shell: Shell
    may_manage: bool
    may_review: bool


def frame_of(
    request: Request, session: Session, who: SignedIn, slug: str, *, tab: str, title: str, need: Role = Role.viewer
) -> Frame:
    """The frame of a project's page. Raises `NotFound`, `Forbidden`."""
    project = managed_project(session, who.actor, slug, need)
    role = project_role(session, who.actor, project)
    shell = shell_for(request, who.actor, who.csrf_token, title=f"{title} · {project.name}", section="projects")
    tabs = tuple(
        Tab(label, f"/admin/projects/{slug}{path}", current=label == tab)
        for label, path in TABS
        if (label != "Settings" or role is Role.admin) and (label != "Review" or has_role(role, Role.reviewer))
    )
    return Frame(
        project=project,
        shell=replace(shell, project_name=project.name, tabs=tabs),
        may_manage=role is Role.admin,
        may_review=role in (Role.admin, Role.reviewer),
    )


def back_to(path: str, done: str) -> RedirectResponse:
    """A redirect to a page after a form, with the message `done` of `app.web.rendering.MESSAGES`."""
    return RedirectResponse(f"{path}?done={done}", status_code=303)
