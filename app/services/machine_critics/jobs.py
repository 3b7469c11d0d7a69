"""Jobs that fit a machine critic: when one is due, and how a worker claims, keeps and ends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app import queue
from app.errors import Conflict
from app.models import CriticJob, CriticState, ModelVersion, Project, Round, RoundState, VersionKind
from app.services.kernel import audit
from app.services.kernel.actors import SYSTEM, Actor, require
from app.services.kernel.leases import CRITIC_JOBS, lapsed
from app.services.kernel.rights import Right
from app.services.projects.projects import settings_of
from app.services.rounds.lease import MAX_TRIES, Beat
from app.services.rounds.versions import lock_project, register
from illume.phrases import _, kept

ACTIVE = (CriticState.queued, CriticState.running, CriticState.cancelling)


@dataclass(frozen=True, slots=True)
class CriticClaim:
    """A job that this worker has claimed. `fence` is the fencing token that every write checks."""

    job_id: int
    fence: int
    project_id: int
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class CriticResult:
    """A fitted critic: a key of the store, and what is kept with its version."""

    adapter: str
    base_model: str
    metrics: dict[str, Any]


# When one is due


def start_if_due(session: Session, project: Project) -> CriticJob | None:
    """Queue the job of a project's newest round, if the project wants a critic and has none of this kind for it."""
    kind = settings_of(session, project).machine_critic
    if kind == "off" or project.erased_at is not None:
        return None
    newest = session.scalar(
        select(Round.id)
        .where(Round.project_id == project.id, Round.state == RoundState.succeeded)
        .order_by(Round.number.desc())
        .limit(1)
    )
    if newest is None:
        return None
    done = select(CriticJob.id).where(CriticJob.project_id == project.id, CriticJob.round_id == newest)
    if session.scalar(done.where(CriticJob.kind == kind).limit(1)) is not None:
        return None
    # At most one is active: the unique index decides between workers, and a new one waits for the one before it.
    made = session.scalar(
        insert(CriticJob)
        .values(project_id=project.id, round_id=newest, kind=kind)
        .on_conflict_do_nothing()
        .returning(CriticJob)
    )
    if made is not None:
        audit.record(session, SYSTEM, "machine_critic.start", f"machine_critic:{made.id}", project.id, kind=kind)
    return made


def list_due(session: Session) -> list[int]:
    """Queue the jobs that are due, and list those that wait for a worker."""
    for project in session.scalars(select(Project).where(Project.erased_at.is_(None)).order_by(Project.id)):
        start_if_due(session, project)
    return list(session.scalars(select(CriticJob.id).where(_claimable()).order_by(CriticJob.id)))


def _claimable() -> Any:
    going_on = CriticJob.state.in_((CriticState.running, CriticState.cancelling))
    return or_(CriticJob.state == CriticState.queued, and_(going_on, lapsed(CriticJob.beats_at)))


# What a worker does


def is_waiting(session: Session) -> bool:
    """Whether a job waits for a worker."""
    return session.scalar(select(CriticJob.id).where(_claimable()).limit(1)) is not None


def claim_job(session: Session, *, worker: str) -> CriticClaim | None:
    """Claim the oldest job that waits. One that was claimed too often without an end fails."""
    while True:
        locked = CRITIC_JOBS.lock_free(session, _claimable(), order_by=[CriticJob.id.asc()])
        if not locked:
            return None
        [found] = locked
        if found.state is CriticState.cancelling:
            _end(session, found, CriticState.cancelled)
            continue
        if found.tries >= MAX_TRIES:
            known = kept(found.error, found.error_phrase)
            error = _(
                "Stopped %(count)s times: %(reason)s.",
                count=found.tries,
                reason=known or _("its worker or process was stopped each time"),
            )
            _end(session, found, CriticState.failed, error=error)
            continue
        [claimed] = CRITIC_JOBS.claim(session, CriticJob.id == found.id, worker=worker, state=CriticState.running)
        slug = session.scalars(select(Project.slug).where(Project.id == claimed.project_id)).one()
        name = _("the machine critic of %(slug)s", slug=slug)
        return CriticClaim(claimed.id, claimed.fence, claimed.project_id, claimed.kind, name)


