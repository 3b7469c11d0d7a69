"""Gold prompts, practice, reviews and critic standings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from app.api.schemas import BlindIn, Id, Limit, ListOut, Out, PromptImageOut, ShownPolicyOut
from app.http.dependencies import ActorDep, ApiRoute, SessionDep, before_body, in_project
from app.http.responses import Json
from app.models import PromptState, ReviewKind, ReviewState, VerdictKind, VerdictState
from app.services.judging import decide
from app.services.kernel.actors import Actor, parse_id
from app.services.kernel.rights import Right
from app.services.kernel.verdict_schema import FieldValues, VerdictIn, candidate_id
from app.services.projects import projects
from app.services.prompts.prompts import PartIn
from app.services.quality import gold, practice, repeats, reviews, standings

router = APIRouter(tags=["quality"], route_class=ApiRoute)


def reviewer_of(session: Session, actor: Actor, path: Mapping[str, str]) -> object:
    """The review, for a reviewer. Raises `NotFound`, `Forbidden`."""
    return reviews.get_review(session, actor, parse_id(path["review_id"]))


class NoteIn(BaseModel):
    """A reviewer's note."""

    note: str | None = None


class ReturnIn(BaseModel):
    """A verdict to send back to its critic, and the reason."""

    verdict: str
    note: str


class PracticeIn(BaseModel):
    """The candidates a critic picks of a practice prompt."""

    picks: list[str] = []
    fields: FieldValues | None = Field(None, description="Values of a structured answer that the critic corrects")


class PracticeOut(BaseModel):
    """The score of the picks, from 0 to 1, and what was right.

    Of structured answers also the critic's values, the right ones, and the names of those that are wrong.
    """

    score: float
    known: dict[str, bool]
    picked: list[str]
    wrong: list[str]
    explanation: str | None
    left: int
    fields: dict[str, str | None] = {}
    gold: dict[str, str | None] = {}
    wrong_fields: list[str] = []


class TextOut(Out):
    """A candidate: its id and its text."""

    id: Id
    text: str


class PracticeItemOut(Out):
    """A practice prompt. `left`: how many there are with it.

    Where answers have fields, `candidates` is null until the critic's own values are stored.
    """

    id: Id
    question: str
    answer: str | None
    images: list[PromptImageOut]
    parts: list[PartIn]
    candidates: list[TextOut] | None
    fields: dict[str, str | None] | None = Field(None, description="What the critic said before the candidates")
    policy: ShownPolicyOut | None = None
    left: int


class NextPracticeOut(Out):
    """The next practice prompt; null when practice is done."""

    item: PracticeItemOut | None


class GoldCandidateOut(TextOut):
    """A candidate of a gold prompt; `fits` is null where it counts neither way."""

    fits: bool | None


class GoldOut(Out):
    """A gold prompt: how often it was answered, and how accurately, from 0 to 1."""

    id: Id
    prompt: Id
    candidate_set: Id
    question: str
    answer: str | None
    practice: bool
    active: bool
    explanation: str | None
    candidates: list[GoldCandidateOut]
    answered: int
    accuracy: float | None


class ReviewPromptOut(Out):
    """The prompt of a review."""

    id: Id
    state: PromptState
    question: str
    answer: str | None
    images: list[PromptImageOut] | None
    parts: list[PartIn]


class ReviewVerdictOut(Out):
    """A verdict in a review; `critic` is an address. `returned_at` is set until a verdict sent back is answered."""

    id: Id
    critic: str
    kind: VerdictKind
    state: VerdictState
    reason: str | None
    rationale: str | None
    comment: str | None
    seconds: float | None
    picks: list[Id]
    note: str | None
    returned_at: datetime | None
    fields: dict[str, str | None] | None = Field(None, description="Where the project has answer fields")


class ReviewOut(Out):
    """What a reviewer is asked to decide. `verdict`: the one that it is about, if it is about one."""

    id: Id
    kind: ReviewKind
    state: ReviewState
    note: str | None
    verdict: Id | None
    candidate_set: Id
    created_at: datetime
    prompt: ReviewPromptOut
    candidates: list[TextOut]
    verdicts: list[ReviewVerdictOut]
    policy: ShownPolicyOut | None = None


