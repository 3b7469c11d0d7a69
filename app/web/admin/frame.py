"""The frame that all pages of a project share: its tabs, and what the person may do."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastapi import Request
from fastapi.responses import RedirectResponse
from sqlalchemy.orm import Session

from app.models import Project
from app.services.kernel.actors import project_rights
from app.services.kernel.rights import Right
from app.web.access import SignedIn, managed_project
from app.web.rendering import Shell, Tab, shell_for
from illume.phrases import _

TABS = (
    ("Overview", _("Overview"), ""),
    ("Training rounds", _("Training rounds"), "/rounds"),
    ("Versions", _("Versions"), "/versions"),
    ("Prompts", _("Prompts"), "/prompts"),
    ("Review", _("Review"), "/review"),
    ("Critics", _("Critics"), "/critics"),
    ("Export", _("Export"), "/export"),
    ("Settings", _("Settings"), "/settings"),
)
"""The tabs of a project: the name by which pages ask for one, its label, and its address below the project's."""
TAB_RIGHTS = {"Review": Right.reviews, "Settings": Right.administers}


@dataclass(frozen=True, slots=True)
class Frame:
    """A project, the shell of its page, and what the person may do there."""

    project: Project
    shell: Shell
    may_manage: bool
    may_review: bool
    may_judge: bool


def frame_of(
    request: Request, session: Session, who: SignedIn, slug: str, *, tab: str, title: str, need: Right | None = None
) -> Frame:
    """The frame of a project's page. Raises `NotFound`, `Forbidden`."""
    project = managed_project(session, who.actor, slug, need)
    rights = project_rights(session, who.actor, project)
    shown = _("%(page)s · %(project)s", page=title, project=project.name)
    shell = shell_for(request, who.actor, who.csrf_token, title=shown, section="projects")
    tabs = tuple(
        Tab(label, f"/admin/projects/{slug}{path}", current=name == tab)
        for name, label, path in TABS
        if TAB_RIGHTS.get(name) is None or TAB_RIGHTS[name] in rights
    )
    return Frame(
        project=project,
        shell=replace(shell, project_name=project.name, tabs=tabs),
        may_manage=Right.administers in rights,
        may_review=Right.reviews in rights,
        may_judge=Right.judges in rights,
    )


def back_to(path: str, done: str) -> RedirectResponse:
    """A redirect to a page after a form, with the message `done` of `app.web.rendering.MESSAGES`."""
    return RedirectResponse(f"{path}?done={done}", status_code=303)
