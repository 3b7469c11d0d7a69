"""Imports of files."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, File, UploadFile
from sqlalchemy.orm import Session

from app.api.schemas import ImportOut
from app.deps import ActorDep, SessionDep
from app.gate import LARGEST_IMPORT
from app.models import Import
from app.services import imports, projects
from app.services.actors import parse_id

router = APIRouter(tags=["prompts"])


def import_out(session: Session, found: Import) -> ImportOut:
    """An import, how far it is, and the lines it rejected (the first 1,000)."""
    return ImportOut(
        id=str(found.id),
        state=found.state,
        filename=found.filename,
        total=found.total,
        done=found.done,
        added=found.added,
        unchanged=found.unchanged,
        rejected=found.rejected,
        problems=[
            {"line": problem.line, "field": problem.field, "reason": problem.reason}
            for problem in imports.problems_of(session, found)
        ],
        error=found.error,
        created_at=found.created_at,
        finished_at=found.finished_at,
    )


@router.post("/projects/{slug}/imports", status_code=202, max_body_size=LARGEST_IMPORT)
def add_import(
    session: SessionDep,
    actor: ActorDep,
    slug: str,
    file: Annotated[UploadFile, File(description="NDJSON, a prompt a line; or a zip of one such file and its images")],
) -> ImportOut:
    """Import a file of prompts; `GET /imports/{id}` says how far it is."""
    project = projects.get_project(session, actor, slug)
    made = imports.create_import(session, actor, project, filename=file.filename or "", source=file.file)
    return import_out(session, made)


@router.get("/imports/{import_id}")
def get_import(session: SessionDep, actor: ActorDep, import_id: str) -> ImportOut:
    """How far an import is, and every rejected line with its reason."""
    return import_out(session, imports.get_import(session, actor, parse_id(import_id)))