class ReturnedOut(Out):
    """A verdict of one's own that a reviewer sent back."""

    id: Id
    verdict: Id
    assignment: Id
    note: str
    prompt: Id
    question: str
    created_at: datetime


class StandingOut(BaseModel):
    """A critic's accuracy on gold prompts and consistency on repeats. `paused`: they get nothing more to judge."""

    critic: str
    email: str
    name: str
    gold_answered: int
    gold_accuracy: float | None
    weight: float
    paused: bool
    practised: bool
    repeats: int = 0
    consistency: float | None = None
    position_shift: float | None = None


# Gold prompts and practice


@router.get("/projects/{slug}/gold", response_model=ListOut[GoldOut])
def list_gold(session: SessionDep, actor: ActorDep, slug: str) -> Json:
    """The active gold prompts, with how often they were answered and how accurately. For reviewers."""
    project = projects.get_project(session, actor, slug, Right.reviews)
    return Json({"items": gold.list_gold(session, actor, project), "next": None})


@router.post("/projects/{slug}/gold", status_code=201, response_model=GoldOut)
@before_body(in_project(Right.reviews))
def add_gold(session: SessionDep, actor: ActorDep, slug: str, body: gold.GoldIn) -> Json:
    """Make a prompt a gold prompt, with candidates whose fit is known; it is not used otherwise."""
    project = projects.get_project(session, actor, slug, Right.reviews)
    return Json(gold.add_gold(session, actor, project, body), status_code=201)


@router.delete("/gold/{gold_id}", status_code=204)
def remove_gold(session: SessionDep, actor: ActorDep, gold_id: str) -> None:
    """Deactivate a gold prompt."""
    gold.remove_gold(session, actor, parse_id(gold_id))


@router.get("/projects/{slug}/practice", response_model=NextPracticeOut)
def next_practice(session: SessionDep, actor: ActorDep, slug: str) -> Json:
    """The next practice prompt."""
    project = projects.get_project(session, actor, slug, Right.judges)
    return Json({"item": practice.next_practice(session, actor, project)})


@router.post("/projects/{slug}/practice/{gold_id}/fields", response_model=NextPracticeOut)
@before_body(in_project(Right.judges))
def rate_practice(session: SessionDep, actor: ActorDep, slug: str, gold_id: str, body: BlindIn) -> Json:
    """Store what the critic says of a practice prompt's picture, and get its candidates."""
    project = projects.get_project(session, actor, slug, Right.judges)
    return Json({"item": practice.rate_practice(session, actor, project, parse_id(gold_id), body.fields)})


@router.post("/projects/{slug}/practice/{gold_id}")
@before_body(in_project(Right.judges))
def answer_practice(session: SessionDep, actor: ActorDep, slug: str, gold_id: str, body: PracticeIn) -> PracticeOut:
    """Judge a practice prompt and get the right answer."""
    project = projects.get_project(session, actor, slug, Right.judges)
    result = practice.answer_practice(session, actor, project, parse_id(gold_id), body.picks, body.fields)
    told = {**asdict(result), "picked": list(result.picked), "wrong_fields": list(result.wrong_fields)}
    return PracticeOut(**told, wrong=list(result.wrong))


# Standings


@router.get("/projects/{slug}/standings")
def list_standings(session: SessionDep, actor: ActorDep, slug: str) -> ListOut[StandingOut]:
    """The standings of critics: gold prompts, repeats, pauses. For reviewers."""
    project = projects.get_project(session, actor, slug, Right.reviews)
    consistency = {one.critic_id: one for one in repeats.measure_consistency(session, actor, project)}
    known = {one.critic_id: one for one in standings.list_standings(session, actor, project)}
    items = []
    for critic_id in sorted({*consistency, *known}):
        standing, repeated = known.get(critic_id), consistency.get(critic_id)
        items.append(
            StandingOut(
                critic=str(critic_id),
                email=standing.email if standing else repeated.email if repeated else "",
                name=standing.name if standing else repeated.name if repeated else "",
                gold_answered=standing.answered if standing else 0,
                gold_accuracy=standing.score if standing else None,
                weight=standing.weight if standing else 1.0,
                paused=bool(standing and standing.paused_at),
                practised=bool(standing and standing.practised_at),
                repeats=repeated.sets if repeated else 0,
                consistency=repeated.same if repeated else None,
                position_shift=repeated.shift if repeated else None,
            )
        )
    return ListOut(items=items, next=None)


