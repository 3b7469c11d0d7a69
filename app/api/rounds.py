"""Rounds, model versions and snapshots."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy.orm import Session
from starlette.responses import StreamingResponse

from app.api.schemas import (
    CriticPauseOut,
    HandOverOut,
    IntervalOut,
    LeftOut,
    Limit,
    ListOut,
    MachineAcceptsOut,
    MachineCriticOut,
    RoundOut,
    SelectionEffectOut,
    SnapshotIn,
    SnapshotOut,
    VersionOut,
)
from app.errors import NotFound
from app.http.dependencies import ActorDep, ApiRoute, SessionDep, before_body, in_project
from app.http.ranges import stored_file
from app.http.responses import Json
from app.models import ModelVersion, Project, Round, RoundTrigger, Snapshot
from app.services.candidates import choosing
from app.services.kernel.actors import Actor, parse_id, project_rights
from app.services.kernel.paging import slice_page
from app.services.kernel.rights import Right
from app.services.kernel.store import get_store
from app.services.kernel.visible_fields import AnswerShape, shown_to
from app.services.machine_critics import accepting, jobs
from app.services.machine_critics.accepting import AcceptedCounts
from app.services.projects import pauses, projects
from app.services.projects.machine_critic import newest_critic
from app.services.rounds import hand_over, rounds, snapshots, versions

router = APIRouter(tags=["rounds"], route_class=ApiRoute)


def round_json(
    session: Session, actor: Actor, found: Round, losses: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """A round as the actor may see it; `losses` are the points of its curve."""
    body = RoundOut(
        id=str(found.id),
        number=found.number,
        state=found.state,
        progress=found.progress,
        trigger=found.trigger,
        snapshot=None if found.snapshot_id is None else str(found.snapshot_id),
        parent=str(found.parent_id),
        version=None if found.version_id is None else str(found.version_id),
        losses=losses,
        metrics={name: value for name, value in found.metrics.items() if name != "left_out"},
        decision=rounds.decision_of(found),
        left_out=[LeftOut(**entry) for entry in found.metrics.get("left_out", ())],
        error=found.error,
        created_at=found.created_at,
        started_at=found.started_at,
        finished_at=found.finished_at,
    ).model_dump(mode="json")
    return shown_to(project_rights(session, actor, session.get_one(Project, found.project_id)), AnswerShape.round, body)


def losses_of(session: Session, found: Round) -> list[dict[str, Any]]:
    """The points of a round's curves, in order."""
    events = rounds.events(session, found)
    return [{"kind": event.kind, **event.data} for event in events if event.kind in ("step", "epoch")]


@router.get("/projects/{slug}/rounds", response_model=ListOut[RoundOut])
def list_rounds(session: SessionDep, actor: ActorDep, slug: str, limit: Limit = 100, cursor: str | None = None) -> Json:
    """The rounds of a project, newest first, without their curves."""
    project = projects.get_project(session, actor, slug)
    page = rounds.list_rounds(session, actor, project, limit=limit, cursor=cursor)
    return Json({"items": [round_json(session, actor, found) for found in page.items], "next": page.next})


@router.post("/projects/{slug}/rounds", status_code=202, response_model=RoundOut)
def start_round(session: SessionDep, actor: ActorDep, slug: str) -> Json:
    """Start a round of all that is accepted by now; 409 with the count when that is nothing.

    `snapshot` is null until a worker has made it of what stood at this moment.
    """
    project = projects.get_project(session, actor, slug)
    started = rounds.start(session, actor, project, trigger=RoundTrigger.manual)
    return Json(round_json(session, actor, started, losses=[]), status_code=202)


@router.get("/projects/{slug}/rounds/preview")
def preview_round(session: SessionDep, actor: ActorDep, slug: str) -> dict[str, Any]:
    """What a round started now would train on, and about how long it would take.

    With more than 5,000 train prompts in use, `exact` is false: the numbers are estimates, and `rejections` and `pairs`
    null.
    """
    project = projects.get_project(session, actor, slug)
    seen = rounds.preview(session, actor, project)
    return {
        "prompts": seen.n_prompts,
        "rationales": seen.n_rationales,
        "guard": seen.n_guard,
        "val": seen.n_val,
        "heldout": seen.n_heldout,
        "rejections": seen.n_rejections,
        "pairs": seen.n_pairs,
        "machine": seen.n_machine,
        "metric": seen.metric,
        "estimated_seconds": seen.estimated_seconds,
        "exact": seen.exact,
    }


