"""Imports of files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, File, Form, Query, UploadFile
from sqlalchemy.orm import Session
from starlette.responses import Response, StreamingResponse

from app.api.schemas import ImportOut, Limit, ListOut
from app.db.sessions import session_scope
from app.errors import Invalid
from app.http.dependencies import ActorDep, ApiRoute, SessionDep, before_body, in_project
from app.http.gate import LARGEST_IMPORT
from app.models import Import, ImportProblem, Split
from app.services.imports import imports
from app.services.kernel.actors import parse_id
from app.services.kernel.rights import Right
from app.services.projects import projects
from illume.fields.variants import Change

router = APIRouter(tags=["imports"], route_class=ApiRoute)
PAGE_SIZE = 2000
MAX_PROBLEMS = 1000


def import_out(found: Import, problems: list[ImportProblem]) -> ImportOut:
    """An import, its progress, and the rejected lines (the first 1,000)."""
    return ImportOut(
        id=str(found.id),
        state=found.state,
        filename=found.filename,
        layout=found.plan.get("layout", "own"),
        columns=dict(found.plan.get("columns", [])),
        total=found.total,
        done=found.done,
        added=found.added,
        added_to_val=imports.added_to_val(found),
        variants_added=imports.variants_added(found),
        image_changes=imports.image_changes(found),
        unchanged=found.unchanged,
        rejected=found.rejected,
        problems=[problem_out(problem) for problem in problems],
        error=found.error,
        created_at=found.created_at,
        finished_at=found.finished_at,
    )


def problem_out(problem: ImportProblem) -> dict[str, Any]:
    """A rejected line."""
    return {"line": problem.line, "field": problem.field, "reason": problem.reason}


def import_with_problems(session: Session, found: Import) -> ImportOut:
    """An import with its first problems."""
    return import_out(found, imports.list_problems(session, found, limit=MAX_PROBLEMS))


@router.get("/projects/{slug}/imports")
def list_imports(
    session: SessionDep, actor: ActorDep, slug: str, limit: Limit = 100, cursor: str | None = None
) -> ListOut[ImportOut]:
    """The imports of a project, newest first, without their rejected lines."""
    project = projects.get_project(session, actor, slug)
    found = imports.list_imports(session, actor, project, limit=limit, cursor=cursor)
    return ListOut(items=[import_out(one, []) for one in found.items], next=found.next)


@router.post("/projects/{slug}/imports", status_code=202, max_body_size=LARGEST_IMPORT)
@before_body(in_project(Right.reviews))
def add_import(
    session: SessionDep,
    actor: ActorDep,
    slug: str,
    file: Annotated[
        UploadFile,
        File(
            description="NDJSON, CSV, JSON, Excel or Parquet; a zip of one of the first four and its images; an export"
        ),
    ],
    images: Annotated[UploadFile | None, File(description="A zip of the images that rows name")] = None,
    split: Annotated[Split, Form(description="The split of rows that name none")] = Split.train,
    propose_val: Annotated[
        bool, Form(description="Put rows that name no split into val for a tenth of the images; the others into train")
    ] = False,
    scale_down: Annotated[
        bool, Form(description="Scale images over 40 megapixels down to them, instead of rejecting their rows")
    ] = False,
    variants: Annotated[
        list[Change] | None,
        Form(description="Also add prompts under these variants of their policies, wherever gold values allow it"),
    ] = None,
    mapping: Annotated[
        str | None, Form(description='What columns become, as JSON: `{"caption": "question"}`', max_length=100_000)
    ] = None,
    encoding: Annotated[
        str | None,
        Form(description="The encoding of a CSV file, such as `cp949`, where a guess is wrong", max_length=40),
    ] = None,
) -> ImportOut:
    """Import a file of prompts; `GET /imports/{id}` reports the progress."""
    project = projects.get_project(session, actor, slug, Right.reviews)
    made = imports.create_import(
        session,
        actor,
        project,
        filename=file.filename or "",
        source=file.file,
        images_source=None if images is None else images.file,
        split=split,
        propose_val=propose_val,
        scale_down=scale_down,
        variants=variants or (),
        mapping=None if mapping is None else parse_mapping(mapping),
        encoding=encoding or "",
    )
    return import_with_problems(session, made)


def parse_mapping(text: str) -> dict[str, str]:
    """Parse the column mapping of a form field. Raises `Invalid`."""
    try:
        mapping = orjson.loads(text)
    except orjson.JSONDecodeError:
        mapping = None
    if not isinstance(mapping, dict) or not all(isinstance(one, str) for one in mapping.values()):
        raise Invalid('mapping must be a JSON object such as {"caption": "question"}.', field="mapping")
    return mapping


@router.get("/imports/{import_id}")
def get_import(session: SessionDep, actor: ActorDep, import_id: str) -> ImportOut:
    """The progress of an import, and the first 1,000 rejected lines with their reasons."""
    return import_with_problems(session, imports.get_import(session, actor, parse_id(import_id)))


@router.get(
    "/imports/{import_id}/problems",
    response_class=Response,
    responses={
        200: {"content": {"application/x-ndjson": {}, "text/csv": {}}, "description": "One line per rejected line"}
    },
)
def get_problems(
    session: SessionDep,
    actor: ActorDep,
    import_id: str,
    kind: Annotated[Literal["ndjson", "csv"], Query(alias="format")] = "ndjson",
) -> StreamingResponse:
    """Every rejected line with its number, field and reason, as NDJSON or CSV."""
    found = imports.get_import(session, actor, parse_id(import_id))
    media_type = "text/csv; charset=utf-8" if kind == "csv" else "application/x-ndjson"
    name = f"import-{found.id}-rejected.{kind}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingResponse(stream_problems(found, kind), media_type=media_type, headers=headers)


def stream_problems(found: Import, kind: str) -> Iterator[bytes]:
    """The rejected lines, one page per short session."""
    if kind == "csv":
        yield csv_line("line", "field", "reason")
    after = 0
    while True:
        with session_scope() as session:
            problems = imports.list_problems(session, found, limit=PAGE_SIZE, after=after)
        if kind == "csv":
            yield b"".join(csv_line(one.line, one.field, one.reason) for one in problems)
        else:
            yield b"".join(orjson.dumps(problem_out(one)) + b"\n" for one in problems)
        if len(problems) < PAGE_SIZE:
            return
        after = problems[-1].line


def csv_line(*values: object) -> bytes:
    """A line of CSV. A value that a spreadsheet would run as a formula is quoted as text."""
    texts = ["" if value is None else str(value) for value in values]
    file = io.StringIO()
    csv.writer(file).writerow([f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text for text in texts])
    return file.getvalue().encode()
