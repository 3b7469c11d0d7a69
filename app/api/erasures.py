"""Erasing people, images and projects, for admins."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from app.api.schemas import Id, Limit, ListOut, Out
from app.http.dependencies import ActorDep, ApiRoute, SessionDep
from app.http.responses import Json
from app.models import Erasure, ErasureKind, ErasureState
from app.services.erasure import erasures
from app.services.erasure.erasures import ErasureImpact
from app.services.kernel.actors import parse_id

router = APIRouter(tags=["erasing"], route_class=ApiRoute)
DryRun = Annotated[bool, Query(description="Only report what would be erased")]
WOULD_GO: dict[int | str, dict[str, Any]] = {200: {"description": "With `dry_run`: what would be erased"}}


class LossOut(Out):
    """What an erasure would remove: how many of each, in which projects."""

    name: str
    verdicts: int
    prompts: int
    images: int
    images_at_least: bool
    snapshots: int
    tokens: int
    projects: list[str]


class ErasureOut(Out):
    """An erasure. `name` is a project's slug, `counts` says what was erased so far, `error` why it waits."""

    id: Id
    kind: ErasureKind
    subject: str
    name: str | None
    state: ErasureState
    counts: dict[str, int] = Field(examples=[{"verdicts": 8, "snapshots": 1, "redacted": 12}])
    error: str | None
    created_at: datetime
    finished_at: datetime | None


def loss_out(loss: ErasureImpact) -> Response:
    """The impact of an erasure."""
    return Json(LossOut.model_validate(loss).model_dump(mode="json"))


def erasure_out(found: Erasure) -> Response:
    """An erasure that was just requested."""
    return Json(ErasureOut.model_validate(found).model_dump(mode="json"), status_code=202)


@router.delete("/users/{user_id}", status_code=202, response_model=ErasureOut, responses=WOULD_GO)
def erase_user(session: SessionDep, actor: ActorDep, user_id: str, dry_run: DryRun = False) -> Response:
    """Erase a person: their name, tokens and verdicts. Verdicts become tombstones, and their slots become free."""
    number = parse_id(user_id)
    if dry_run:
        return loss_out(erasures.person_impact(session, actor, number))
    return erasure_out(erasures.erase_person(session, actor, number))


@router.delete("/images/{sha256}", status_code=202, response_model=ErasureOut, responses=WOULD_GO)
def erase_image(session: SessionDep, actor: ActorDep, sha256: str, dry_run: DryRun = False) -> Response:
    """Erase an image and, in all projects, the prompts that show it with their verdicts."""
    if dry_run:
        return loss_out(erasures.image_impact(session, actor, sha256))
    return erasure_out(erasures.erase_image(session, actor, sha256))


@router.delete("/projects/{slug}", status_code=202, response_model=ErasureOut, responses=WOULD_GO)
def erase_project(session: SessionDep, actor: ActorDep, slug: str, dry_run: DryRun = False) -> Response:
    """Erase a project: all its content, adapters and images. Only the hashes of its snapshots remain."""
    if dry_run:
        return loss_out(erasures.project_impact(session, actor, slug))
    return erasure_out(erasures.erase_project(session, actor, slug))


@router.get("/erasures")
def list_erasures(
    session: SessionDep, actor: ActorDep, limit: Limit = 100, cursor: str | None = None
) -> ListOut[ErasureOut]:
    """List erasures, newest first."""
    page = erasures.list_erasures(session, actor, limit=limit, cursor=cursor)
    return ListOut(items=[ErasureOut.model_validate(one) for one in page.items], next=page.next)


@router.get("/erasures/{erasure_id}")
def get_erasure(session: SessionDep, actor: ActorDep, erasure_id: str) -> ErasureOut:
    """The progress of an erasure."""
    return ErasureOut.model_validate(erasures.get_erasure(session, actor, parse_id(erasure_id)))
