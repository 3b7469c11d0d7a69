"""The review queue: disagreements, flags and late verdicts; and paused critics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from app.errors import Invalid
from app.http.dependencies import SessionDep
from app.models import ReviewKind, ReviewState, VerdictKind
from app.services.judging import decide
from app.services.kernel.actors import Actor, parse_id
from app.services.kernel.rights import Right
from app.services.kernel.verdict_schema import candidate_id, parse_verdict
from app.services.projects.policies import answer_fields_of
from app.services.projects.projects import settings_of
from app.services.quality import reviews, standings
from app.services.quality.standings import StandingSummary
from app.web.access import Form, Me, Poster, managed_project, text_of, texts_of
from app.web.admin.frame import back_to, frame_of
from app.web.admin.next_steps import NextStep, judging_step
from app.web.judging.assess import Assessment, FieldPairs, assessment_of, chosen_values, told_fields
from app.web.judging.views import Picture, ReadPart, pictures_of, read_in_order
from app.web.rendering import page
from app.web.words import KIND_TONES, KIND_WORDS, label_words, prompt_words
from illume.fields.answers import show_answer
from illume.fields.definitions import AnswerFields
from illume.phrases import _, pgettext

router = APIRouter()
PAGE_SIZE = 10
KIND_NAMES = {
    ReviewKind.disagreement: pgettext("review", "Disagreement"),
    ReviewKind.flag: pgettext("review", "Flag"),
    ReviewKind.late: pgettext("review", "Late"),
    ReviewKind.asked: pgettext("review", "Requested"),
}
KIND_HELP = {
    ReviewKind.disagreement: _("Critics judged this differently. Your decision replaces their verdicts."),
    ReviewKind.flag: _("The prompt is on hold until someone has looked at it."),
    ReviewKind.late: _("It arrived after the prompt had gone to another critic, so it does not count yet."),
    ReviewKind.asked: _("Someone sent this prompt for review. Your decision replaces the critics' verdicts."),
}


@dataclass(frozen=True, slots=True)
class ReviewVerdict:
    """A verdict on the candidate set."""

    id: str
    critic: str
    kind: str
    tone: str
    aside: bool
    decided: bool
    reason: str
    rationale: str
    comment: str
    note: str
    returned_at: datetime | None
    fields: FieldPairs


@dataclass(frozen=True, slots=True)
class ReviewCandidate:
    """A candidate, and the critics who picked it."""

    id: str
    text: str
    fields: FieldPairs
    critics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReviewCard:
    """One review."""

    id: str
    kind: str
    name: str
    help: str
    prompt_id: str
    question: str
    answer: str | None
    images: tuple[Picture, ...]
    reading: tuple[ReadPart, ...]
    choices: tuple[ReviewCandidate, ...]
    said: tuple[ReviewVerdict, ...]
    created_at: datetime
    may_accept: bool
    assessment: Assessment | None


@dataclass(frozen=True, slots=True)
class ReviewsView:
    """The queue. `kinds` has the value, name and count of each filter."""

    slug: str
    kind: str
    kinds: tuple[tuple[str, str, int], ...]
    cards: tuple[ReviewCard, ...]
    next: str
    paused: tuple[StandingSummary, ...]
    may_manage: bool
    step: NextStep | None


@router.get("/projects/{slug}/review")
def index(request: Request, session: SessionDep, who: Me, slug: str, kind: str = "", cursor: str = "") -> Response:
    """List open reviews, the oldest first."""
    frame = frame_of(request, session, who, slug, tab="Review", title=_("Review"), need=Right.reviews)
    wanted = next((one for one in ReviewKind if one.value == kind), None)
    state = ReviewState.sent_back if kind == ReviewState.sent_back else ReviewState.open
    kind = kind if wanted or state is ReviewState.sent_back else ""
    found = reviews.list_reviews(
        session, who.actor, frame.project, state=state, kind=wanted, limit=PAGE_SIZE, cursor=cursor or None
    )
    fields = answer_fields_of(settings_of(session, frame.project))
    sets = [int(item["candidate_set"]) for item in found.items]
    standing = {} if fields is None else decide.fields_in_force(session, sets)
    counts = reviews.count_open_reviews(session, who.actor, frame.project)
    view = ReviewsView(
        slug=slug,
        kind=kind,
        kinds=(
            ("", pgettext("reviews", "All"), sum(counts[one.value] for one in ReviewKind)),
            *((one.value, KIND_NAMES[one], counts[one.value]) for one in ReviewKind),
            (ReviewState.sent_back.value, pgettext("reviews", "Sent back"), counts[ReviewState.sent_back.value]),
        ),
        cards=tuple(
            review_card(item, fields, standing.get(int(item["candidate_set"]), {}), may_manage=frame.may_manage)
            for item in found.items
        ),
        next=f"?kind={kind}&cursor={found.next}" if found.next else "",
        paused=tuple(standings.list_standings(session, who.actor, frame.project, paused=True)),
        may_manage=frame.may_manage,
        step=judging_step(frame),
    )
    return page("admin/quality/review.html", shell=frame.shell, view=view)


def review_card(
    item: Mapping[str, Any],
    fields: AnswerFields | None,
    values: Mapping[str, str | None],
    *,
    may_manage: bool,
) -> ReviewCard:
    """A review as the page shows it; `values` are those of the answer's fields that stand now."""
    kind = ReviewKind(item["kind"])
    images = pictures_of(item["prompt"]["images"] or ())
    return ReviewCard(
        id=item["id"],
        kind=kind.value,
        name=KIND_NAMES[kind],
        help=KIND_HELP[kind],
        prompt_id=item["prompt"]["id"],
        question=prompt_words(item["prompt"]["question"]),
        answer=item["prompt"]["answer"],
        images=images,
        reading=read_in_order(item["prompt"]["parts"], images),
        choices=tuple(
            ReviewCandidate(
                one["id"],
                *_shown(one["text"], fields),
                tuple(said["critic"] for said in item["verdicts"] if one["id"] in said["picks"]),
            )
            for one in item["candidates"] or []
        ),
        said=tuple(review_verdict(one, fields) for one in item["verdicts"]),
        created_at=datetime.fromisoformat(item["created_at"]),
        may_accept=may_manage and kind is ReviewKind.late,
        assessment=assessment_of(item, fields, values),
    )


