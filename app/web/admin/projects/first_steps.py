"""The first steps: the checklist of a new project, and the page on which the demo opens."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.http.dependencies import SessionDep
from app.services.acceptance import rules
from app.services.kernel.actors import Actor
from app.services.kernel.rights import Right
from app.services.projects import projects
from app.services.projects.projects import ProjectSettings
from app.services.read_models import checklist
from app.services.read_models.checklist import Checklist, Step
from app.services.rounds import rounds, versions
from app.web.access import Me, Poster, managed_project
from app.web.admin.frame import Frame, back_to, frame_of
from app.web.errors import wants_fragment
from app.web.rendering import live, number, page
from app.web.words import round_words

router = APIRouter()
PAGE = "admin/projects/first_steps.html"

TEXTS = {
    Step.pictures: ("Add pictures", "Import a file, drop photographs, or try it with sample photographs."),
    Step.model: ("Choose a model", "The starter model knows only drawn scenes; choose another for your pictures."),
    Step.instructions: ("Write instructions", "Tell your critics what a good explanation is, with examples."),
    Step.people: ("Invite people", "Add critics to this project; each gets a link to choose a password."),
    Step.judge: ("Give the first verdict", "Pick the explanations that fit, as your critics will."),
    Step.round: ("Train the first version", "A training round tunes the model on what was picked."),
}


@dataclass(frozen=True, slots=True)
class StepView:
    """One step: its name, what it is about, where it is taken, and whether it is done. No `url`: by others."""

    name: str
    text: str
    url: str
    done: bool


@dataclass(frozen=True, slots=True)
class FirstStepsView:
    """The page on which the demo opens."""

    slug: str
    name: str
    steps: tuple[StepView, ...]


def checklist_steps(actor: Actor, slug: str, found: Checklist) -> tuple[StepView, ...]:
    """The steps of a checklist with their links."""
    base = f"/admin/projects/{slug}"
    urls = {
        Step.pictures: f"{base}/imports",
        Step.model: f"{base}/settings#field-base_model",
        Step.instructions: f"{base}/settings#field-instructions",
        Step.people: "/admin/users" if actor.is_admin else f"{base}/critics",
        Step.judge: f"/annotate/{slug}",
        Step.round: f"{base}/rounds/preview",
    }
    return tuple(StepView(*TEXTS[step], urls[step], step in found.done) for step in Step)


@router.get("/projects/{slug}/first-steps")
def show(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """Show the three steps from the first verdict to what a training round changed."""
    frame = frame_of(request, session, who, slug, tab="", title="First steps")
    settings = projects.settings_of(session, frame.project)
    steps = three_steps(session, who.actor, frame, settings)
    view = FirstStepsView(slug, frame.project.name, steps)
    if wants_fragment(request):
        return live(request, PAGE, "live", shell=frame.shell, view=view)
    return page(PAGE, shell=frame.shell, view=view)


def three_steps(
    session: Session, actor: Actor, frame: Frame, settings: ProjectSettings
) -> tuple[StepView, StepView, StepView]:
    """Judge, watch the round, look at what it changed; with how far each is."""
    project = frame.project
    base = f"/admin/projects/{project.slug}"
    fresh = rules.fresh_count(session, project)
    newest = next(iter(rounds.list_rounds(session, actor, project, limit=1).items), None)
    made = [version for version in versions.list_versions(session, actor, project) if version.round_id is not None]
    judged = f"{number(fresh)} of {number(settings.round_every)} prompts have a new accepted explanation."
    begins = "It starts by itself when enough is picked." if settings.auto_rounds else "An admin starts it."
    watched = f"Training round {newest.number}: {round_words(newest)}." if newest else begins
    changed = "Compare the explanations of the two versions, prompt by prompt, and their scores."
    return (
        StepView(
            "Judge some prompts",
            f"Look at the picture and pick every explanation that fits. {judged}",
            f"/annotate/{project.slug}" if frame.may_judge else "",
            newest is not None or fresh >= settings.round_every,
        ),
        StepView(
            "Watch the training round start",
            f"It tunes the model on what was picked. {watched}",
            f"{base}/rounds/{newest.number}" if newest else base,
            bool(made),
        ),
        StepView(
            "See what it changed",
            changed if made else f"{changed} There is something to see once the round is done.",
            f"{base}/compare" if made else f"{base}/versions",
            False,
        ),
    )


@router.post("/projects/{slug}/checklist/dismiss")
def dismiss(session: SessionDep, who: Poster, slug: str) -> RedirectResponse:
    """Hide the checklist of a project."""
    checklist.dismiss(session, who.actor, managed_project(session, who.actor, slug, Right.administers))
    return back_to(f"/admin/projects/{slug}", "checklist-dismissed")