def beat(
    session: Session,
    claim: CriticClaim,
    *,
    state: RoundState | None = None,  # noqa: ARG001 - as for rounds
    progress: dict[str, Any] | None = None,
    advanced: bool = False,  # noqa: ARG001 - as for rounds
) -> Beat:
    """Renew the lease and store the progress."""
    values = {} if progress is None else {"progress": progress}
    if not CRITIC_JOBS.beat(session, claim.job_id, claim.fence, **values):
        return Beat(held=False, cancelling=False)
    now = session.scalar(select(CriticJob.state).where(CriticJob.id == claim.job_id))
    return Beat(held=True, cancelling=now is CriticState.cancelling)


def finish(session: Session, claim: CriticClaim, result: CriticResult) -> ModelVersion | None:
    """Register the critic as a version that is never active. None if the lease was lost."""
    project = session.get_one(Project, claim.project_id)
    lock_project(session, project)
    found = CRITIC_JOBS.lock(session, claim.job_id, claim.fence)
    if found is None:
        return None
    version = register(
        session,
        project,
        base_model=result.base_model,
        parent_id=_base_version(session, project, result.base_model),
        round_id=found.round_id,
        adapter=result.adapter,
        metrics=result.metrics,
        kind=VersionKind.critic,
    )
    found.version_id = version.id
    _end(session, found, CriticState.succeeded, version=version.number)
    queue.send(session, queue.SCORE_CANDIDATES, project.id)
    return version


def _base_version(session: Session, project: Project, base_model: str) -> int | None:
    """The version that is the base model itself."""
    bases = select(ModelVersion.id).where(ModelVersion.project_id == project.id, ModelVersion.parent_id.is_(None))
    newest_first = bases.order_by(ModelVersion.number.desc()).limit(1)
    return session.scalar(newest_first.where(ModelVersion.base_model == base_model))


def fail(session: Session, claim: CriticClaim, error: str) -> bool:
    """End the job as failed, with a reason that helps an admin. False if the lease was lost."""
    found = CRITIC_JOBS.lock(session, claim.job_id, claim.fence)
    if found is None:
        return False
    if found.state is CriticState.cancelling:
        _end(session, found, CriticState.cancelled)
    else:
        _end(session, found, CriticState.failed, error=error)
    return True


def finish_cancel(session: Session, claim: CriticClaim) -> bool:
    """End the job as cancelled. False if the lease was lost."""
    found = CRITIC_JOBS.lock(session, claim.job_id, claim.fence)
    if found is None:
        return False
    _end(session, found, CriticState.cancelled)
    return True


def release(session: Session, claim: CriticClaim, *, error: str | None = None, counts: bool = False) -> bool:
    """Release the job, to go on elsewhere or later. `counts`: this was a failed try. False if the lease was lost."""
    found = CRITIC_JOBS.lock(session, claim.job_id, claim.fence)
    if found is None:
        return False
    if found.state is CriticState.cancelling:
        _end(session, found, CriticState.cancelled)
        return True
    CRITIC_JOBS.release(found)
    found.state, found.error = CriticState.queued, error
    if not counts:
        found.tries = max(0, found.tries - 1)
    session.flush()
    return True


def _end(session: Session, found: CriticJob, state: CriticState, *, error: str | None = None, **noted: Any) -> None:
    found.state, found.error = state, error
    CRITIC_JOBS.release(found)
    found.finished_at = func.now()
    session.flush()
    audit.record(
        session, SYSTEM, f"machine_critic.{state.value}", f"machine_critic:{found.id}", found.project_id, **noted
    )


# What people do


def newest_job(session: Session, actor: Actor, project: Project) -> CriticJob | None:
    """The newest job of a project."""
    require(session, actor, project, Right.sees_model)
    query = select(CriticJob).where(CriticJob.project_id == project.id).order_by(CriticJob.id.desc()).limit(1)
    return session.scalar(query)


def cancel(session: Session, actor: Actor, project: Project) -> CriticJob:
    """Cancel the job that is going on. Raises `Conflict` if there is none."""
    require(session, actor, project, Right.administers)
    active = select(CriticJob).where(CriticJob.project_id == project.id, CriticJob.state.in_(ACTIVE))
    found = session.scalar(active.with_for_update())
    if found is None:
        raise Conflict(_("No machine critic is being trained."))
    if found.state is CriticState.queued:
        found.state, found.finished_at = CriticState.cancelled, func.now()
    else:
        found.state = CriticState.cancelling
    session.flush()
    audit.record(session, actor, "machine_critic.cancel", f"machine_critic:{found.id}", project.id)
    return found
