"""The practice prompts: their correct verdict is known and shown at once, before the critic's real work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.errors import Invalid
from app.http.dependencies import SessionDep
from app.models import Project
from app.services.kernel.actors import parse_id
from app.services.projects import key_bindings
from app.services.projects.policies import answer_fields_of
from app.services.projects.projects import settings_of
from app.services.quality import practice
from app.services.quality.practice import PracticeResult
from app.web.access import Form, Me, Poster, SignedIn, judged_project, text_of, texts_of
from app.web.judging.assess import Assessment, FieldPairs, assessment_of, chosen_values, told_fields
from app.web.judging.empty import explain_no_practice, nothing_page
from app.web.judging.views import Picture, ReadPart, pictures_of, question_in, read_in_order
from app.web.rendering import page, shell_for
from illume.fields.answers import show_answer
from illume.fields.definitions import AnswerFields
from illume.phrases import _

router = APIRouter()


@dataclass(frozen=True, slots=True)
class TriedCandidate:
    """A candidate of a practice prompt. `fits` is the correct answer, None until the critic has answered."""

    id: str
    text: str
    picked: bool
    fits: bool | None
    told: FieldPairs = ()

    @property
    def is_wrong(self) -> bool:
        """Whether the critic's answer differs from the correct one."""
        return self.fits is not None and self.fits != self.picked


@dataclass(frozen=True, slots=True)
class PracticeView:
    """A practice prompt, before or after the answer.

    With an `assessment` the critic first rates the picture, before there are any candidates; `problem` says what is
    wrong with the rating. `left` is the number of prompts still to come; `keys` are those of the judging page by their
    actions, and choose no explanation.
    """

    slug: str
    name: str
    id: str
    images: tuple[Picture, ...]
    reading: tuple[ReadPart, ...]
    question: str
    answer: str | None
    candidates: tuple[TriedCandidate, ...]
    is_told: bool
    right: bool
    explanation: str | None
    left: int
    keys: Mapping[str, str]
    language: str
    assessment: Assessment | None
    problem: str


@dataclass(frozen=True, slots=True)
class Practising:
    """What the page needs to know besides the prompt: the fields of answers, their language, and the keys."""

    fields: AnswerFields | None
    language: str
    keys: Mapping[str, str]


def load_practising(session: Session, who: SignedIn, project: Project) -> Practising:
    """What the page of a project needs to know for this critic."""
    settings = settings_of(session, project)
    return Practising(answer_fields_of(settings), settings.language, key_bindings.keys_in_force(session, who.actor))


def view_of(
    project: Project,
    item: dict[str, Any],
    practising: Practising,
    result: PracticeResult | None = None,
    *,
    picks: Sequence[str] = (),
    values: Mapping[str, str | None] | None = None,
    problem: str = "",
) -> PracticeView:
    """The view of a practice prompt, with the result once it is answered; `values` are those typed but not stored."""
    known = result.known if result else {}
    images = pictures_of(item["images"] or ())
    reading, question = question_in(read_in_order(item["parts"], images), item["question"])
    fields = practising.fields
    given = values or (result.fields if result else None) or item.get("fields")
    asks = fields is not None or item.get("policy") is not None
    return PracticeView(
        slug=project.slug,
        name=project.name,
        id=item["id"],
        images=images,
        reading=reading,
        question=question,
        answer=item["answer"],
        candidates=tuple(tried_candidate(one, fields, known, picks) for one in item["candidates"] or ()),
        is_told=result is not None,
        right=result is not None and not result.wrong and not result.wrong_fields,
        explanation=result.explanation if result else None,
        left=result.left if result else item["left"],
        keys=practising.keys,
        language=practising.language,
        assessment=assessment_of(item, fields, given, result.gold if result else None) if asks else None,
        problem=problem,
    )


def tried_candidate(
    one: Mapping[str, Any], fields: AnswerFields | None, known: Mapping[str, bool], picks: Sequence[str]
) -> TriedCandidate:
    """A candidate of a practice prompt as the page shows it."""
    text, values = show_answer(one["text"], fields)
    return TriedCandidate(one["id"], text, one["id"] in picks, known.get(one["id"]), told_fields(values, fields))


def show(request: Request, who: SignedIn, view: PracticeView, *, status: int = 200) -> Response:
    """Render the page."""
    shell = shell_for(request, who.actor, who.csrf_token, title=_("Practice"), section="annotate")
    return page("judging/practice.html", shell=shell, view=view, status=status)


@router.get("/annotate/{slug}/practice")
def practise(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """The next practice prompt, or that none is left."""
    project = judged_project(session, who.actor, slug)
    item = practice.next_practice(session, who.actor, project)
    if item is None:
        return nothing_page(request, who, _("Practice"), explain_no_practice(session, who.actor, project))
    return show(request, who, view_of(project, item, load_practising(session, who, project)))


@router.post("/annotate/{slug}/practice")
def try_one(request: Request, session: SessionDep, who: Poster, form: Form, slug: str) -> Response:
    """Store what the critic says of the picture, or which candidates they pick, and show what is right."""
    project = judged_project(session, who.actor, slug)
    item = practice.next_practice(session, who.actor, project)
    prompt_id = text_of(form, "prompt")
    again = RedirectResponse(f"/annotate/{slug}/practice", status_code=303)
    if item is None or item["id"] != prompt_id:  # sent twice, or answered in another tab
        return again
    practising = load_practising(session, who, project)
    values = chosen_values(form, practising.fields)
    if item["candidates"] is None:
        try:
            practice.rate_practice(session, who.actor, project, parse_id(prompt_id), values)
        except Invalid as error:
            view = view_of(project, item, practising, values=values, problem=error.detail)
            return show(request, who, view, status=422)
        return again
    if text_of(form, "rates"):  # the rating was sent twice
        return again
    picks = texts_of(form, "picks")
    result = practice.answer_practice(session, who.actor, project, parse_id(prompt_id), picks, values)
    return show(request, who, view_of(project, item, practising, result, picks=picks))
