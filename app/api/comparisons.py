"""Blind comparisons of two versions: start and follow them, and judge their pairs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from app.api.schemas import Id, Limit, ListOut, Out, PromptImageOut, images_out
from app.http.dependencies import ActorDep, ApiRoute, SessionDep, before_body, in_project
from app.models import Comparison, ComparisonState, Preferred, Project
from app.services.kernel.actors import Actor, parse_id
from app.services.kernel.paging import slice_page
from app.services.kernel.rights import Right
from app.services.projects import projects
from app.services.prompts.prompts import PartIn, prompt_parts
from app.services.rounds import comparisons, versions
from app.services.rounds.comparisons import MOST_CRITICS, MOST_PAIRS, PairShown, Side

router = APIRouter(tags=["comparisons"], route_class=ApiRoute)


class ComparisonIn(BaseModel):
    """A new comparison; `old` and `new` are versions.

    A `gate` activates the new one if critics find it better, on at least 30 pairs.
    """

    old: Id
    new: Id
    pairs: int = Field(50, ge=1, le=MOST_PAIRS)
    each: int = Field(1, ge=1, le=MOST_CRITICS)
    gate: bool = False


class RateOut(Out):
    """How often the new version was preferred, a tie counting half, with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


class ComparisonOut(Out):
    """A comparison and its progress: `done` of `wanted` judgements."""

    id: Id
    number: int
    state: ComparisonState
    old: Id
    new: Id
    gate: bool
    each: int
    pairs: int
    alike: int
    done: int
    wanted: int
    preferred: dict[Preferred, int]
    rate: RateOut | None
    outcome: str
    created_at: datetime
    closed_at: datetime | None


class PairOut(Out):
    """A pair of a comparison, with the critics' judgements."""

    id: Id
    prompt: Id
    answer: str | None
    old: str
    new: str
    alike: bool
    preferred: list[Preferred]


class BlindPairOut(Out):
    """A pair as a critic sees it, without saying which version wrote which text."""

    id: Id
    question: str
    answer: str | None
    images: list[PromptImageOut]
    parts: list[PartIn]
    left: str
    right: str
    to_judge: int


class LastPairOut(BlindPairOut):
    """The pair that a critic judged last, and what they said."""

    said: Side


class PreferenceIn(BaseModel):
    """Which side is better, and how many seconds the critic looked. `again` changes what they said before."""

    side: Side
    again: bool = False
    seconds: Annotated[float | None, Field(ge=0, le=24 * 3600)] = None


def comparison_out(session: Session, found: Comparison) -> ComparisonOut:
    """A comparison with its progress."""
    standing = comparisons.standing_of(session, found)
    rate = standing.rate
    return ComparisonOut(
        id=str(found.id),
        number=found.number,
        state=found.state,
        old=str(found.old_id),
        new=str(found.new_id),
        gate=found.gate,
        each=found.each,
        pairs=standing.pairs,
        alike=standing.alike,
        done=standing.done,
        wanted=standing.wanted,
        preferred={
            Preferred.old: standing.old,
            Preferred.new: standing.new,
            Preferred.neither: standing.neither,
        },
        rate=None if rate is None else RateOut.model_validate(rate),
        outcome=comparisons.outcome_text(found, standing),
        created_at=found.created_at,
        closed_at=found.closed_at,
    )


def get_by_id(session: Session, actor: Actor, comparison_id: str) -> tuple[Project, Comparison]:
    """Return a comparison and its project. Raises `NotFound`."""
    found = comparisons.comparison_by_id(session, actor, parse_id(comparison_id))
    return session.get_one(Project, found.project_id), found


@router.get("/projects/{slug}/comparisons")
def list_comparisons(
    session: SessionDep, actor: ActorDep, slug: str, limit: Limit = 100, cursor: str | None = None
) -> ListOut[ComparisonOut]:
    """The comparisons of a project, newest first. Not for critics, whom they would unblind."""
    project = projects.get_project(session, actor, slug)
    found = comparisons.list_comparisons(session, actor, project)
    page = slice_page(found, lambda one: -one.number, limit=limit, cursor=cursor)
    return ListOut(items=[comparison_out(session, one) for one in page.items], next=page.next)


