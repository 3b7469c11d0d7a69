"""Repositories for the Hugging Face Hub, a snapshot as a dataset or an adapter as a model: downloads and uploads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from sqlalchemy.orm import Session

from app.errors import Invalid
from app.http.dependencies import SessionDep
from app.models import ModelVersion, Project, Publication, PublicationState, RepositoryKind, Snapshot
from app.services.kernel.actors import Actor, require_admin
from app.services.kernel.rights import Right
from app.services.publishing import hub, uploading
from app.services.publishing.repositories import zip_pieces
from app.services.publishing.terms import parse_terms
from app.web.access import Form, Me, Poster, managed_project, text_of
from app.web.admin.frame import back_to, frame_of
from app.web.errors import wants_fragment
from app.web.forms import Field
from app.web.rendering import live
from illume.phrases import _, kept, pgettext

router = APIRouter()
TEMPLATE = "admin/exports/export.html"
UPLOAD = "upload-"
"""What the names of the fields of an upload begin with, which the form of a download has too."""
STATES = {
    PublicationState.queued: (pgettext("upload", "waits for a worker"), ""),
    PublicationState.running: (pgettext("upload", "uploading"), "accent"),
    PublicationState.uploaded: (pgettext("upload", "uploaded"), "good"),
    PublicationState.failed: (pgettext("upload", "failed"), "bad"),
}
"""The words for the state of an upload, and the look of its badge."""


@dataclass(frozen=True, slots=True)
class UploadRow:
    """An upload in the list."""

    what: str
    repo: str
    state: str
    tone: str
    address: str
    error: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Uploads:
    """The uploads of a project. `active`: one of them goes on; `possible`: here one can ask for more."""

    rows: tuple[UploadRow, ...] = ()
    active: bool = False
    possible: bool = False


@dataclass(frozen=True, slots=True)
class UploadsView:
    """The part of the page that is polled while an upload goes on."""

    slug: str
    uploads: Uploads


def uploads_of(session: Session, actor: Actor, project: Project) -> Uploads:
    """The newest uploads. Admins of the installation can ask for more where this machine has a token."""
    found = uploading.list_uploads(session, project)
    return Uploads(
        rows=tuple(map(upload_row, found)),
        active=any(one.state in uploading.OPEN for one in found),
        possible=actor.is_admin and hub.has_token(),
    )


def upload_row(one: Publication) -> UploadRow:
    """An upload in the list."""
    state, tone = STATES[one.state]
    return UploadRow(
        what=_("Snapshot %(number)s", number=one.number)
        if one.kind is RepositoryKind.dataset
        else _("Version %(number)s", number=one.number),
        repo=one.repo,
        state=state,
        tone=tone,
        address=one.address or "",
        error=kept(one.error, one.error_phrase),
        created_at=one.created_at,
    )


def publish_fields(
    snapshots: Sequence[Snapshot], versions: Sequence[ModelVersion], *, prefix: str = ""
) -> tuple[Field, ...]:
    """The fields of a form, their names after `prefix`; none if there is nothing to publish yet."""
    options = [
        *(
            (f"dataset-{one.number}", _("Dataset: snapshot %(number)s, %(name)s", number=one.number, name=one.name))
            for one in snapshots
        ),
        *(
            (f"adapter-{one.number}", _("Adapter: version %(number)s", number=one.number))
            for one in versions
            if one.adapter
        ),
    ]
    if not options:
        return ()
    return (
        Field(f"{prefix}what", _("Repository"), "select", value=options[0][0], options=tuple(options)),
        Field(f"{prefix}license", _("Licence"), help=_("As the Hub names it, such as cc-by-4.0.")),
        Field(f"{prefix}language", _("Languages"), help=_("Tags such as en or pt-BR, with spaces between them.")),
    )


def upload_fields(snapshots: Sequence[Snapshot], versions: Sequence[ModelVersion]) -> tuple[Field, ...]:
    """The fields of the form of an upload."""
    return (
        *publish_fields(snapshots, versions, prefix=UPLOAD),
        Field(
            "repo", _("Repository on the Hub"), help=_("OWNER/NAME. It is made if it does not exist."), required=True
        ),
        Field("public", _("Public"), "check", help=_("Everybody can see the repository if it is new.")),
    )


@router.get("/projects/{slug}/publish")
def publish(
    session: SessionDep,
    who: Me,
    slug: str,
    what: str = "",
    licence: Annotated[str, Query(alias="license")] = "",
    language: str = "",
) -> StreamingResponse:
    """Download a repository as a zip."""
    project = managed_project(session, who.actor, slug, Right.reviews)
    terms = parse_terms(licence, [language])
    kind, number = parse_what(what)
    repository = uploading.make_repository(session, who.actor, project, kind, number, terms)
    session.commit()  # release this connection: the files are read in sessions of their own
    disposition = f'attachment; filename="{slug}-{kind}-{number}.zip"'
    headers = {"Content-Disposition": disposition, "Cache-Control": "private, no-store"}
    return StreamingResponse(zip_pieces(repository), media_type="application/zip", headers=headers)


@router.post("/projects/{slug}/publish")
def upload(session: SessionDep, who: Poster, form: Form, slug: str) -> RedirectResponse:
    """Have a repository uploaded by a worker. Its token is the machine's: an admin of the installation decides."""
    require_admin(who.actor)
    project = managed_project(session, who.actor, slug, Right.administers)
    terms = parse_terms(text_of(form, f"{UPLOAD}license"), [text_of(form, f"{UPLOAD}language")])
    kind, number = parse_what(text_of(form, f"{UPLOAD}what"))
    repo, public = text_of(form, "repo").strip(), text_of(form, "public") == "yes"
    uploading.request_upload(session, who.actor, project, kind, number, terms, repo=repo, public=public)
    return back_to(f"/admin/projects/{slug}/export", "publishing")


@router.get("/projects/{slug}/uploads")
def uploads(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """The uploads of a project, for the page that polls them."""
    frame = frame_of(request, session, who, slug, tab="Export", title=_("Export"), need=Right.reviews)
    if not wants_fragment(request):
        return RedirectResponse(f"/admin/projects/{slug}/export#publish", status_code=303)
    view = UploadsView(slug, uploads_of(session, who.actor, frame.project))
    return live(request, TEMPLATE, "uploads", shell=frame.shell, view=view)


def parse_what(what: str) -> tuple[RepositoryKind, int]:
    """A kind of repository and a number, as `dataset-3`. Raises `Invalid`."""
    kind, _dash, number = what.partition("-")
    if kind not in tuple(RepositoryKind) or not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise Invalid(_("what: name a dataset or an adapter by its number, such as dataset-3."), field="what")
    return RepositoryKind(kind), int(number)