@router.get("/rounds/{round_id}", response_model=RoundOut)
def get_round(session: SessionDep, actor: ActorDep, round_id: str) -> Json:
    """A round with its curves."""
    found = rounds.get_round(session, actor, parse_id(round_id))
    return Json(round_json(session, actor, found, losses_of(session, found)))


@router.post("/rounds/{round_id}/cancel", status_code=202, response_model=RoundOut)
def cancel_round(session: SessionDep, actor: ActorDep, round_id: str) -> Json:
    """Stop a round."""
    found = rounds.cancel(session, actor, parse_id(round_id))
    return Json(round_json(session, actor, found), status_code=202)


@router.post("/rounds/{round_id}/retry", status_code=202, response_model=RoundOut)
def retry_round(session: SessionDep, actor: ActorDep, round_id: str) -> Json:
    """Let a failed or cancelled round go on from its last checkpoint."""
    found = rounds.retry(session, actor, parse_id(round_id))
    return Json(round_json(session, actor, found), status_code=202)


@router.post("/rounds/{round_id}/rerun", status_code=202, response_model=RoundOut)
def rerun_round(session: SessionDep, actor: ActorDep, round_id: str) -> Json:
    """Run a round again from its snapshot, as a new one."""
    found = rounds.rerun(session, actor, parse_id(round_id))
    return Json(round_json(session, actor, found, losses=[]), status_code=202)


def version_out(session: Session, actor: Actor, version: ModelVersion, project: Project) -> VersionOut:
    """A version, whether it is the active one, and how it is handed over to the project's model server."""
    return VersionOut(
        id=str(version.id),
        number=version.number,
        kind=version.kind.value,
        active=project.active_version_id == version.id,
        parent=None if version.parent_id is None else str(version.parent_id),
        round=None if version.round_id is None else str(version.round_id),
        base_model=version.base_model,
        metrics=version.metrics,
        hand_over=hand_over_out(session, actor, version, project),
        created_at=version.created_at,
    )


def hand_over_out(session: Session, actor: Actor, version: ModelVersion, project: Project) -> HandOverOut | None:
    """How a version is handed over. Why it failed may name a folder, and is for admins of the project."""
    engine = hand_over.engine_of(session, project)
    found = None if engine is None else hand_over.newest_adapter(session, engine, version)
    if found is None:
        return None
    may_see = Right.administers in project_rights(session, actor, project)
    return HandOverOut(name=found.name, state=found.state, error=found.error if may_see else None)


@router.get("/projects/{slug}/versions")
def list_versions(
    session: SessionDep, actor: ActorDep, slug: str, limit: Limit = 100, cursor: str | None = None
) -> ListOut[VersionOut]:
    """The versions of a project, newest first; those of the kind `critic` are machine critics."""
    project = projects.get_project(session, actor, slug)
    found = versions.list_versions(session, actor, project, kind=None)
    page = slice_page(found, lambda version: -version.number, limit=limit, cursor=cursor)
    return ListOut(items=[version_out(session, actor, version, project) for version in page.items], next=page.next)


@router.get("/versions/{version_id}")
def get_version(session: SessionDep, actor: ActorDep, version_id: str) -> VersionOut:
    """A version."""
    version = versions.get_version(session, actor, parse_id(version_id))
    return version_out(session, actor, version, session.get_one(Project, version.project_id))


@router.post("/versions/{version_id}/activate")
def activate_version(session: SessionDep, actor: ActorDep, version_id: str) -> VersionOut:
    """Make a version the one that writes candidates; an older one is a roll-back."""
    version = versions.activate(session, actor, parse_id(version_id))
    return version_out(session, actor, version, session.get_one(Project, version.project_id))