@router.post("/projects/{slug}/comparisons", status_code=201)
@before_body(in_project(Right.administers))
def start_comparison(session: SessionDep, actor: ActorDep, slug: str, body: ComparisonIn) -> ComparisonOut:
    """Let critics compare what two versions wrote for the same prompts."""
    project = projects.get_project(session, actor, slug, Right.administers)
    old, new = (versions.get_version(session, actor, parse_id(one)) for one in (body.old, body.new))
    made = comparisons.start(
        session, actor, project, old=old, new=new, pairs=body.pairs, each=body.each, gate=body.gate
    )
    return comparison_out(session, made)


@router.get("/comparisons/{comparison_id}")
def get_comparison(session: SessionDep, actor: ActorDep, comparison_id: str) -> ComparisonOut:
    """A comparison. Not for critics."""
    return comparison_out(session, get_by_id(session, actor, comparison_id)[1])


@router.get("/comparisons/{comparison_id}/pairs")
def list_pairs(
    session: SessionDep, actor: ActorDep, comparison_id: str, limit: Limit = 100, cursor: str | None = None
) -> ListOut[PairOut]:
    """The pairs of a comparison in order, each with its judgements. Not for critics."""
    project, found = get_by_id(session, actor, comparison_id)
    rows = comparisons.pairs_of(session, actor, project, found)
    page = slice_page(rows, lambda row: row[0].id, limit=limit, cursor=cursor)
    return ListOut(
        items=[
            PairOut(
                id=str(pair.id),
                prompt=str(pair.prompt_id),
                answer=pair.answer,
                old=pair.old_text,
                new=pair.new_text,
                alike=pair.alike,
                preferred=said,
            )
            for pair, _, said in page.items
        ],
        next=page.next,
    )


@router.post("/comparisons/{comparison_id}/close")
def close_comparison(session: SessionDep, actor: ActorDep, comparison_id: str) -> ComparisonOut:
    """Close a comparison early; the judgements so far count."""
    project, found = get_by_id(session, actor, comparison_id)
    return comparison_out(session, comparisons.close(session, actor, project, found.number))


@router.get("/projects/{slug}/pairs/next", response_model=BlindPairOut, responses={204: {"description": "None left"}})
def next_pair(session: SessionDep, actor: ActorDep, slug: str) -> BlindPairOut | Response:
    """The next pair for this critic; 204 if there is none."""
    project = projects.get_project(session, actor, slug, Right.judges)
    pair = comparisons.next_pair(session, actor, project)
    if pair is None:
        return Response(status_code=204)
    return BlindPairOut(**pair_fields(pair))


@router.get("/projects/{slug}/pairs/last", response_model=LastPairOut, responses={204: {"description": "None"}})
def last_pair(session: SessionDep, actor: ActorDep, slug: str) -> LastPairOut | Response:
    """The pair that this critic judged last, as long as it may be changed; 204 if there is none.

    That is while its comparison is open, and for ten minutes where this judgement completed it and activated nothing.
    """
    project = projects.get_project(session, actor, slug, Right.judges)
    pair = comparisons.last_pair(session, actor, project)
    if pair is None or pair.said is None:
        return Response(status_code=204)
    return LastPairOut(**pair_fields(pair), said=pair.said)


def pair_fields(pair: PairShown) -> dict[str, Any]:
    """A pair as a critic sees it."""
    return {
        "id": str(pair.id),
        "question": pair.prompt.question,
        "answer": pair.answer,
        "images": images_out(pair.prompt),
        "parts": prompt_parts(pair.prompt),
        "left": pair.left,
        "right": pair.right,
        "to_judge": pair.to_judge,
    }


@router.post("/projects/{slug}/pairs/{pair_id}/preference", status_code=204)
@before_body(in_project(Right.judges))
def prefer(session: SessionDep, actor: ActorDep, slug: str, pair_id: str, body: PreferenceIn) -> None:
    """Judge which text of a pair is better. A second judgement is ignored, unless `again` changes the first."""
    project = projects.get_project(session, actor, slug, Right.judges)
    comparisons.prefer(session, actor, project, parse_id(pair_id), body.side, seconds=body.seconds, again=body.again)
