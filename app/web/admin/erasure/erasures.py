"""Erasing people, images and projects: what would be lost, the confirmation, and the progress."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from app.errors import Conflict
from app.http.dependencies import SessionDep
from app.models import Erasure
from app.services.erasure import erasures
from app.services.erasure.erasures import ErasureImpact
from app.services.kernel.actors import Actor, parse_id
from app.web.access import Form, Me, Poster, SignedIn, text_of
from app.web.admin.frame import back_to
from app.web.rendering import page, shell_for
from app.web.words import image_url
from illume.phrases import _, kept

router = APIRouter()
Kind = Literal["users", "images", "projects"]
BACK = {"users": "/admin/users/{}", "images": "/admin", "projects": "/admin/projects/{}/settings"}
EXPLANATIONS = {
    "users": _(
        "Their address, password, tokens and memberships are erased at once, and soon after everything they said: "
        "picks, their own explanations, comments, times and notes. Other critics can then judge those prompts again."
    ),
    "images": _(
        "The image, and in every project the prompts that show it, with their questions, explanations and verdicts."
    ),
    "projects": _(
        "Prompts, explanations, verdicts, imports, settings, adapters, and images that no other project shows. "
        "Only figures remain of its training rounds and versions."
    ),
}
WHAT_STAYS = _(
    "Snapshots keep their hashes and show how many rows have been erased; training rounds that used them can no longer "
    "be repeated exactly. Models trained on this data are not changed, nor are copies made elsewhere: exports, backups "
    "and webhook deliveries."
)
NAMES = ("verdicts", "prompts", "images", "snapshots", "redacted", "tokens", "adapters", "uploads")


@dataclass(frozen=True, slots=True)
class EraseView:
    """What would be lost, and what has to be typed to confirm it."""

    title: str
    words: str
    stays: str
    counts: tuple[tuple[str, int], ...]
    projects: tuple[str, ...]
    typed: str
    image: str
    action: str
    back: str
    problem: str


@dataclass(frozen=True, slots=True)
class ErasureRow:
    """One erasure."""

    what: str
    state: str
    counts: str
    error: str
    asked: datetime
    done: datetime | None


def find_loss(session: Session, actor: Actor, kind: Kind, subject: str) -> ErasureImpact:
    """What would be lost. Raises `NotFound`, `Forbidden`, `Conflict`."""
    if kind == "users":
        return erasures.person_impact(session, actor, parse_id(subject))
    if kind == "images":
        return erasures.image_impact(session, actor, subject)
    return erasures.project_impact(session, actor, subject)


def title_of(kind: Kind, name: str) -> str:
    """What would be done."""
    if kind == "users":
        return _("Erase %(name)s", name=name)
    return _("Erase this image") if kind == "images" else _("Erase the project %(name)s", name=name)


def confirm_page(
    request: Request, session: Session, who: SignedIn, kind: Kind, subject: str, *, problem: str = "", status: int = 200
) -> Response:
    """What would be lost, with the form that confirms it."""
    loss = find_loss(session, who.actor, kind, subject)
    counts = tuple((name, getattr(loss, name)) for name in ("verdicts", "prompts", "images", "tokens", "snapshots"))
    names = {"snapshots": _("snapshots affected")} | ({"images": _("images, at least")} if loss.images_at_least else {})
    view = EraseView(
        title=title_of(kind, loss.name),
        words=EXPLANATIONS[kind],
        stays=WHAT_STAYS,
        counts=tuple((names.get(name, name), n) for name, n in counts if n),
        projects=loss.projects,
        typed="erase" if kind == "images" else loss.name,
        image=image_url(subject) if kind == "images" else "",
        action=f"/admin/erase/{kind}/{subject}",
        back=BACK[kind].format(subject),
        problem=problem,
    )
    shell = shell_for(request, who.actor, who.csrf_token, title=view.title, section="users")
    return page("admin/erasure/erase.html", shell=shell, view=view, status=status)


@router.get("/erase/{kind}/{subject}")
def confirm(request: Request, session: SessionDep, who: Me, kind: Kind, subject: str) -> Response:
    """Show what would be lost."""
    return confirm_page(request, session, who, kind, subject)


@router.post("/erase/{kind}/{subject}")
def erase(request: Request, session: SessionDep, who: Poster, form: Form, kind: Kind, subject: str) -> Response:
    """Erase it if its name was typed."""
    loss = find_loss(session, who.actor, kind, subject)
    wanted = "erase" if kind == "images" else loss.name
    if text_of(form, "typed").strip() != wanted:
        problem = _("Nothing has been erased: type %(wanted)s to confirm.", wanted=wanted)
        return confirm_page(request, session, who, kind, subject, problem=problem, status=422)
    try:
        if kind == "users":
            erasures.erase_person(session, who.actor, parse_id(subject))
        elif kind == "images":
            erasures.erase_image(session, who.actor, subject)
        else:
            erasures.erase_project(session, who.actor, subject)
    except Conflict as error:
        session.rollback()
        return confirm_page(request, session, who, kind, subject, problem=error.detail, status=error.status)
    return back_to("/admin/erasures", "erasing")


@router.get("/erasures")
def index(request: Request, session: SessionDep, who: Me) -> Response:
    """List erasures, the newest first."""
    found = erasures.list_erasures(session, who.actor, limit=200).items
    shell = shell_for(request, who.actor, who.csrf_token, title=_("Erasures"), section="users")
    return page("admin/erasure/erasures.html", shell=shell, view=tuple(erasure_row(one) for one in found))


def erasure_row(one: Erasure) -> ErasureRow:
    """An erasure as the page shows it."""
    subject = one.name or (f"{one.subject[:12]}…" if len(one.subject) > 20 else one.subject)
    return ErasureRow(
        what=f"{one.kind} {subject}",
        state=str(one.state),
        counts=", ".join(f"{name} {one.counts[name]}" for name in NAMES if one.counts.get(name)) or "–",
        error=kept(one.error, one.error_phrase),
        asked=one.created_at,
        done=one.finished_at,
    )
