"""The prompts of a project, and one prompt with its candidate sets and verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeVar
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.errors import NotFound
from app.http.dependencies import SessionDep
from app.models import CandidateSetState, Prompt, PromptState, Selection, Split
from app.services.kernel.actors import Actor, parse_id
from app.services.kernel.rights import Right
from app.services.prompts import listing, prompts
from app.services.prompts.filters import FeedbackFilter, PromptQuery
from app.services.prompts.many import PromptOrder, PromptSort
from app.services.quality import gold
from app.services.read_models import overviews
from app.services.read_models.overviews import CandidateSetSummary, CandidateSummary, VerdictSummary
from app.services.rounds import versions
from app.web.access import Form, Me, Poster, managed_project, text_of
from app.web.admin.frame import Frame, back_to, frame_of
from app.web.admin.prompts import forms
from app.web.admin.prompts.files import describe_files
from app.web.judging.views import Picture, ReadPart, read_in_order
from app.web.rendering import page
from app.web.words import KIND_TONES, KIND_WORDS, SET_WORDS, STATE_TONES, STATE_WORDS, image_url, prompt_words
from illume.phrases import _

router = APIRouter()
router.include_router(forms.router)  # first: `/prompts/{prompt_id}` would match `/prompts/new` too
PAGE_SIZES = (50, 200)
COLUMNS = (
    (PromptSort.question, _("Prompt")),
    (PromptSort.answer, _("Answer")),
    (PromptSort.data_split, _("Split")),
    (PromptSort.state, _("State")),
    (PromptSort.accepted, _("Accepted")),
    (PromptSort.priority, _("Priority")),
    (PromptSort.external_id, _("External ID")),
    (PromptSort.added, _("Added")),
)
VERDICT_FILTERS = (
    ("accepted", _("with an accepted explanation")),
    ("open", _("without one")),
    ("machine", _("Accepted by machine")),
    ("flagged", _("flagged")),
    ("apart", _("critics disagree")),
    ("alike", _("critics agree")),
)
Member = TypeVar("Member", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class PromptFilters:
    """The filters of the list, as texts from its address. Unknown values filter nothing."""

    q: str
    split: str
    state: str
    said: str
    version: str
    sort: str = ""
    view: str = ""
    per: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the list. `url` sorts by it, the other way round where the list is sorted by it already."""

    name: str
    url: str
    direction: str


