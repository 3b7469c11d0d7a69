"""The practice prompts: their correct verdict is known and shown at once, before the critic's real work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from app.http.dependencies import SessionDep
from app.models import Project
from app.services.kernel.actors import parse_id
from app.services.projects import key_bindings
from app.services.quality import gold
from app.services.quality.gold import PracticeResult
from app.web.access import Form, Me, Poster, SignedIn, judged_project, text_of, texts_of
from app.web.judging.empty import explain_no_practice, nothing_page
from app.web.judging.views import Picture, ReadPart, pictures_of, question_in, read_in_order
from app.web.rendering import page, shell_for

router = APIRouter()


@dataclass(frozen=True, slots=True)
class TriedCandidate:
    """A candidate of a practice prompt. `fits` is the correct answer, None until the critic has answered."""

    id: str
    text: str
    picked: bool
    fits: bool | None

    @property
    def is_wrong(self) -> bool:
        """Whether the critic's answer differs from the correct one."""
        return self.fits is not None and self.fits != self.picked


@dataclass(frozen=True, slots=True)
class PracticeView:
    """A practice prompt, before or after the answer.

    `left` is the number of prompts still to come; `taken` are the keys that choose no explanation on the judging page.
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
    taken: tuple[str, ...]


def view_of(
    project: Project,
    item: dict[str, Any],
    result: PracticeResult | None,
    *,
    picks: Sequence[str] = (),
    taken: tuple[str, ...],
) -> PracticeView:
    """The view of a practice prompt, with the result once it is answered."""
    known = result.known if result else {}
    images = pictures_of(item["images"] or ())
    reading, question = question_in(read_in_order(item["parts"], images), item["question"])
    return PracticeView(
        slug=project.slug,
        name=project.name,
        id=item["id"],
        images=images,
        reading=reading,
        question=question,
        answer=item["answer"],
        candidates=tuple(
            TriedCandidate(one["id"], one["text"], one["id"] in picks, known.get(one["id"]))
            for one in item["candidates"]
        ),
        is_told=result is not None,
        right=result is not None and not result.wrong,
        explanation=result.explanation if result else None,
        left=result.left if result else item["left"],
        taken=taken,
    )


def show(request: Request, who: SignedIn, view: PracticeView) -> Response:
    """Render the page."""
    shell = shell_for(request, who.actor, who.csrf_token, title="Practice", section="annotate")
    return page("judging/practice.html", shell=shell, view=view)


@router.get("/annotate/{slug}/practice")
def practise(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """The next practice prompt, or that none is left."""
    project = judged_project(session, who.actor, slug)
    item = gold.next_practice(session, who.actor, project)
    if item is None:
        return nothing_page(request, who, "Practice", explain_no_practice(session, who.actor, project))
    taken = key_bindings.keys_in_force(session, who.actor)
    return show(request, who, view_of(project, item, None, taken=taken))


@router.post("/annotate/{slug}/practice")
def try_one(request: Request, session: SessionDep, who: Poster, form: Form, slug: str) -> Response:
    """Store the answer to a practice prompt, and show the correct one."""
    project = judged_project(session, who.actor, slug)
    item = gold.next_practice(session, who.actor, project)
    prompt_id = text_of(form, "prompt")
    if item is None or item["id"] != prompt_id:  # sent twice, or answered in another tab
        return RedirectResponse(f"/annotate/{slug}/practice", status_code=303)
    picks = texts_of(form, "picks")
    result = gold.answer_practice(session, who.actor, project, parse_id(prompt_id), picks)
    taken = key_bindings.keys_in_force(session, who.actor)
    return show(request, who, view_of(project, item, result, picks=picks, taken=taken))
