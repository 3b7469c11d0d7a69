"""The critic's page of blind comparisons: two texts side by side, whose they are is not said."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import get_args

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from app.errors import Invalid
from app.http.dependencies import SessionDep
from app.services.kernel.actors import parse_id
from app.services.rounds import comparisons
from app.services.rounds.comparisons import PairShown, Side
from app.web.access import Form, Me, Poster, judged_project, text_of
from app.web.judging.views import Picture
from app.web.rendering import page, shell_for
from app.web.words import image_url

router = APIRouter()
SIDES: tuple[Side, ...] = get_args(Side)
LONGEST = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class PairView:
    """A pair to be judged."""

    id: str
    question: str
    answer: str
    images: tuple[Picture, ...]
    left: str
    right: str
    to_judge: int


@dataclass(frozen=True, slots=True)
class CompareView:
    """The page."""

    slug: str
    name: str
    pair: PairView | None


@router.get("/annotate/{slug}/compare")
def show(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """The next pair."""
    project = judged_project(session, who.actor, slug)
    found = comparisons.next_pair(session, who.actor, project)
    shell = shell_for(request, who.actor, who.csrf_token, title=f"Compare · {project.name}", section="annotate")
    view = CompareView(slug, project.name, pair_view(found) if found else None)
    return page("judging/compare.html", shell=replace(shell, project_name=project.name), view=view)


def pair_view(found: PairShown) -> PairView:
    """A pair, as the page shows it."""
    return PairView(
        id=str(found.id),
        question=found.prompt.question,
        answer=found.answer or "",
        images=tuple(Picture(image_url(one.sha256), one.image.width, one.image.height) for one in found.prompt.images),
        left=found.left,
        right=found.right,
        to_judge=found.to_judge,
    )


@router.post("/annotate/{slug}/compare")
def prefer(session: SessionDep, who: Poster, form: Form, slug: str) -> RedirectResponse:
    """Say which text is better, and on to the next pair."""
    project = judged_project(session, who.actor, slug)
    pair_id, side = parse_id(text_of(form, "pair")), text_of(form, "side")
    for known in SIDES:
        if side == known:
            comparisons.prefer(
                session, who.actor, project, pair_id, known, seconds=seconds_of(text_of(form, "seconds"))
            )
            return RedirectResponse(f"/annotate/{slug}/compare", status_code=303)
    raise Invalid("Choose the left text, the right one, or neither.", field="side")


def seconds_of(typed: str) -> float | None:
    """How long the critic looked, where the page could say it."""
    try:
        seconds = float(typed)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and 0 <= seconds <= LONGEST else None