def _shown(text: str, fields: AnswerFields | None) -> tuple[str, FieldPairs]:
    shown, values = show_answer(text, fields)
    return shown, told_fields(values, fields)


def review_verdict(said: Mapping[str, Any], fields: AnswerFields | None) -> ReviewVerdict:
    """A verdict as the page shows it."""
    kind = VerdictKind(said["kind"])
    return ReviewVerdict(
        id=said["id"],
        critic=said["critic"],
        kind=KIND_WORDS[kind],
        tone=KIND_TONES[kind],
        aside=said["state"] == "kept_aside",
        decided=said["state"] == "decided",
        reason=label_words(said["reason"] or ""),
        rationale=said["rationale"] or "",
        comment=said["comment"] or "",
        note=said["note"] or "",
        returned_at=datetime.fromisoformat(said["returned_at"]) if said["returned_at"] else None,
        fields=told_fields(said.get("fields"), fields),
    )


def _decide(session: Session, actor: Actor, review_id: int, form: FormData, fields: AnswerFields | None) -> str:
    picks, rationale = texts_of(form, "picks"), text_of(form, "rationale").strip()
    said: dict[str, Any] = {"kind": "picked", "picks": picks, "rationale": rationale or None}
    if not picks and not rationale:
        said = {"kind": "none_fit"}
    values = chosen_values(form, fields)
    decide.decide(session, actor, review_id, parse_verdict({**said, "fields": values or None}))
    return "review-decided"


def _dismiss(session: Session, actor: Actor, review_id: int, form: FormData, _fields: AnswerFields | None) -> str:
    decide.dismiss(session, actor, review_id, text_of(form, "note"))
    return "review-dismissed"


def _retire(session: Session, actor: Actor, review_id: int, form: FormData, _fields: AnswerFields | None) -> str:
    decide.retire(session, actor, review_id, text_of(form, "note"))
    return "review-retired"


def _accept(session: Session, actor: Actor, review_id: int, _form: FormData, _fields: AnswerFields | None) -> str:
    decide.accept(session, actor, review_id)
    return "review-accepted"


def _send_back(session: Session, actor: Actor, review_id: int, form: FormData, _fields: AnswerFields | None) -> str:
    verdict = candidate_id(text_of(form, "verdict"), "verdict")
    decide.send_back(session, actor, review_id, verdict, text_of(form, "note"))
    return "review-sent-back"


ACTIONS: Mapping[str, Callable[[Session, Actor, int, FormData, AnswerFields | None], str]] = {
    "decide": _decide,
    "dismiss": _dismiss,
    "retire": _retire,
    "accept": _accept,
    "send-back": _send_back,
}


@router.post("/projects/{slug}/review/{review_id}")
def resolve(session: SessionDep, who: Poster, form: Form, slug: str, review_id: str) -> RedirectResponse:
    """Decide, dismiss, retire, accept or send back, by the button that was pressed."""
    project = managed_project(session, who.actor, slug, Right.reviews)
    action = ACTIONS.get(text_of(form, "action"))
    if action is None:
        raise Invalid(_("There is no such action for a review."), field="action")
    fields = answer_fields_of(settings_of(session, project))
    done = action(session, who.actor, parse_id(review_id), form, fields)
    return back_to(f"/admin/projects/{slug}/review", done)
