"""Photos that were dropped on the page of imports: they become prompts once their questions are filled in."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData, UploadFile

from app.errors import DomainError, Invalid, TooLarge
from app.http.dependencies import SessionDep
from app.http.forms import read_form, store_image
from app.models import Project, Split
from app.services.kernel.actors import Actor
from app.services.kernel.rights import Right
from app.services.prompts import prompts
from app.services.prompts.decoding import MAX_BYTES
from app.services.prompts.prompts import PromptIn, parse_prompt
from app.services.prompts.val_split import place_items
from app.web.access import Form, Me, Poster, ReviewerAhead, SignedIn, check_form_token, text_of, texts_of
from app.web.admin.frame import Frame, back_to, frame_of
from app.web.rendering import page
from app.web.words import image_url
from illume.phrases import _

router = APIRouter()
TEMPLATE = "admin/imports/photos.html"
MOST_PHOTOS = 50
SHA256 = re.compile(r"[0-9a-f]{64}")
FIELDS = ("sha256", "name", "question", "answer", "candidates")


@dataclass(frozen=True, slots=True)
class PhotoRow:
    """A photo that becomes a prompt. `candidates` has one rationale a line."""

    sha256: str
    name: str
    question: str = ""
    answer: str = ""
    candidates: str = ""
    problem: str = ""

    @property
    def url(self) -> str:
        """The address of the photo."""
        return image_url(self.sha256)


@dataclass(frozen=True, slots=True)
class PhotosView:
    """Photos to fill in, and those that could not be read."""

    slug: str
    rows: tuple[PhotoRow, ...]
    unreadable: tuple[tuple[str, str], ...]
    added: int
    problem: str
    question: str
    split: str
    splits: tuple[str, ...]
    propose_val: bool
    to_val: int


async def read_photos(request: Request, _: ReviewerAhead) -> AsyncIterator[FormData]:
    """The fields of a form with photos. They are closed after the request."""
    form = await read_form(request, files=MOST_PHOTOS + 1, fields=10 + 2 * MOST_PHOTOS)
    try:
        yield form
    finally:
        await form.close()


Photos = Annotated[FormData, Depends(read_photos, scope="function")]


def uploading(request: Request, form: Photos, who: Me) -> SignedIn:
    """The person who uploads photos. Raises `Forbidden` where the form's token is not their session's."""
    return check_form_token(request, form, who)


Uploader = Annotated[SignedIn, Depends(uploading, scope="function")]


def photos_page(frame: Frame, view: PhotosView) -> Response:
    """The form with the photos."""
    return page(TEMPLATE, shell=frame.shell, view=view, status=422 if view.problem else 200)


def make_view(session: Session, frame: Frame, rows: Sequence[PhotoRow], **more: Any) -> PhotosView:
    """The view of some photos."""
    usual = {"unreadable": (), "added": 0, "problem": "", "question": "", "split": Split.train.value}
    to_val = count_proposed(session, frame.project, rows)
    known = {"propose_val": True, **usual, **more}
    return PhotosView(frame.project.slug, tuple(rows), splits=tuple(Split), to_val=to_val, **known)


def count_proposed(session: Session, project: Project, rows: Sequence[PhotoRow]) -> int:
    """How many of these photos go into val where that is asked for."""
    known = [row.sha256 for row in rows if SHA256.fullmatch(row.sha256)]
    items = [parse_prompt({"images": [sha256], "question": "?"}) for sha256 in known]
    placed = place_items(session, project, items)
    return sum(isinstance(item, PromptIn) and item.split is Split.val for item in placed)


@router.post("/projects/{slug}/imports/photos", max_body_size=MOST_PHOTOS * MAX_BYTES)
def upload(request: Request, session: SessionDep, who: Uploader, form: Photos, slug: str) -> Response:
    """Store photos and show a form with a row for each. Those that cannot be read are listed with the reason.

    Photos that were stored before are named by `sha256` and `name`: the page sends large ones one at a time.
    """
    frame = frame_of(request, session, who, slug, tab="Prompts", title=_("Photos"), need=Right.reviews)
    files = [one for one in form.getlist("photos") if isinstance(one, UploadFile) and one.size]
    stored_before = list(zip(texts_of(form, "sha256"), texts_of(form, "name"), strict=False))
    if not files or len(files) + len(stored_before) > MOST_PHOTOS:
        problem = _("Choose from 1 to %(most_photos)s photos. For more, import a zip.", most_photos=MOST_PHOTOS)
        return photos_page(frame, make_view(session, frame, (), problem=problem))
    rows = {sha256: PhotoRow(sha256, name[-200:]) for sha256, name in stored_before if SHA256.fullmatch(sha256)}
    unreadable = []
    for one in files:
        name = (one.filename or "a photo")[-200:]
        try:
            stored = store_image(session, who.actor, one)
            rows.setdefault(stored.sha256, PhotoRow(stored.sha256, name))
        except (Invalid, TooLarge) as error:
            unreadable.append((name, error.detail))
    none_read = "" if rows else _("None of the files could be read as an image.")
    view = make_view(session, frame, tuple(rows.values()), unreadable=tuple(unreadable), problem=none_read)
    return photos_page(frame, view)


@router.post("/projects/{slug}/imports/photos/prompts")
def add(request: Request, session: SessionDep, who: Poster, form: Form, slug: str) -> Response:
    """Add the prompts that were filled in. Those without a question, or with a problem, stay in the form."""
    frame = frame_of(request, session, who, slug, tab="Prompts", title=_("Photos"), need=Right.reviews)
    columns = [texts_of(form, name) for name in FIELDS]
    rows = [PhotoRow(*(text.replace("\r\n", "\n") for text in values)) for values in zip(*columns, strict=False)]
    common, split = text_of(form, "common").strip(), text_of(form, "split", Split.train.value)
    propose_val = text_of(form, "propose_val") == "on"
    by_image = propose_val and split == Split.train.value
    left = add_rows(session, who.actor, frame.project, rows[:MOST_PHOTOS], common, None if by_image else split)
    added = len(rows) - len(left)
    if not left:
        return back_to(f"/admin/projects/{slug}/prompts", "photos-added")
    problem = "" if added else _("Nothing was added. See below.")
    asked: dict[str, Any] = {"question": common, "split": split, "propose_val": propose_val}
    return photos_page(frame, make_view(session, frame, left, added=added, problem=problem, **asked))


def add_rows(
    session: Session, actor: Actor, project: Project, rows: Sequence[PhotoRow], common: str, split: str | None
) -> list[PhotoRow]:
    """Add a prompt for each row with a question, or with the `common` one. Returns the others with their problems.

    Without a `split`, the image decides between train and val.
    """
    items: list[PromptIn | DomainError] = []
    for row in rows:
        item: dict[str, Any] = {
            "images": [row.sha256],
            "question": row.question.strip() or common,
            "answer": row.answer.strip() or None,
            **({} if split is None else {"split": split}),
            "metadata": {"file": row.name},
        }
        if lines := [line.strip() for line in row.candidates.splitlines() if line.strip()]:
            item["candidates"] = lines
        try:
            items.append(parse_prompt(item) if item["question"] else Invalid(_("Enter a question.")))
        except DomainError as error:
            items.append(error)
    if split is None:
        items = place_items(session, project, items)
    results = prompts.add_prompts(session, actor, project, items)
    return [
        replace(row, problem=result.error.detail)
        for row, result in zip(rows, results, strict=True)
        if result.error is not None
    ]
