"""Who judges in a project, and how."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.deps import SessionDep
from app.services import overviews
from app.services.overviews import CriticLine
from app.web.access import Me
from app.web.admin.frame import frame_of
from app.web.rendering import page

router = APIRouter()


@dataclass(frozen=True, slots=True)
class CriticsView:
    """The critics of a project."""

    slug: str
    rows: tuple[CriticLine, ...]


@router.get("/projects/{slug}/critics")
def show(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """The critics of a project."""
    frame = frame_of(request, session, who, slug, tab="Critics", title="Critics")
    view = CriticsView(slug, tuple(overviews.critics_of(session, who.actor, frame.project)))
    return page("admin/critics.html", shell=frame.shell, view=view)
