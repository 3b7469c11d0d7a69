"""The forms to add a prompt and to change one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData, UploadFile

from app.errors import Conflict, DomainError, Invalid, NotFound, TooLarge
from app.http.dependencies import SessionDep
from app.http.forms import read_form, store_image
from app.models import Prompt, Split
from app.services.kernel.actors import parse_id
from app.services.kernel.rights import Right
from app.services.prompts import prompts
from app.services.prompts.prompts import parse_prompt
from app.web.access import Me, ReviewerAhead, SignedIn, check_form_token, text_of
from app.web.admin.frame import Frame, back_to, frame_of
from app.web.admin.prompts.gold import Gold
from app.web.forms import Field
from app.web.rendering import page
from illume.phrases import _

router = APIRouter()
TEMPLATE = "admin/prompts/prompt_form.html"
MAX_IMAGES = 16
FIELD_BYTES = 512 * 1024
"""The longest field: 100 reference rationales of 4,000 characters, one on each line."""
BLUR = Field("blur", _("Blurred until a critic asks to see it"), "check")
NAMES = ("blur", "question", "answer", "split", "external_id", "references", "priority", "metadata")


@dataclass(frozen=True, slots=True)
class PromptFormView:
    """The form as it was submitted."""

    slug: str
    title: str
    action: str
    back: str
    button: str
    upload: bool
    image_problem: str
    problem: str
    fields: tuple[Field, ...]


async def read_upload(request: Request, _: ReviewerAhead) -> AsyncIterator[FormData]:
    """The fields of a prompt's form, with its images. The files are closed after the request."""
    form = await read_form(request, files=MAX_IMAGES, fields=50, field_bytes=FIELD_BYTES)
    try:
        yield form
    finally:
        await form.close()


Upload = Annotated[FormData, Depends(read_upload)]


def uploading(request: Request, form: Upload, who: Me) -> SignedIn:
    """The person who uploads images. Raises `Forbidden` where the form's token is not their session's."""
    return check_form_token(request, form, who)


Uploader = Annotated[SignedIn, Depends(uploading, scope="function")]


def form_fields(typed: Mapping[str, str], error: DomainError | None, *, gold: Gold, is_new: bool) -> tuple[Field, ...]:
    """The form's fields with their submitted values and problems."""
    wrong = (error.field or "").partition(".")[0] if error is not None else ""

    def field(name: str, label: str, kind: str, text: str, rows: int = 2) -> Field:
        problem = error.detail if error is not None and wrong == name else ""
        options = tuple((split.value, split.value) for split in Split) if kind == "select" else ()
        return Field(name, label, kind, typed.get(name, ""), help=text, problem=problem, options=options, rows=rows)

    found = [
        field("question", _("Question"), "area", _("What is asked about the image.")),
        field("answer", _("Answer"), "text", _("The correct answer. If empty, the model's own is used.")),
        field("references", _("Reference explanations"), "area", _("One per line. Critics never see them."), 4),
        *gold.form_fields(typed, error),
        field(
            "split", _("Split"), "select", _("Critics judge train prompts; val and test prompts only score versions.")
        ),
        field("priority", _("Priority"), "number", _("Prompts with a higher priority are offered first.")),
        replace(BLUR, value=typed.get("blur") == "yes"),
        field("metadata", _("Metadata"), "area", _("A JSON object, kept with the prompt."), 3),
    ]
    if is_new:
        found.insert(-4, field("external_id", _("External ID"), "text", _("Your own identifier for it. Optional.")))
    return tuple(found)


def parse_values(typed: Mapping[str, str]) -> dict[str, Any]:
    """The submitted values as a prompt's. Raises `Invalid`."""
    values: dict[str, Any] = {
        "question": typed["question"],
        "answer": typed["answer"].strip() or None,
        "split": typed["split"],
        "references": [line.strip() for line in typed["references"].splitlines() if line.strip()],
    }
    try:
        values["priority"] = int(typed["priority"].strip() or "0")
    except ValueError as error:
        raise Invalid(_("Enter a whole number."), field="priority") from error
    try:
        values["metadata"] = json.loads(typed["metadata"].strip() or "{}")
    except ValueError as error:
        raise Invalid(_("This is not valid JSON: %(error)s.", error=error), field="metadata") from error
    if typed["blur"] == "yes" and isinstance(values["metadata"], dict):
        values["metadata"] = prompts.with_blur(values["metadata"], on=True)
    return values


def read_submitted(form: FormData, gold: Gold) -> dict[str, str]:
    """The submitted texts, by field."""
    return {name: text_of(form, name).replace("\r\n", "\n") for name in (*NAMES, *gold.names)}


# A new prompt


def new_page(frame: Frame, gold: Gold, typed: Mapping[str, str], error: DomainError | None = None) -> Response:
    """The form for a new prompt."""
    base = f"/admin/projects/{frame.project.slug}/prompts"
    at_image = error is not None and (error.field or "").startswith(("image", "file"))
    fields = form_fields(typed, error, gold=gold, is_new=True)
    placed = at_image or any(field.problem for field in fields)
    view = PromptFormView(
        slug=frame.project.slug,
        title=_("Add a prompt"),
        action=f"{base}/new",
        back=base,
        button=_("Add prompt"),
        upload=True,
        image_problem=error.detail if error is not None and at_image else "",
        problem="" if error is None or placed else error.detail,
        fields=fields,
    )
    return page(TEMPLATE, shell=frame.shell, view=view, status=200 if error is None else error.status)


