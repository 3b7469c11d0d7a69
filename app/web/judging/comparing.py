"""The critic's page of blind comparisons: two texts side by side, without naming their versions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import get_args

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from app.errors import Invalid
from app.http.dependencies import SessionDep
from app.services.kernel.actors import parse_id
from app.services.projects import projects
from app.services.prompts.prompts import prompt_parts
from app.services.rounds import comparisons
from app.services.rounds.comparisons import PairShown, Side
from app.web.access import Form, Me, Poster, judged_project, text_of
from app.web.judging.views import Picture, ReadPart, question_in, read_in_order, text_language
from app.web.rendering import page, shell_for
from app.web.words import image_url
from illume.phrases import _

router = APIRouter()
SIDES: tuple[Side, ...] = get_args(Side)
MAX_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class PairView:
    """A pair to judge."""

    id: str
    question: str
    answer: str
    images: tuple[Picture, ...]
    reading: tuple[ReadPart, ...]
    left: str
    right: str
    to_judge: int
    said: str
    language: str


@dataclass(frozen=True, slots=True)
class CompareView:
    """The page."""

    slug: str
    name: str
    pair: PairView | None
    can_go_back: bool


@router.get("/annotate/{slug}/compare")
def show(request: Request, session: SessionDep, who: Me, slug: str, last: bool = False) -> Response:
    """The next pair; with `last` the one judged last, to change what was said of it."""
    project = judged_project(session, who.actor, slug)
    before = comparisons.last_pair(session, who.actor, project)
    shown = (before if last else None) or comparisons.next_pair(session, who.actor, project)
    shell = shell_for(
        request, who.actor, who.csrf_token, title=_("Compare · %(project)s", project=project.name), section="annotate"
    )
    language = projects.settings_of(session, project).language
    pair = pair_view(shown, language) if shown else None
    view = CompareView(slug, project.name, pair, can_go_back=before is not None)
    return page("judging/compare.html", shell=replace(shell, project_name=project.name), view=view)


def pair_view(shown: PairShown, language: str) -> PairView:
    """The view of a pair; `language` is that of the project's texts, if known."""
    images = tuple(Picture(image_url(one.sha256), one.image.width, one.image.height) for one in shown.prompt.images)
    reading, question = question_in(read_in_order(prompt_parts(shown.prompt), images), shown.prompt.question)
    return PairView(
        id=str(shown.id),
        question=question,
        answer=shown.answer or "",
        images=images,
        reading=reading,
        left=shown.left,
        right=shown.right,
        to_judge=shown.to_judge,
        said=shown.said or "",
        language=text_language(shown.prompt.extra.get("language"), language),
    )


@router.post("/annotate/{slug}/compare")
def prefer(session: SessionDep, who: Poster, form: Form, slug: str) -> RedirectResponse:
    """Store which text is better, or change it, and redirect to the next pair."""
    project = judged_project(session, who.actor, slug)
    pair_id, side = parse_id(text_of(form, "pair")), text_of(form, "side")
    seconds, again = parse_seconds(text_of(form, "seconds")), text_of(form, "again") == "yes"
    for valid in SIDES:
        if side == valid:
            comparisons.prefer(session, who.actor, project, pair_id, valid, seconds=seconds, again=again)
            return RedirectResponse(f"/annotate/{slug}/compare", status_code=303)
    raise Invalid(_("Choose the left text, the right one, or neither."), field="side")


def parse_seconds(typed: str) -> float | None:
    """The time the critic took, or None if the page did not send a valid one."""
    try:
        seconds = float(typed)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS else None