@router.post("/projects/{slug}/standings/{critic_id}/pause", status_code=204)
def pause_critic(session: SessionDep, actor: ActorDep, slug: str, critic_id: str) -> None:
    """Pause a critic: they are offered nothing more to judge. For admins."""
    project = projects.get_project(session, actor, slug, Right.administers)
    standings.pause(session, actor, project, parse_id(critic_id))


@router.post("/projects/{slug}/standings/{critic_id}/resume", status_code=204)
def resume_critic(session: SessionDep, actor: ActorDep, slug: str, critic_id: str) -> None:
    """Let a paused critic continue; their gold prompts count afresh. For admins."""
    project = projects.get_project(session, actor, slug, Right.administers)
    standings.resume(session, actor, project, parse_id(critic_id))


# Reviews


@router.get("/projects/{slug}/reviews", response_model=ListOut[ReviewOut])
def list_reviews(
    session: SessionDep,
    actor: ActorDep,
    slug: str,
    state: ReviewState = ReviewState.open,
    kind: ReviewKind | None = None,
    limit: Limit = 100,
    cursor: str | None = None,
) -> Json:
    """Disagreements, flags and late verdicts, oldest first. For reviewers."""
    project = projects.get_project(session, actor, slug, Right.reviews)
    page = reviews.list_reviews(session, actor, project, state=state, kind=kind, limit=limit, cursor=cursor)
    return Json({"items": page.items, "next": page.next})


@router.get("/reviews/{review_id}", response_model=ReviewOut)
def get_review(session: SessionDep, actor: ActorDep, review_id: str) -> Json:
    """A review."""
    return Json(reviews.get_review(session, actor, parse_id(review_id)))


@router.post("/reviews/{review_id}/decision", response_model=ReviewOut)
@before_body(reviewer_of)
def decide_review(session: SessionDep, actor: ActorDep, review_id: str, body: VerdictIn) -> Json:
    """Decide which candidates fit. The decision replaces the critics' verdicts."""
    return Json(decide.decide(session, actor, parse_id(review_id), body))


@router.post("/reviews/{review_id}/dismissal", response_model=ReviewOut)
@before_body(reviewer_of)
def dismiss_review(session: SessionDep, actor: ActorDep, review_id: str, body: NoteIn) -> Json:
    """Close a review without a decision; a flagged prompt is offered again."""
    return Json(decide.dismiss(session, actor, parse_id(review_id), body.note))


@router.post("/reviews/{review_id}/retirement", response_model=ReviewOut)
@before_body(reviewer_of)
def retire_prompt(session: SessionDep, actor: ActorDep, review_id: str, body: NoteIn) -> Json:
    """Retire the prompt."""
    return Json(decide.retire(session, actor, parse_id(review_id), body.note))


@router.post("/reviews/{review_id}/acceptance", response_model=ReviewOut)
def accept_late_verdict(session: SessionDep, actor: ActorDep, review_id: str) -> Json:
    """Count a late verdict. For admins."""
    return Json(decide.accept(session, actor, parse_id(review_id)))


@router.post("/reviews/{review_id}/return", response_model=ReviewOut)
@before_body(reviewer_of)
def send_verdict_back(session: SessionDep, actor: ActorDep, review_id: str, body: ReturnIn) -> Json:
    """Ask a critic to look at a verdict again."""
    verdict = candidate_id(body.verdict, "verdict")
    return Json(decide.send_back(session, actor, parse_id(review_id), verdict, body.note))


@router.get("/projects/{slug}/returned", response_model=ListOut[ReturnedOut])
def list_returned(session: SessionDep, actor: ActorDep, slug: str) -> Json:
    """Your own verdicts that were sent back; change them (`PUT /verdicts/{id}`), or confirm them."""
    project = projects.get_project(session, actor, slug, Right.judges)
    return Json({"items": decide.list_returned(session, actor, project), "next": None})


@router.post("/returned/{returned_id}/stand", status_code=204)
def confirm_verdict(session: SessionDep, actor: ActorDep, returned_id: str) -> None:
    """Confirm a verdict that was sent back."""
    decide.confirm_returned(session, actor, parse_id(returned_id))