@router.get("/versions/{version_id}/adapter", response_class=StreamingResponse)
def get_adapter(request: Request, session: SessionDep, actor: ActorDep, version_id: str) -> StreamingResponse:
    """A version's adapter as a tar archive that peft loads once it is unpacked. Needs the role reviewer."""
    version, key = versions.adapter_of(session, actor, parse_id(version_id))
    if not get_store().has(key):
        raise NotFound(f"The adapter of version {version.number} is not in the store any more.")
    project = session.get_one(Project, version.project_id)
    name = f"{project.slug}-v{version.number}.tar"
    return stored_file(request.headers, key, etag=f'"{key}"', name=name, media_type="application/x-tar")


@router.get("/projects/{slug}/machine-critic")
def get_machine_critic(session: SessionDep, actor: ActorDep, slug: str) -> MachineCriticOut:
    """The newest training of a machine critic, and the version that rates candidates now."""
    project = projects.get_project(session, actor, slug)
    return machine_critic_out(session, actor, project)


def machine_critic_out(session: Session, actor: Actor, project: Project) -> MachineCriticOut:
    """How it stands with a project's machine critic."""
    job, critic = jobs.newest_job(session, actor, project), newest_critic(session, project)
    pause = None if critic is None else pauses.current_pause(session, project, critic.id)
    may_mend = Right.administers in project_rights(session, actor, project)
    effect = choosing.load_effect(session, actor, project)
    accepts = accepting.load_counts(session, actor, project)
    return MachineCriticOut(
        version=None if critic is None else str(critic.id),
        paused=None if pause is None else CriticPauseOut(until=pause.until, reason=pause.reason if may_mend else None),
        selection=None if effect is None else SelectionEffectOut.model_validate(effect),
        accepts=None if accepts is None else machine_accepts_out(accepts),
        state=None if job is None else job.state.value,
        kind=None if job is None else job.kind,
        progress={} if job is None else job.progress,
        error=None if job is None else job.error,
    )


def machine_accepts_out(found: AcceptedCounts) -> MachineAcceptsOut:
    """What people and a machine critic have accepted, and from which score on the machine does."""
    standing = found.standing
    return MachineAcceptsOut(
        people=found.people,
        machine=found.machine,
        score=standing.score,
        precision=None if standing.shown is None else IntervalOut.model_validate(standing.shown),
        reason=str(standing.reason) or None,
    )


@router.post("/projects/{slug}/machine-critic/cancel", status_code=202)
def cancel_machine_critic(session: SessionDep, actor: ActorDep, slug: str) -> MachineCriticOut:
    """Stop the training of a machine critic."""
    project = projects.get_project(session, actor, slug, Right.administers)
    jobs.cancel(session, actor, project)
    return machine_critic_out(session, actor, project)


def snapshot_out(snapshot: Snapshot) -> SnapshotOut:
    """A snapshot without its rows."""
    return SnapshotOut.model_validate(snapshot)


@router.get("/projects/{slug}/snapshots")
def list_snapshots(
    session: SessionDep, actor: ActorDep, slug: str, limit: Limit = 100, cursor: str | None = None
) -> ListOut[SnapshotOut]:
    """The snapshots of a project, newest first."""
    project = projects.get_project(session, actor, slug)
    page = snapshots.list_snapshots(session, actor, project, limit=limit, cursor=cursor)
    return ListOut(items=[snapshot_out(snapshot) for snapshot in page.items], next=page.next)


@router.post("/projects/{slug}/snapshots", status_code=201)
@before_body(in_project(Right.administers))
def take_snapshot(session: SessionDep, actor: ActorDep, slug: str, body: SnapshotIn | None = None) -> SnapshotOut:
    """Freeze what a round would use at this moment."""
    project = projects.get_project(session, actor, slug, Right.administers)
    versions.lock_project(session, project)
    name = "" if body is None else body.name
    return snapshot_out(snapshots.freeze(session, actor, project, name=name))


@router.get("/snapshots/{snapshot_id}")
def get_snapshot(session: SessionDep, actor: ActorDep, snapshot_id: str) -> SnapshotOut:
    """A snapshot; its rows are the project's dataset with `snapshot` set."""
    return snapshot_out(snapshots.get_snapshot(session, actor, parse_id(snapshot_id)))