@dataclass(frozen=True, slots=True)
class ManyOutcome:
    """What became of the prompts that were selected: a sentence, and why some were left as they are.

    While more are to be changed, `fields` are those of the form that asks for the next step, and `handled` of `total`
    prompts are done.
    """

    sentence: str
    problems: tuple[tuple[str, str], ...]
    fields: tuple[tuple[str, str], ...] = ()
    handled: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt in the list."""

    id: str
    image: str
    question: str
    answer: str | None
    split: str
    state: str
    tone: str
    accepted: bool
    priority: int
    external_id: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class PromptsView:
    """A page of prompts, with its filters."""

    slug: str
    counts: str
    query: str
    split: str
    state: str
    said: str
    version: str
    sayings: tuple[tuple[str, str], ...]
    versions: tuple[int, ...]
    may_review: bool
    splits: tuple[str, ...]
    states: tuple[tuple[str, str], ...]
    filtered: bool
    sort: str
    grid: bool
    per: int
    sizes: tuple[tuple[int, str], ...]
    looks: tuple[tuple[str, str, bool], ...]
    columns: tuple[Column, ...]
    here: str
    outcome: ManyOutcome | None
    rows: tuple[PromptRow, ...]
    paged: bool
    next: str


@dataclass(frozen=True, slots=True)
class SetVerdictRow:
    """A verdict on a candidate set."""

    kind: str
    tone: str
    critic: str
    reason: str
    rationale: str
    seconds: float | None
    at: datetime


@dataclass(frozen=True, slots=True)
class SetView:
    """A candidate set with its verdicts."""

    source: str
    state: str
    created_at: datetime
    error: str | None
    candidates: tuple[CandidateSummary, ...]
    verdicts: tuple[SetVerdictRow, ...]
    selection: str


@dataclass(frozen=True, slots=True)
class PromptView:
    """One prompt with its candidate sets and verdicts."""

    slug: str
    id: str
    question: str
    answer: str | None
    split: str
    state: str
    tone: str
    accepted: bool
    external_id: str | None
    created_at: datetime
    images: tuple[Picture, ...]
    reading: tuple[ReadPart, ...]
    files: tuple[str, ...]
    blurred: bool
    may_review: bool
    references: tuple[str, ...]
    metadata: str
    sets: tuple[SetView, ...]
    actions: tuple[tuple[str, str, str], ...]
    gold: str


def parse_member(kind: type[Member], text: str) -> Member | None:
    """The member of `kind` named `text`; None where there is none."""
    return kind(text) if text in set(kind) else None


@router.get("/projects/{slug}/prompts")
def index(
    request: Request,
    session: SessionDep,
    who: Me,
    slug: str,
    q: str = "",
    split: str = "",
    state: str = "",
    said: str = "",
    version: str = "",
    cursor: str = "",
    sort: str = "",
    view: str = "",
    per: str = "",
) -> Response:
    """List the prompts that match the filters."""
    frame = frame_of(request, session, who, slug, tab="Prompts", title=_("Prompts"))
    filters = PromptFilters(q, split, state, said, version, sort, view, per)
    shown = prompts_view(session, who.actor, frame, filters, cursor)
    return page("admin/prompts/prompts.html", shell=frame.shell, view=shown)


def parse_order(text: str) -> PromptOrder:
    """The order that an address asks for, such as `-priority`. Unknown ones are the usual order."""
    by = parse_member(PromptSort, text.removeprefix("-"))
    return PromptOrder(by, text.startswith("-")) if by else PromptOrder()


def parse_query(filters: PromptFilters) -> PromptQuery:
    """The prompts that the filters of the list ask for."""
    number = filters.version
    return PromptQuery(
        split=parse_member(Split, filters.split),
        state=parse_member(PromptState, filters.state),
        query=filters.q.strip() or None,
        said=parse_member(FeedbackFilter, filters.said),
        version=int(number) if number.isascii() and number.isdigit() and len(number) < 10 else None,
    )


def prompts_view(
    session: Session,
    actor: Actor,
    frame: Frame,
    filters: PromptFilters,
    cursor: str,
    outcome: ManyOutcome | None = None,
) -> PromptsView:
    """A page of the prompts that match the filters, in the order that was asked for."""
    order = parse_order(filters.sort)
    per = int(filters.per) if filters.per in {str(size) for size in PAGE_SIZES} else PAGE_SIZES[0]
    found = listing.list_prompts(
        session,
        actor,
        frame.project,
        parse_query(filters),
        limit=per,
        cursor=cursor or None,
        order=order,
    )
    known = versions.list_versions(session, actor, frame.project)
    grid = filters.view == "grid"

    def address(**changes: str) -> str:
        fields = {name: value for name, value in {**asdict(filters), **changes}.items() if value}
        return "?" + urlencode(fields)

    return PromptsView(
        slug=frame.project.slug,
        counts=_("What critics judge: images, a question and usually an answer."),
        query=filters.q,
        split=filters.split,
        state=filters.state,
        splits=tuple(Split),
        states=tuple((state.value, words) for state, words in STATE_WORDS.items()),
        said=filters.said,
        version=filters.version,
        sayings=VERDICT_FILTERS,
        versions=tuple(sorted(one.number for one in known)),
        may_review=frame.may_review,
        filtered=any((filters.q, filters.split, filters.state, filters.said, filters.version)),
        sort=filters.sort,
        grid=grid,
        per=per,
        sizes=tuple((size, address(per="" if size == PAGE_SIZES[0] else str(size))) for size in PAGE_SIZES),
        looks=((_("Table"), address(view=""), not grid), (_("Images"), address(view="grid"), grid)),
        columns=tuple(column_of(by, name, order, address) for by, name in COLUMNS),
        here=address(cursor=cursor),
        outcome=outcome,
        rows=tuple(prompt_row(prompt) for prompt in found.items),
        paged=bool(cursor),
        next=address(cursor=found.next) if found.next else "",
    )


def column_of(by: PromptSort, name: str, order: PromptOrder, address: Callable[..., str]) -> Column:
    """A column of the list with the link that sorts by it."""
    current = order.by is by
    turned = "" if current and order.descending else "-" if current else ""
    usual = by is PromptSort.added and not turned
    return Column(
        name,
        address(sort="" if usual else turned + by.value, cursor=""),
        ("descending" if order.descending else "ascending") if current else "",
    )


def prompt_row(prompt: Prompt) -> PromptRow:
    """A prompt in the list."""
    state = PromptState(prompt.state)
    return PromptRow(
        id=str(prompt.id),
        image=image_url(prompt.images[0].sha256 if prompt.images else None),
        question=prompt_words(prompt.question),
        answer=prompt.answer,
        split=str(prompt.split),
        state=STATE_WORDS[state],
        tone=STATE_TONES.get(state, ""),
        accepted=prompt.has_accepted,
        priority=prompt.priority,
        external_id=prompt.external_id,
        created_at=prompt.created_at,
    )


# One prompt


@router.get("/projects/{slug}/prompts/{prompt_id}")
def show(request: Request, session: SessionDep, who: Me, slug: str, prompt_id: str) -> Response:
    """Show one prompt with its candidate sets and verdicts."""
    frame = frame_of(request, session, who, slug, tab="Prompts", title=_("Prompt"))
    prompt = prompts.get_prompt(session, who.actor, parse_id(prompt_id))
    if prompt.project_id != frame.project.id:
        raise NotFound(_("There is no such prompt in this project."))
    view = prompt_view(session, who.actor, frame, prompt)
    return page("admin/prompts/prompt.html", shell=frame.shell, view=view)


def prompt_view(session: Session, actor: Actor, frame: Frame, prompt: Prompt) -> PromptView:
    """A prompt with its candidate sets and verdicts, as its page shows it."""
    state = PromptState(prompt.state)
    is_gold = gold.find_gold_id(session, prompt) is not None
    images = tuple(Picture(image_url(one.sha256), one.image.width, one.image.height) for one in prompt.images)
    return PromptView(
        slug=frame.project.slug,
        id=str(prompt.id),
        question=prompt_words(prompt.question),
        answer=prompt.answer,
        split=str(prompt.split),
        state=STATE_WORDS[state],
        tone=STATE_TONES.get(state, ""),
        accepted=prompt.has_accepted,
        external_id=prompt.external_id,
        created_at=prompt.created_at,
        images=images,
        reading=read_in_order(prompts.prompt_parts(prompt), images),
        files=describe_files(session, actor, prompt),
        blurred=prompts.is_blurred(prompt.extra),
        may_review=frame.may_review,
        references=tuple(prompt.references),
        metadata=json.dumps(prompt.extra, ensure_ascii=False, indent=2) if prompt.extra else "",
        sets=tuple(set_view(one) for one in overviews.list_candidate_sets(session, actor, frame.project, prompt)),
        actions=allowed_changes(state) if frame.may_review and not is_gold else (),
        gold="" if not frame.may_review else "is" if is_gold else "may",
    )


def allowed_changes(state: PromptState) -> tuple[tuple[str, str, str], ...]:
    """The possible changes of a prompt in this state: new state, button text and button kind."""
    if state is PromptState.held:
        return (("ready", _("Take off hold"), "main"), ("retired", _("Archive"), "danger"))
    if state is PromptState.retired:
        return (("ready", _("Restore"), "main"),)
    return (("retired", _("Archive"), "danger"),)


def set_view(one: CandidateSetSummary) -> SetView:
    """A candidate set as the page shows it."""
    return SetView(
        source=source_words(one),
        state=SET_WORDS[CandidateSetState(one.state)],
        created_at=one.created_at,
        error=one.error,
        candidates=one.candidates,
        verdicts=tuple(set_verdict_row(line) for line in one.verdicts),
        selection=selection_words(one),
    )


def source_words(one: CandidateSetSummary) -> str:
    """What wrote a candidate set."""
    if one.version is None:
        return _("from an import")
    if one.served_model is None:
        return _("by version %(version)s", version=one.version)
    return _(
        "by version %(version)s, for which a model server ran %(model)s", version=one.version, model=one.served_model
    )


def selection_words(one: CandidateSetSummary) -> str:
    """How it was decided which explanations are shown, where a machine critic could choose."""
    if one.selection is None:
        return ""
    if one.selection is Selection.unselected:
        return _(
            "Left as written, for comparison with what machine critic v%(number)s chooses.", number=one.selected_by
        )
    return _("Chosen by machine critic v%(number)s.", number=one.selected_by)


def set_verdict_row(line: VerdictSummary) -> SetVerdictRow:
    """A verdict as the page shows it."""
    return SetVerdictRow(
        kind=KIND_WORDS[line.kind],
        tone=KIND_TONES[line.kind],
        critic=line.critic,
        reason=line.reason or "",
        rationale=line.rationale or "",
        seconds=line.seconds,
        at=line.at,
    )


@router.post("/projects/{slug}/prompts/{prompt_id}/state")
def change_state(session: SessionDep, who: Poster, form: Form, slug: str, prompt_id: str) -> RedirectResponse:
    """Retire a prompt, or bring it back."""
    managed_project(session, who.actor, slug, Right.reviews)
    prompts.update_prompt(session, who.actor, parse_id(prompt_id), {"state": text_of(form, "state")})
    return back_to(f"/admin/projects/{slug}/prompts/{prompt_id}", "prompt-saved")


@router.post("/projects/{slug}/prompts/{prompt_id}/blur")
def change_blur(session: SessionDep, who: Poster, form: Form, slug: str, prompt_id: str) -> RedirectResponse:
    """Blur a prompt's images until a critic asks to see them, or show them at once."""
    managed_project(session, who.actor, slug, Right.reviews)
    prompts.update_prompt(session, who.actor, parse_id(prompt_id), {"blur": text_of(form, "blur") == "yes"})
    return back_to(f"/admin/projects/{slug}/prompts/{prompt_id}", "prompt-saved")
