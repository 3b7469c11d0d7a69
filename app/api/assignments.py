"""Claims and verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Security
from sqlalchemy.orm import Session
from starlette.background import BackgroundTask
from starlette.responses import Response

from app.api.schemas import BlindIn, ClaimOut, Limit, ListOut, RevealedOut, VerdictOut
from app.http.dependencies import (
    ActorDep,
    ApiRoute,
    JudgeDep,
    JudgingPoolDep,
    SessionDep,
    authenticate_judge,
    bearer_scheme,
    before_body,
    start_due_round,
)
from app.http.responses import Json
from app.services.judging import assignments, change, feed, fields, give
from app.services.judging import claim as claims
from app.services.judging.rows import lock_assignment
from app.services.kernel.actors import Actor, parse_id
from app.services.kernel.verdict_schema import VerdictIn
from app.services.projects import projects

router = APIRouter(tags=["judging"], route_class=ApiRoute)


def own_assignment(session: Session, actor: Actor, path: Mapping[str, str]) -> object:
    """The critic's own assignment. Raises `NotFound`, `Forbidden`."""
    return lock_assignment(session, actor, parse_id(path["assignment_id"]))


def own_verdict(session: Session, actor: Actor, path: Mapping[str, str]) -> object:
    """The assignment of the critic's own verdict. Raises `NotFound`, `Forbidden`."""
    return change.lock_own(session, actor, parse_id(path["verdict_id"]))


@router.post(
    "/projects/{slug}/assignments",
    status_code=201,
    response_model=ClaimOut,
    responses={
        200: {"model": ClaimOut, "description": "max_open are held: the oldest of them"},
        204: {"description": "None is ready"},
    },
    dependencies=[Security(bearer_scheme)],
)
async def claim(request: Request, pool: JudgingPoolDep, slug: str) -> Response:
    """Claim the next candidate set."""
    async with pool.transaction() as transaction:
        actor = await authenticate_judge(request, transaction, lock=True)
        claimed = await claims.claim(transaction, actor, slug, is_locked=True)
    if claimed is None:
        return Response(status_code=204)
    return Json(claimed.content, status_code=200 if claimed.resumed else 201)


@router.get("/assignments/{assignment_id}", response_model=ClaimOut)
def get_assignment(session: SessionDep, actor: ActorDep, assignment_id: str) -> Json:
    """A claim as its critic sees it."""
    return Json(assignments.get_assignment(session, actor, parse_id(assignment_id)).body)


@router.post("/assignments/{assignment_id}/heartbeat", response_model=ClaimOut)
def heartbeat(session: SessionDep, actor: ActorDep, assignment_id: str) -> Json:
    """Hold a claim for another lease."""
    return Json(assignments.heartbeat(session, actor, parse_id(assignment_id)).body)


@router.post("/assignments/{assignment_id}/release", status_code=204)
def release(session: SessionDep, actor: ActorDep, assignment_id: str) -> None:
    """Give a claim back."""
    assignments.release(session, actor, parse_id(assignment_id))


@router.post(
    "/assignments/{assignment_id}/verdict",
    status_code=201,
    response_model=VerdictOut,
    responses={202: {"model": VerdictOut, "description": "It came too late and was kept aside"}},
)
@before_body(own_assignment)
async def give_verdict(
    request: Request,
    pool: JudgingPoolDep,
    actor: JudgeDep,
    assignment_id: str,
    body: VerdictIn,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Json:
    """Judge what was claimed. The same Idempotency-Key twice is one verdict."""
    async with pool.transaction() as transaction:
        out = await give.give(transaction, actor, parse_id(assignment_id), body, idempotency_key=idempotency_key)
    after = None if out.due_project is None else BackgroundTask(start_due_round, request, out.due_project)
    return Json(out.content, status_code=out.status, background=after)


@router.post(
    "/assignments/{assignment_id}/fields",
    status_code=201,
    response_model=RevealedOut,
    responses={200: {"model": RevealedOut, "description": "The same values were stored already"}},
)
@before_body(own_assignment)
async def store_fields(pool: JudgingPoolDep, actor: JudgeDep, assignment_id: str, body: BlindIn) -> Json:
    """Say what holds of the picture under its policy, before any candidate is shown. Answers with the candidates.

    Only in projects with `answer_fields`, and once: other values afterwards are 409, and corrected by the verdict.
    """
    async with pool.transaction() as transaction:
        shown = await fields.store_blind(transaction, actor, parse_id(assignment_id), body.fields)
    return Json(shown.claim.body, status_code=201 if shown.created else 200)


@router.get("/verdicts/{verdict_id}", response_model=VerdictOut)
def get_verdict(session: SessionDep, actor: ActorDep, verdict_id: str) -> Json:
    """A verdict."""
    return Json(feed.get_verdict(session, actor, parse_id(verdict_id)))


@router.put("/verdicts/{verdict_id}", response_model=VerdictOut)
@before_body(own_verdict)
def change_verdict(session: SessionDep, actor: ActorDep, verdict_id: str, body: VerdictIn) -> Json:
    """Change one's own verdict: a new one that supersedes it."""
    return Json(change.change(session, actor, parse_id(verdict_id), body))


@router.get("/projects/{slug}/verdicts", response_model=ListOut[VerdictOut])
def list_verdicts(
    session: SessionDep,
    actor: ActorDep,
    slug: str,
    limit: Limit = 100,
    cursor: str | None = None,
    critic: Annotated[str | None, Query(description="'me' or an id")] = None,
) -> Json:
    """Verdicts in the order of their commits. `next` may be kept for ever; it is null only for an empty page."""
    project = projects.get_project(session, actor, slug)
    page = feed.feed(session, actor, project, cursor=cursor, limit=limit, critic=critic)
    return Json({"items": page.items, "next": page.next})
