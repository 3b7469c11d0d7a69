"""The download of a repository for the Hugging Face Hub: a snapshot as a dataset, or an adapter as a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from app.errors import Invalid
from app.http.dependencies import SessionDep
from app.models import ModelVersion, Snapshot
from app.services.kernel.rights import Right
from app.services.publishing.repositories import (
    RepositoryKind,
    adapter_repository,
    choose_snapshot,
    choose_version,
    dataset_repository,
    zip_pieces,
)
from app.services.publishing.terms import parse_terms
from app.web.access import Me, managed_project
from app.web.forms import Field
from illume.phrases import _

router = APIRouter()


def publish_fields(snapshots: Sequence[Snapshot], versions: Sequence[ModelVersion]) -> tuple[Field, ...]:
    """The fields of the form; none if there is nothing to publish yet."""
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
        Field("what", _("Repository"), "select", value=options[0][0], options=tuple(options)),
        Field("license", _("Licence"), help=_("As the Hub names it, such as cc-by-4.0.")),
        Field("language", _("Languages"), help=_("Tags such as en or pt-BR, with spaces between them.")),
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
    if kind is RepositoryKind.dataset:
        snapshot = choose_snapshot(session, who.actor, project, number)
        repository = dataset_repository(session, who.actor, project, snapshot, terms)
    else:
        version = choose_version(session, who.actor, project, number)
        repository = adapter_repository(session, who.actor, project, version, terms)
    session.commit()  # release this connection: the files are read in sessions of their own
    disposition = f'attachment; filename="{slug}-{kind}-{number}.zip"'
    headers = {"Content-Disposition": disposition, "Cache-Control": "private, no-store"}
    return StreamingResponse(zip_pieces(repository), media_type="application/zip", headers=headers)


def parse_what(what: str) -> tuple[RepositoryKind, int]:
    """A kind of repository and a number, as `dataset-3`. Raises `Invalid`."""
    kind, _dash, number = what.partition("-")
    if kind not in tuple(RepositoryKind) or not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise Invalid(_("what: name a dataset or an adapter by its number, such as dataset-3."), field="what")
    return RepositoryKind(kind), int(number)
