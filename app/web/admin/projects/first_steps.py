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
from illume.phrases import _, ngettext

router = APIRouter()
PAGE = "admin/projects/first_steps.html"

TEXTS = {
    Step.pictures: (
        _("Add pictures"),
        _("Import a file, drop photographs, or try it with sample photographs."),
    ),
    Step.model: (
        _("Choose a model"),
        _("The starter model knows only drawn scenes; choose another for your pictures."),
    ),
    Step.instructions: (_("Write instructions"), _("Tell your critics what a good explanation is, with examples.")),
    Step.people: (_("Invite people"), _("Add critics to this project; each gets a link to choose a password.")),
    Step.judge: (_("Give the first verdict"), _("Pick the explanations that fit, as your critics will.")),
    Step.round: (_("Train the first version"), _("A training round tunes the model on what was picked.")),
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
    frame = frame_of(request, session, who, slug, tab="", title=_("First steps"))
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
    judged = ngettext(
        "Look at the picture and pick every explanation that fits. "
        "%(fresh)s of %(all)s prompts have a new accepted explanation.",
        "Look at the picture and pick every explanation that fits. "
        "%(fresh)s of %(all)s prompts have a new accepted explanation.",
        settings.round_every,
        fresh=number(fresh),
        all=number(settings.round_every),
    )
    if newest:
        watched = _(
            "It tunes the model on what was picked. Training round %(number)s: %(state)s.",
            number=newest.number,
            state=round_words(newest),
        )
    elif settings.auto_rounds:
        watched = _("It tunes the model on what was picked. It starts by itself when enough is picked.")
    else:
        watched = _("It tunes the model on what was picked. An admin starts it.")
    changed = (
        _("Compare the explanations of the two versions, prompt by prompt, and their scores.")
        if made
        else _(
            "Compare the explanations of the two versions, prompt by prompt, and their scores. "
            "There is something to see once the round is done."
        )
    )
    return (
        StepView(
            _("Judge some prompts"),
            judged,
            f"/annotate/{project.slug}" if frame.may_judge else "",
            newest is not None or fresh >= settings.round_every,
        ),
        StepView(
            _("Watch the training round start"),
            watched,
            f"{base}/rounds/{newest.number}" if newest else base,
            bool(made),
        ),
        StepView(
            _("See what it changed"),
            changed,
            f"{base}/compare" if made else f"{base}/versions",
            False,
        ),
    )


@router.post("/projects/{slug}/checklist/dismiss")
def dismiss(session: SessionDep, who: Poster, slug: str) -> RedirectResponse:
    """Hide the checklist of a project."""
    checklist.dismiss(session, who.actor, managed_project(session, who.actor, slug, Right.administers))
    return back_to(f"/admin/projects/{slug}", "checklist-dismissed")