@router.get("/projects/{slug}/prompts/new")
def show_new(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """Show the form for a new prompt."""
    frame = frame_of(request, session, who, slug, tab="Prompts", title=_("Add a prompt"), need=Right.reviews)
    gold = Gold.of(session, who.actor, frame.project)
    return new_page(frame, gold, {"split": Split.train.value, "priority": "0"})


@router.post("/projects/{slug}/prompts/new")
def add(request: Request, session: SessionDep, who: Uploader, form: Upload, slug: str) -> Response:
    """Add a prompt with its images. Where the form is invalid, it keeps what was typed."""
    frame = frame_of(request, session, who, slug, tab="Prompts", title=_("Add a prompt"), need=Right.reviews)
    gold = Gold.of(session, who.actor, frame.project)
    typed = read_submitted(form, gold)
    try:
        item = parse_values(typed) | gold.read(typed) | {"images": store_images(session, who, form)}
        if typed["external_id"].strip():
            item["external_id"] = typed["external_id"].strip()
        (added,) = prompts.add_prompts(session, who.actor, frame.project, [parse_prompt(item)])
        if added.prompt is None:
            raise added.error or Invalid(_("The prompt was rejected."))
    except (Invalid, Conflict, TooLarge) as error:
        session.rollback()
        return new_page(frame, gold, typed, error)
    return back_to(f"/admin/projects/{slug}/prompts/{added.prompt.id}", "prompt-saved")


def store_images(session: Session, who: SignedIn, form: FormData) -> list[str]:
    """Store the uploaded images. Returns their sha256s in order. Raises `Invalid`."""
    files = [one for one in form.getlist("images") if isinstance(one, UploadFile) and one.size]
    if not files:
        raise Invalid(_("Choose an image."), field="images")
    found = []
    for one in files:
        try:
            found.append(store_image(session, who.actor, one).sha256)
        except (Invalid, TooLarge) as error:
            detail = _("%(name)s: %(sentence)s", name=(one.filename or "")[:100], sentence=error.detail)
            raise Invalid(detail, field="images") from error
    return found


# An existing prompt


def find(session: Session, who: SignedIn, frame: Frame, prompt_id: str) -> Prompt:
    """The prompt. Raises `NotFound`."""
    prompt = prompts.get_prompt(session, who.actor, parse_id(prompt_id), Right.reviews)
    if prompt.project_id != frame.project.id:
        raise NotFound(_("There is no such prompt in this project."))
    return prompt


@dataclass(frozen=True, slots=True)
class Edited:
    """The prompt that is edited. One `in_parts` has no question that could be changed by itself."""

    id: int
    in_parts: bool


def edit_page(
    frame: Frame, edited: Edited, gold: Gold, typed: Mapping[str, str], error: DomainError | None = None
) -> Response:
    """The form for an existing prompt."""
    here = f"/admin/projects/{frame.project.slug}/prompts/{edited.id}"
    fields = form_fields(typed, error, gold=gold, is_new=False)
    if edited.in_parts:
        fields = tuple(field for field in fields if field.name != "question")
    view = PromptFormView(
        slug=frame.project.slug,
        title=_("Edit prompt"),
        action=f"{here}/edit",
        back=here,
        button=_("Save prompt"),
        upload=False,
        image_problem="",
        problem="" if error is None or any(field.problem for field in fields) else error.detail,
        fields=fields,
    )
    return page(TEMPLATE, shell=frame.shell, view=view, status=200 if error is None else error.status)


@router.get("/projects/{slug}/prompts/{prompt_id}/edit")
def show_edit(request: Request, session: SessionDep, who: Me, slug: str, prompt_id: str) -> Response:
    """Show the form for an existing prompt."""
    frame = frame_of(request, session, who, slug, tab="Prompts", title=_("Edit prompt"), need=Right.reviews)
    prompt = find(session, who, frame, prompt_id)
    gold = Gold.of(session, who.actor, frame.project, prompt)
    rest = prompts.with_blur(prompt.extra, on=False)
    typed = {
        "question": prompt.question,
        "answer": prompt.answer or "",
        "split": prompt.split.value,
        "references": "\n".join(prompt.references),
        "priority": str(prompt.priority),
        "blur": "yes" if prompts.is_blurred(prompt.extra) else "",
        "metadata": json.dumps(rest, ensure_ascii=False, indent=2) if rest else "",
        **gold.typed(prompt),
    }
    return edit_page(frame, Edited(prompt.id, prompt.parts is not None), gold, typed)


@router.post("/projects/{slug}/prompts/{prompt_id}/edit")
def change(request: Request, session: SessionDep, who: Uploader, form: Upload, slug: str, prompt_id: str) -> Response:
    """Change a prompt. Question, answer and split are fixed once it has candidates."""
    frame = frame_of(request, session, who, slug, tab="Prompts", title=_("Edit prompt"), need=Right.reviews)
    prompt = find(session, who, frame, prompt_id)
    gold = Gold.of(session, who.actor, frame.project, prompt)
    edited, typed = Edited(prompt.id, prompt.parts is not None), read_submitted(form, gold)
    try:
        values = parse_values(typed) | gold.read(typed, prompt.fields)
        if edited.in_parts:
            del values["question"]
        prompts.update_prompt(session, who.actor, edited.id, values)
    except (Invalid, Conflict) as error:
        session.rollback()
        return edit_page(frame, edited, gold, typed, error)
    return back_to(f"/admin/projects/{slug}/prompts/{edited.id}", "prompt-saved")
