"""The versions of a project's model."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from app.errors import NotFound
from app.http.dependencies import SessionDep
from app.models import VersionKind
from app.services.candidates import choosing
from app.services.machine_critics import jobs
from app.services.projects import pauses
from app.services.projects.machine_critic import newest_critic
from app.services.rounds import hand_over, rounds, versions
from app.web.access import Me, Poster, managed_project
from app.web.admin.frame import back_to, frame_of
from app.web.admin.next_steps import NextStep, next_round_step
from app.web.admin.rounds.lineage import Lineage, lineage
from app.web.admin.rounds.machine_critics import (
    CriticCard,
    JobNote,
    PauseNote,
    SelectionCard,
    critic_cards,
    job_note,
    pause_note,
    selection_card,
)
from app.web.admin.rounds.scores import VersionRow, metric_of, score_chart, scores_by_id, version_rows
from app.web.charts import Chart
from app.web.errors import wants_fragment
from app.web.rendering import live, page
from illume.phrases import _

router = APIRouter()


@dataclass(frozen=True, slots=True)
class VersionsView:
    """The versions with their lineage."""

    slug: str
    may_manage: bool
    may_review: bool
    metric: str
    chart: Chart | None
    lineage: Lineage | None
    versions: tuple[VersionRow, ...]
    untrained: bool
    step: NextStep | None
    engine_notes: tuple[str, ...]
    critics: tuple[CriticCard, ...]
    critic_job: JobNote | None
    critic_pause: PauseNote | None
    selection: SelectionCard | None


@router.get("/projects/{slug}/versions")
def show(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """List the versions, newest first."""
    frame = frame_of(request, session, who, slug, tab="Versions", title=_("Versions"))
    known = versions.list_versions(session, who.actor, frame.project)
    made_by = {one.id: one for one in rounds.list_rounds(session, who.actor, frame.project, limit=1000).items}
    active = frame.project.active_version_id
    untrained = all(one.round_id is None for one in known)
    rating = newest_critic(session, frame.project)
    pause = None if rating is None else pauses.current_pause(session, frame.project, rating.id)
    view = VersionsView(
        slug=slug,
        may_manage=frame.may_manage,
        may_review=frame.may_review,
        metric=metric_of(known),
        chart=score_chart(known, active),
        lineage=lineage(known, scores_by_id(known), active),
        versions=version_rows(known, made_by, active),
        untrained=untrained,
        step=next_round_step(session, frame) if untrained else None,
        engine_notes=hand_over.notes_of(session, frame.project) if frame.may_manage else (),
        critics=critic_cards(versions.list_versions(session, who.actor, frame.project, kind=VersionKind.critic)),
        critic_job=job_note(jobs.newest_job(session, who.actor, frame.project), may_manage=frame.may_manage),
        critic_pause=pause_note(pause, may_manage=frame.may_manage),
        selection=selection_card(choosing.load_effect(session, who.actor, frame.project)),
    )
    if wants_fragment(request):
        return live(request, "admin/rounds/versions.html", "live", shell=frame.shell, view=view)
    return page("admin/rounds/versions.html", shell=frame.shell, view=view)


@router.post("/projects/{slug}/versions/{number}/activate")
def activate(session: SessionDep, who: Poster, slug: str, number: int) -> RedirectResponse:
    """Activate a version."""
    project = managed_project(session, who.actor, slug)
    for version in versions.list_versions(session, who.actor, project, kind=None):
        if version.number == number:
            versions.activate(session, who.actor, version.id)
            is_active = project.active_version_id == version.id
            return back_to(f"/admin/projects/{slug}/versions", "activated" if is_active else "handing-over")
    raise NotFound(_("There is no version %(number)s in this project.", number=number))


@router.post("/projects/{slug}/machine-critic/cancel")
def cancel_critic(session: SessionDep, who: Poster, slug: str) -> RedirectResponse:
    """Stop the training of a machine critic."""
    jobs.cancel(session, who.actor, managed_project(session, who.actor, slug))
    return back_to(f"/admin/projects/{slug}/versions", "critic-stopped")
