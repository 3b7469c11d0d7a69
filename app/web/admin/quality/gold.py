"""Gold prompts: the list with the critics' accuracy, turning a prompt into one, and removing one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from app.errors import Conflict, DomainError, Invalid, NotFound
from app.http.dependencies import SessionDep
from app.models import Project, Prompt
from app.services.kernel.actors import parse_id
from app.services.kernel.rights import Right
from app.services.projects.projects import settings_of
from app.services.prompts import prompts
from app.services.prompts.prompts import prompt_parts
from app.services.quality import gold, standings
from app.services.quality.gold import GoldIn
from app.services.quality.standings import StandingSummary
from app.web.access import Form, Me, Poster, SignedIn, managed_project, text_of, texts_of
from app.web.admin.frame import Frame, back_to, frame_of
from app.web.judging.views import Picture, ReadPart, read_in_order
from app.web.rendering import page, percent
from app.web.words import image_url, prompt_words
from illume.phrases import _, ngettext, pgettext
from illume.validation import describe_problem, name_problem

router = APIRouter()
MIN_ROWS = 6  # candidates in the form, at least

FITS: dict[str, bool | None] = {"yes": True, "no": False, "either": None}
FITS_WORDS = {"yes": _("fits"), "no": _("does not fit"), "either": pgettext("fits", "either")}
CHOICES = (("", _("Choose")), *FITS_WORDS.items())


@dataclass(frozen=True, slots=True)
class GoldCandidateRow:
    """A candidate of a gold prompt, and whether picking it is right."""

    text: str
    word: str
    tone: str


@dataclass(frozen=True, slots=True)
class GoldCard:
    """A gold prompt. `is_doubtful`: most critics got it wrong, so the gold answer itself may be wrong."""

    id: str
    prompt_id: str
    question: str
    answer: str | None
    practice: bool
    explanation: str
    known: tuple[GoldCandidateRow, ...]
    answered: int
    accuracy: float | None
    is_doubtful: bool


@dataclass(frozen=True, slots=True)
class GoldView:
    """The gold prompts of a project, and the accuracy of its critics."""

    slug: str
    rules: tuple[str, ...]
    may_manage: bool
    cards: tuple[GoldCard, ...]
    standings: tuple[StandingSummary, ...]


@dataclass(frozen=True, slots=True)
class RowField:
    """One candidate in the form."""

    number: int
    text: str
    fits: str


@dataclass(frozen=True, slots=True)
class GoldFormView:
    """The form that turns a prompt into a gold prompt."""

    slug: str
    prompt_id: str
    question: str
    answer: str | None
    images: tuple[Picture, ...]
    reading: tuple[ReadPart, ...]
    rows: tuple[RowField, ...]
    choices: tuple[tuple[str, str], ...]
    explanation: str
    practice: bool
    problem: str


@dataclass(frozen=True, slots=True)
class SubmittedGold:
    """The submitted form: for each candidate its text and `yes`, `no`, `either` or an empty string."""

    rows: tuple[tuple[str, str], ...]
    explanation: str = ""
    practice: bool = False


@router.get("/projects/{slug}/gold")
def show(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """List the gold prompts in use."""
    frame = frame_of(request, session, who, slug, tab="Critics", title=_("Check questions"), need=Right.reviews)
    view = GoldView(
        slug=slug,
        rules=describe_rules(session, frame.project),
        may_manage=frame.may_manage,
        cards=tuple(gold_card(one) for one in gold.list_gold(session, who.actor, frame.project)),
        standings=tuple(one for one in standings.list_standings(session, who.actor, frame.project) if one.answered),
    )
    return page("admin/quality/gold.html", shell=frame.shell, view=view)


def describe_rules(session: Session, project: Project) -> tuple[str, ...]:
    """Sentences that say how the project uses gold prompts."""
    settings = settings_of(session, project)
    if settings.gold_share:
        mixed = _(
            "%(share)s of the prompts that critics get are unannounced check questions.",
            share=percent(settings.gold_share),
        )
    else:
        mixed = _("None are mixed in, because the share of check questions is 0.")
    if settings.gold_accuracy:
        asked = ngettext(
            "Critics below %(accuracy)s after %(num)s answers are paused.",
            "Critics below %(accuracy)s after %(num)s answers are paused.",
            settings.gold_minimum,
            accuracy=percent(settings.gold_accuracy),
        )
    else:
        asked = _("Nobody is paused for low accuracy.")
    count = settings.practice_prompts
    practice = (
        ngettext("New critics start with %(num)s for practice.", "New critics start with %(num)s for practice.", count)
        if count
        else _("New critics start without practice.")
    )
    return (mixed, asked, practice)


def gold_card(item: dict[str, Any]) -> GoldCard:
    """A gold prompt as the page shows it."""
    words = {True: (FITS_WORDS["yes"], "good"), False: (FITS_WORDS["no"], "bad"), None: (FITS_WORDS["either"], "")}
    accuracy = item["accuracy"]
    return GoldCard(
        id=item["id"],
        prompt_id=item["prompt"],
        question=prompt_words(item["question"]),
        answer=item["answer"],
        practice=item["practice"],
        explanation=item["explanation"] or "",
        known=tuple(GoldCandidateRow(one["text"], *words[one["fits"]]) for one in item["candidates"]),
        answered=item["answered"],
        accuracy=accuracy,
        is_doubtful=item["answered"] >= 3 and accuracy < 0.5,
    )


# Turning a prompt into a gold prompt


@router.get("/projects/{slug}/prompts/{prompt_id}/gold")
def show_form(request: Request, session: SessionDep, who: Me, slug: str, prompt_id: str) -> Response:
    """Show the form, filled with the prompt's candidates and references."""
    frame = frame_of(request, session, who, slug, tab="Prompts", title=_("Check question"), need=Right.reviews)
    prompt = find(session, who, frame, prompt_id)
    known = [(text, "yes") for text in prompt.references]
    texts = dict.fromkeys(gold.list_candidate_texts(session, prompt))
    rows = [*((text, "") for text in texts if text not in prompt.references), *known]
    return form_page(frame, prompt, SubmittedGold(tuple(rows)))


