"""Importing prompts: upload a file, check its columns, import it, and see what was rejected."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData, UploadFile

from app.errors import Conflict, Invalid, NotFound
from app.http.dependencies import SessionDep
from app.http.forms import read_form
from app.http.gate import LARGEST_IMPORT
from app.models import Import, ImportProblem, ImportState, Split
from app.services.imports import imports
from app.services.imports import templates as import_templates
from app.services.kernel import counters
from app.services.kernel.actors import parse_id
from app.services.kernel.rights import Right
from app.services.prompts import variants
from app.settings import get_settings
from app.web.access import (
    Form,
    Me,
    Poster,
    ReviewerAhead,
    SignedIn,
    check_form_token,
    managed_project,
    text_of,
    texts_of,
)
from app.web.admin.frame import Frame, back_to, frame_of
from app.web.admin.imports.drafts import DraftView, draft_view
from app.web.admin.imports.photos import MOST_PHOTOS
from app.web.errors import wants_fragment
from app.web.rendering import live, page
from app.web.words import IMAGE_CHANGE_WORDS
from illume.fields.variants import CHANGES
from illume.phrases import _, kept
from illume.pictures import Change

router = APIRouter()
LIST = "admin/imports/imports.html"
ONE = "admin/imports/import.html"
SAMPLE = "photographs"
SHOWN_PROBLEMS = 100
MOST_FILES = 100
TONES = {ImportState.succeeded: "good", ImportState.failed: "bad", ImportState.draft: "warn"}


@dataclass(frozen=True, slots=True)
class ImportRow:
    """An import in the list."""

    id: str
    filename: str
    state: str
    tone: str
    added: int
    unchanged: int
    rejected: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ImportsView:
    """The form to upload a file, and the imports so far. A project that `is_new` is offered the sample photographs."""

    slug: str
    problem: str
    split: str
    splits: tuple[str, ...]
    templates: tuple[str, ...]
    rows: tuple[ImportRow, ...]
    is_new: bool
    most_photos: int = MOST_PHOTOS


@dataclass(frozen=True, slots=True)
class ProblemRow:
    """A rejected line."""

    line: int
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class ImportView:
    """One import: a draft, or its progress and result."""

    slug: str
    may_manage: bool
    id: str
    filename: str
    state: str
    tone: str
    created_at: datetime
    draft: DraftView | None
    has_images: bool
    active: bool
    sentence: str
    total: int
    done: int
    added: int
    unchanged: int
    rejected: int
    error: str
    problems: tuple[ProblemRow, ...]
    more: int
    added_to_val: int | None
    variants_added: int | None
    image_changes: tuple[tuple[str, int], ...]


async def read_upload(request: Request, _: ReviewerAhead) -> AsyncIterator[FormData]:
    """The fields of a form with files. The files are closed after the request."""
    form = await read_form(request, files=MOST_FILES)
    try:
        yield form
    finally:
        await form.close()


Upload = Annotated[FormData, Depends(read_upload, scope="function")]


def uploading(request: Request, form: Upload, who: Me) -> SignedIn:
    """The person who uploads files. Raises `Forbidden` where the form's token is not their session's."""
    return check_form_token(request, form, who)


Uploader = Annotated[SignedIn, Depends(uploading, scope="function")]


def parse_split(form: FormData) -> Split:
    """The split chosen in a form. Raises `Invalid`."""
    text = text_of(form, "split", Split.train.value)
    if text not in set(Split):
        raise Invalid(_("Choose one of the splits."), field="split")
    return Split(text)


# The list, and the form to upload a file


@router.get("/projects/{slug}/imports")
def index(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """Show the form to upload a file, and the imports so far."""
    frame = frame_of(request, session, who, slug, tab="Prompts", title=_("Import prompts"), need=Right.reviews)
    return list_page(session, who, frame)


def list_page(
    session: Session, who: SignedIn, frame: Frame, *, problem: str = "", split: str = "train", status: int = 200
) -> Response:
    """The page of imports, with the problem of the uploaded file."""
    found = imports.list_imports(session, who.actor, frame.project, limit=50).items
    view = ImportsView(
        slug=frame.project.slug,
        problem=problem,
        split=split,
        splits=tuple(Split),
        templates=tuple(import_templates.TEMPLATES),
        rows=tuple(import_row(one) for one in found),
        is_new=not any(one.n for one in counters.prompt_counts(session, frame.project)),
    )
    return page(LIST, shell=frame.shell, view=view, status=status)


def import_row(found: Import) -> ImportRow:
    """An import in the list."""
    return ImportRow(
        id=str(found.id),
        filename=found.filename,
        state=found.state.value,
        tone=TONES.get(found.state, "accent"),
        added=found.added,
        unchanged=found.unchanged,
        rejected=found.rejected,
        created_at=found.created_at,
    )


@router.post("/projects/{slug}/imports", max_body_size=LARGEST_IMPORT)
def add(request: Request, session: SessionDep, who: Uploader, form: Upload, slug: str) -> Response:
    """Store an uploaded file as a draft, to be checked first."""
    frame = frame_of(request, session, who, slug, tab="Prompts", title=_("Import prompts"), need=Right.reviews)
    try:
        made = create_draft(session, who, frame, form)
    except Invalid as error:
        session.rollback()
        split = text_of(form, "split", "train")
        return list_page(session, who, frame, problem=error.detail, split=split, status=422)
    return RedirectResponse(f"/admin/projects/{slug}/imports/{made.id}", status_code=303)


def create_draft(session: Session, who: SignedIn, frame: Frame, form: FormData) -> Import:
    """Store the files of the form as a draft. Raises `Invalid`."""
    file, images = form.get("file"), form.get("images")
    if not isinstance(file, UploadFile) or not file.filename:
        raise Invalid(_("Choose a file first."), field="file")
    return imports.create_import(
        session,
        who.actor,
        frame.project,
        filename=file.filename,
        source=file.file,
        images_source=images.file if isinstance(images, UploadFile) and images.filename else None,
        split=parse_split(form),
        draft=True,
    )


@router.post("/projects/{slug}/imports/sample")
def add_sample(session: SessionDep, who: Poster, slug: str) -> RedirectResponse:
    """Import the sample photographs."""
    project = managed_project(session, who.actor, slug, Right.reviews)
    packed = import_templates.sample_photographs(get_settings().starter_dir / SAMPLE)
    made = imports.create_import(session, who.actor, project, filename=f"{SAMPLE}.zip", source=io.BytesIO(packed))
    return RedirectResponse(f"/admin/projects/{slug}/imports/{made.id}", status_code=303)


@router.get("/projects/{slug}/imports/template.{kind}")
def template(session: SessionDep, who: Me, slug: str, kind: str) -> Response:
    """Download a template file."""
    managed_project(session, who.actor, slug, Right.reviews)
    if kind not in import_templates.TEMPLATES:
        raise NotFound(_("There is no such template."))
    found = import_templates.TEMPLATES[kind]
    headers = {"Content-Disposition": f'attachment; filename="prompts.{kind}"'}
    return Response(found.make(), media_type=found.media_type, headers=headers)


# One import


@router.get("/projects/{slug}/imports/{import_id}")
def show(request: Request, session: SessionDep, who: Me, slug: str, import_id: str) -> Response:
    """Show one import: its preview, its progress or its result."""
    frame, found = find(request, session, who, slug, import_id)
    view = import_view(session, frame, found)
    if wants_fragment(request):
        return live(request, ONE, "live", shell=frame.shell, view=view)
    return page(ONE, shell=frame.shell, view=view)


def find(request: Request, session: Session, who: SignedIn, slug: str, import_id: str) -> tuple[Frame, Import]:
    """An import of the project, with the frame of its page. Raises `NotFound`."""
    frame = frame_of(request, session, who, slug, tab="Prompts", title=_("Import"), need=Right.reviews)
    found = imports.get_import(session, who.actor, parse_id(import_id))
    if found.project_id != frame.project.id:
        raise NotFound(_("There is no such import in this project."))
    return frame, found


def import_view(session: Session, frame: Frame, found: Import, *, problem: str = "") -> ImportView:
    """An import as its page shows it."""
    problems = imports.list_problems(session, found, limit=SHOWN_PROBLEMS)
    offers_variants = frame.may_manage and variants.can_vary(session, frame.project)
    session.commit()  # no transaction is open while the first rows and their images are read
    draft = None
    if found.state is ImportState.draft:
        draft = draft_view(found, problem, offers_variants=offers_variants)
    return ImportView(
        slug=frame.project.slug,
        may_manage=frame.may_manage,
        id=str(found.id),
        filename=found.filename,
        state=found.state.value,
        tone=TONES.get(found.state, "accent"),
        created_at=found.created_at,
        draft=draft,
        has_images=found.images_key is not None,
        active=found.state in (ImportState.queued, ImportState.running),
        sentence=describe_state(found),
        total=found.total or 0,
        done=found.done,
        added=found.added,
        unchanged=found.unchanged,
        rejected=found.rejected,
        error=kept(found.error, found.error_phrase),
        problems=tuple(problem_row(one) for one in problems),
        more=max(0, found.rejected - len(problems)),
        added_to_val=imports.added_to_val(found),
        variants_added=imports.variants_added(found),
        image_changes=tuple(
            (IMAGE_CHANGE_WORDS[Change(name)], count) for name, count in imports.image_changes(found).items()
        ),
    )


def problem_row(problem: ImportProblem) -> ProblemRow:
    """A rejected line as the page shows it."""
    return ProblemRow(problem.line, problem.field or "", kept(problem.reason, problem.reason_phrase))


def describe_state(found: Import) -> str:
    """The state of an import in words."""
    if found.state is ImportState.queued:
        return _("Waiting for a worker.")
    if found.state is ImportState.running:
        return _("Reading the file.") if found.total is None else _("Importing.")
    if found.state is ImportState.succeeded:
        return _("Done. Rejected lines are listed below.") if found.rejected else _("Done. No lines were rejected.")
    return "" if found.state is ImportState.draft else _("The import failed. Prompts added before that remain.")


@router.post("/projects/{slug}/imports/{import_id}/plan")
def change_plan(request: Request, session: SessionDep, who: Poster, form: Form, slug: str, import_id: str) -> Response:
    """Set what the columns mean, then preview the file again or start the import."""
    frame, found = find(request, session, who, slug, import_id)
    here = f"/admin/projects/{slug}/imports/{found.id}"
    try:
        submit_plan(session, who, frame, found, form)
        if text_of(form, "act") == "start":
            imports.start_import(session, who.actor, found.id)
    except Invalid as error:
        return page_with_problem(session, frame, found, error)
    except Conflict:
        session.rollback()  # the import was started meanwhile: its page shows the progress
        return RedirectResponse(here, status_code=303)
    return RedirectResponse(here, status_code=303)


def page_with_problem(session: Session, frame: Frame, found: Import, error: Invalid) -> Response:
    """The page of a draft as it was, with what is wrong with the form."""
    session.rollback()
    return page(ONE, shell=frame.shell, view=import_view(session, frame, found, problem=error.detail), status=422)


def submit_plan(session: Session, who: SignedIn, frame: Frame, found: Import, form: FormData) -> None:
    """Set what the columns of a draft mean, as its form says. Raises `Invalid`, `Conflict`."""
    chosen = dict(zip(texts_of(form, "column"), texts_of(form, "target"), strict=False))
    question = text_of(form, "question")
    imports.change_plan(
        session,
        who.actor,
        found.id,
        columns=chosen,
        split=parse_split(form),
        question=question,
        propose_val=text_of(form, "propose_val") == "on",
        scale_down=text_of(form, "scale_down") == "on",
        variants=[change for change in CHANGES if change in texts_of(form, "variant")] if frame.may_manage else None,
        encoding=text_of(form, "encoding"),
    )


@router.post("/projects/{slug}/imports/{import_id}/images", max_body_size=LARGEST_IMPORT)
def give_images(
    request: Request, session: SessionDep, who: Uploader, form: Upload, slug: str, import_id: str
) -> Response:
    """Give a draft its images, a zip or the pictures themselves; what was chosen for the columns is kept too."""
    frame, found = find(request, session, who, slug, import_id)
    here = f"/admin/projects/{slug}/imports/{found.id}"
    files = [one for one in form.getlist("images") if isinstance(one, UploadFile) and one.filename]
    try:
        submit_plan(session, who, frame, found, form)
        imports.give_images(session, who.actor, found.id, [(one.filename or "", one.file) for one in files])
    except Invalid as error:
        return page_with_problem(session, frame, found, error)
    except Conflict:
        session.rollback()  # the import was started meanwhile: its page shows the progress
    return RedirectResponse(here, status_code=303)


@router.post("/projects/{slug}/imports/{import_id}/discard")
def discard(request: Request, session: SessionDep, who: Poster, slug: str, import_id: str) -> RedirectResponse:
    """Discard a draft."""
    _, found = find(request, session, who, slug, import_id)
    imports.discard_import(session, who.actor, found.id)
    return back_to(f"/admin/projects/{slug}/imports", "discarded")
