"""The prompts of a project, and one prompt with its candidate sets and verdicts."""

from __future__ import annotations

import json
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
from app.models import Prompt, PromptState, Role, Split
from app.services.kernel.actors import Actor, parse_id
from app.services.prompts import prompts
from app.services.prompts.filters import FeedbackFilter
from app.services.quality import gold
from app.services.read_models import overviews
from app.services.read_models.overviews import CandidateSetSummary, CandidateSummary, VerdictSummary
from app.services.rounds import versions
from app.web.access import Form, Me, Poster, managed_project, text_of
from app.web.admin.frame import Frame, back_to, frame_of
from app.web.admin.prompts import forms
from app.web.judging.views import Picture
from app.web.rendering import page
from app.web.words import KIND_TONES, KIND_WORDS, STATE_TONES, image_url

router = APIRouter()
router.include_router(forms.router)  # first: `/prompts/{prompt_id}` would match `/prompts/new` too
PAGE_SIZE = 50
VERDICT_FILTERS = (
    ("accepted", "with an accepted rationale"),
    ("open", "without one"),
    ("flagged", "flagged by somebody"),
    ("apart", "critics differ"),
    ("alike", "critics agree"),
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
    states: tuple[str, ...]
    filtered: bool
    rows: tuple[PromptRow, ...]
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
) -> Response:
    """List the prompts that match the filters."""
    frame = frame_of(request, session, who, slug, tab="Prompts", title="Prompts")
    filters = PromptFilters(q, split, state, said, version)
    view = prompts_view(session, who.actor, frame, filters, cursor)
    return page("admin/prompts/prompts.html", shell=frame.shell, view=view)


def prompts_view(session: Session, actor: Actor, frame: Frame, filters: PromptFilters, cursor: str) -> PromptsView:
    """A page of the prompts that match the filters."""
    number = filters.version
    found = prompts.list_prompts(
        session,
        actor,
        frame.project,
        limit=PAGE_SIZE,
        cursor=cursor or None,
        split=parse_member(Split, filters.split),
        state=parse_member(PromptState, filters.state),
        query=filters.q.strip() or None,
        said=parse_member(FeedbackFilter, filters.said),
        version=int(number) if number.isascii() and number.isdigit() and len(number) < 10 else None,
    )
    known = versions.list_versions(session, actor, frame.project)
    fields = asdict(filters)
    return PromptsView(
        slug=frame.project.slug,
        counts="What is judged: images, a question, usually an answer.",
        query=filters.q,
        split=filters.split,
        state=filters.state,
        splits=tuple(Split),
        states=tuple(PromptState),
        said=filters.said,
        version=filters.version,
        sayings=VERDICT_FILTERS,
        versions=tuple(sorted(one.number for one in known)),
        may_review=frame.may_review,
        filtered=any(fields.values()),
        rows=tuple(prompt_row(prompt) for prompt in found.items),
        next="?" + urlencode({**fields, "cursor": found.next}) if found.next else "",
    )


def prompt_row(prompt: Prompt) -> PromptRow:
    """A prompt in the list."""
    state = PromptState(prompt.state)
    return PromptRow(
        id=str(prompt.id),
        image=image_url(prompt.images[0].sha256 if prompt.images else None),
        question=prompt.question,
        answer=prompt.answer,
        split=str(prompt.split),
        state=str(state.value),
        tone=STATE_TONES.get(state, ""),
        accepted=prompt.has_accepted,
        external_id=prompt.external_id,
        created_at=prompt.created_at,
    )


@router.get("/projects/{slug}/prompts/{prompt_id}")
def show(request: Request, session: SessionDep, who: Me, slug: str, prompt_id: str) -> Response:
    """Show one prompt with its candidate sets and verdicts."""
    frame = frame_of(request, session, who, slug, tab="Prompts", title="Prompt")
    prompt = prompts.get_prompt(session, who.actor, parse_id(prompt_id))
    if prompt.project_id != frame.project.id:
        raise NotFound("There is no such prompt in this project.")
    view = prompt_view(session, who.actor, frame, prompt)
    return page("admin/prompts/prompt.html", shell=frame.shell, view=view)


def prompt_view(session: Session, actor: Actor, frame: Frame, prompt: Prompt) -> PromptView:
    """A prompt with its candidate sets and verdicts, as its page shows it."""
    state = PromptState(prompt.state)
    is_gold = gold.find_gold_id(session, prompt) is not None
    return PromptView(
        slug=frame.project.slug,
        id=str(prompt.id),
        question=prompt.question,
        answer=prompt.answer,
        split=str(prompt.split),
        state=str(state.value),
        tone=STATE_TONES.get(state, ""),
        accepted=prompt.has_accepted,
        external_id=prompt.external_id,
        created_at=prompt.created_at,
        images=tuple(Picture(image_url(one.sha256), one.image.width, one.image.height) for one in prompt.images),
        references=tuple(prompt.references),
        metadata=json.dumps(prompt.extra, ensure_ascii=False, indent=2) if prompt.extra else "",
        sets=tuple(set_view(one) for one in overviews.list_candidate_sets(session, actor, frame.project, prompt)),
        actions=allowed_changes(state) if frame.may_review and not is_gold else (),
        gold="" if not frame.may_review else "is" if is_gold else "may",
    )


def allowed_changes(state: PromptState) -> tuple[tuple[str, str, str], ...]:
    """The possible changes of a prompt in this state: new state, button text and button kind."""
    if state is PromptState.held:
        return (("ready", "Let it go on", "main"), ("retired", "Retire", "danger"))
    if state is PromptState.retired:
        return (("ready", "Bring it back", "main"),)
    return (("retired", "Retire", "danger"),)


def set_view(one: CandidateSetSummary) -> SetView:
    """A candidate set as the page shows it."""
    return SetView(
        source="an import" if one.version is None else f"version {one.version}",
        state=one.state,
        created_at=one.created_at,
        error=one.error,
        candidates=one.candidates,
        verdicts=tuple(set_verdict_row(line) for line in one.verdicts),
    )


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
    managed_project(session, who.actor, slug, Role.reviewer)
    prompts.update_prompt(session, who.actor, parse_id(prompt_id), {"state": text_of(form, "state")})
    return back_to(f"/admin/projects/{slug}/prompts/{prompt_id}", "prompt-saved")