def find(session: Session, who: SignedIn, frame: Frame, prompt_id: str) -> Prompt:
    """The prompt. Raises `NotFound`."""
    prompt = prompts.get_prompt(session, who.actor, parse_id(prompt_id), Right.reviews)
    if prompt.project_id != frame.project.id:
        raise NotFound(_("There is no such prompt in this project."))
    return prompt


def form_page(frame: Frame, prompt: Prompt, typed: SubmittedGold, error: DomainError | None = None) -> Response:
    """The form as it was submitted, with empty rows for more candidates."""
    filled = [RowField(number, text, fits) for number, (text, fits) in enumerate(typed.rows, start=1)]
    spare = range(len(filled) + 1, max(MIN_ROWS, len(filled) + 2) + 1)
    images = tuple(Picture(image_url(one.sha256), one.image.width, one.image.height) for one in prompt.images)
    view = GoldFormView(
        slug=frame.project.slug,
        prompt_id=str(prompt.id),
        question=prompt_words(prompt.question),
        answer=prompt.answer,
        images=images,
        reading=read_in_order(prompt_parts(prompt), images),
        rows=(*filled, *(RowField(number, "", "") for number in spare)),
        choices=CHOICES,
        explanation=typed.explanation,
        practice=typed.practice,
        problem="" if error is None else error.detail,
    )
    return page(
        "admin/quality/gold_form.html", shell=frame.shell, view=view, status=200 if error is None else error.status
    )


@router.post("/projects/{slug}/prompts/{prompt_id}/gold")
def create(request: Request, session: SessionDep, who: Poster, form: Form, slug: str, prompt_id: str) -> Response:
    """Turn the prompt into a gold prompt. Where the form is invalid, it keeps what was typed."""
    frame = frame_of(request, session, who, slug, tab="Prompts", title=_("Check question"), need=Right.reviews)
    prompt = find(session, who, frame, prompt_id)
    typed = read_submitted(form)
    try:
        gold.add_gold(session, who.actor, frame.project, parse_gold(prompt, typed))
    except (Invalid, Conflict) as error:
        session.rollback()
        return form_page(frame, find(session, who, frame, prompt_id), typed, error)
    return back_to(f"/admin/projects/{slug}/gold", "gold-made")


def read_submitted(form: FormData) -> SubmittedGold:
    """The submitted form, without rows that have no text."""
    pairs = zip(texts_of(form, "text"), texts_of(form, "fits"), strict=False)
    rows = tuple((text.strip(), fits) for text, fits in pairs if text.strip())
    return SubmittedGold(rows, text_of(form, "explanation"), form.get("practice") == "yes")


def parse_gold(prompt: Prompt, typed: SubmittedGold) -> GoldIn:
    """The submitted form as the service expects it, without undecided rows. Raises `Invalid`."""
    chosen: Sequence[tuple[str, str]] = [(text, fits) for text, fits in typed.rows if fits in FITS]
    if not chosen:
        raise Invalid(_("Say for at least one explanation whether it fits."), field="fits")
    try:
        return GoldIn.model_validate(
            {
                "prompt": str(prompt.id),
                "candidates": [{"text": text, "fits": FITS[fits]} for text, fits in chosen],
                "explanation": typed.explanation.strip() or None,
                "practice": typed.practice,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        raise Invalid(name_problem(field, describe_problem(first)), field=field) from error


@router.post("/projects/{slug}/gold/{gold_id}/remove")
def remove(session: SessionDep, who: Poster, slug: str, gold_id: str) -> RedirectResponse:
    """Remove a gold prompt from use."""
    project = managed_project(session, who.actor, slug, Right.reviews)
    gold.remove_gold(session, who.actor, parse_id(gold_id), project)
    return back_to(f"/admin/projects/{slug}/gold", "gold-removed")
