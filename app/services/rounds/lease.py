"""Rounds as a worker sees them: claim, heartbeat, progress, result. Every write checks the claim's fencing token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import and_, case, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app import queue
from app.models import ModelVersion, Project, Round, RoundEvent, RoundState, Snapshot
from app.services.kernel import audit
from app.services.kernel.actors import SYSTEM
from app.services.kernel.leases import ROUNDS, lapsed
from app.services.rounds import comparisons, versions
from app.services.rounds.rounds import notify_finished, task_of, workload
from app.services.rounds.snapshots import plan_of
from illume.phrases import _, followed_by, kept, stored_of

MAX_TRIES = 5
"""How often a round may be claimed without finishing an epoch before it fails."""

HANDED_OVER = _("It becomes active once the model server has loaded it.")

RUNNING = (RoundState.preparing, RoundState.training, RoundState.evaluating)


@dataclass(frozen=True, slots=True)
class RoundClaim:
    """A round that this worker has claimed. `fence` is the fencing token that every write checks.

    `name` is for people: the number of the round and the project.
    """

    round_id: int
    fence: int
    project_id: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class RoundResult:
    """The result of a round. `adapter` is the best epoch's adapter, as a key of the store.

    `metrics` are stored with the version: `score` (the primary metric), `means` of every score, the parent's under
    `parent`, and the paired intervals of new - parent under `change`. `left_out` lists the prompts that
    the model could not read. `seconds` is the duration of a run that was not interrupted.
    """

    adapter: str
    activate: bool
    reason: str
    decision: dict[str, Any]
    metrics: dict[str, Any]
    prompts_hash: str
    settings_hash: str
    scores: dict[str, Any] = field(default_factory=dict)
    parent_scores: dict[str, Any] = field(default_factory=dict)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Beat:
    """The result of a heartbeat: whether the lease is still held, and whether the round should be cancelled."""

    held: bool
    cancelling: bool


def claim_round(session: Session, *, worker: str, prepared: bool = True) -> RoundClaim | None:
    """Claim the oldest round that waits for a worker or whose lease has lapsed. None if there is none.

    Rounds that something went wrong with come after all others, the least often claimed one first.
    With `prepared`, rounds that have their snapshot and need a device; else rounds without a snapshot. A round that
    should be cancelled and has no live worker is cancelled. A round that was claimed `MAX_TRIES` times without progress
    fails.
    """
    while True:
        troubles = case((Round.error.is_(None), 0), else_=Round.fence)
        locked = ROUNDS.lock_free(session, claimable(prepared=prepared), order_by=[troubles, Round.id.asc()])
        if not locked:
            return None
        [found] = locked
        if found.state == RoundState.cancelling:
            _end(session, found, RoundState.cancelled)
            continue
        if found.tries >= MAX_TRIES:
            known = kept(found.error, found.error_phrase)
            error = _(
                "Stopped %(count)s times without progress: %(reason)s.",
                count=found.tries,
                reason=known or _("its worker or process was stopped each time"),
            )
            _end(session, found, RoundState.failed, error=error)
            continue
        started_at = func.coalesce(Round.started_at, func.now())
        [claimed] = ROUNDS.claim(
            session, Round.id == found.id, worker=worker, started_at=started_at, state=RoundState.preparing
        )
        slug = session.scalars(select(Project.slug).where(Project.id == claimed.project_id)).one()
        name = _("training round %(number)s of %(slug)s", number=claimed.number, slug=slug)
        return RoundClaim(claimed.id, claimed.fence, claimed.project_id, name)


def claimable(*, prepared: bool) -> Any:
    """SQL condition: rounds that a worker may claim, with or without a snapshot."""
    return and_(
        Round.snapshot_id.is_not(None) if prepared else Round.snapshot_id.is_(None),
        or_(
            Round.state == RoundState.queued,
            and_(Round.state.in_((*RUNNING, RoundState.cancelling)), lapsed(Round.beats_at)),
        ),
    )


def is_round_waiting(session: Session) -> bool:
    """Whether a round waits for a worker with a device."""
    return session.scalar(select(Round.id).where(claimable(prepared=True)).limit(1)) is not None


def check_held(session: Session, claim: RoundClaim) -> None:
    """Raise `LeaseLostError` unless the lease is held. It cannot be taken over until the transaction ends."""
    ROUNDS.check(session, claim.round_id, claim.fence)


def beat(
    session: Session,
    claim: RoundClaim,
    *,
    state: RoundState | None = None,
    progress: dict[str, Any] | None = None,
    advanced: bool = False,
) -> Beat:
    """Renew the lease and store the progress. `advanced`: an epoch was finished since the last heartbeat."""
    values: dict[str, Any] = {}
    if progress is not None:
        values["progress"] = progress
    if advanced:
        values["tries"] = 1
    if not ROUNDS.beat(session, claim.round_id, claim.fence, **values):
        return Beat(held=False, cancelling=False)
    now = session.scalar(select(Round.state).where(Round.id == claim.round_id))
    if now == RoundState.cancelling:
        return Beat(held=True, cancelling=True)
    if state is not None and now != state:
        session.execute(
            update(Round)
            .where(ROUNDS.has_fence(claim.round_id, claim.fence), Round.state.in_(RUNNING))
            .values(state=state)
            .execution_options(synchronize_session=False)
        )
    return Beat(held=True, cancelling=False)


def _lock_claimed(session: Session, claim: RoundClaim) -> Round | None:
    """Lock the project, then the claimed round. None if the lease was lost or the round has ended."""
    project = session.get_one(Project, claim.project_id)
    versions.lock_project(session, project)
    return ROUNDS.lock(session, claim.round_id, claim.fence)


def add_events(session: Session, claim: RoundClaim, events: Sequence[tuple[int, dict[str, Any]]]) -> bool:
    """Store numbered lines of the round's event file. Storing a line again replaces it. Returns False if not held."""
    owned = session.scalar(
        select(Round.id).where(ROUNDS.has_fence(claim.round_id, claim.fence)).with_for_update(read=True)
    )
    if owned is None:
        return False
    rows = [
        {"round_id": claim.round_id, "position": position, "kind": str(data.get("kind", "log"))[:16], "data": data}
        for position, data in events
    ]
    if rows:
        statement = insert(RoundEvent).values(rows)
        session.execute(
            statement.on_conflict_do_update(
                index_elements=[RoundEvent.round_id, RoundEvent.position],
                set_={"kind": statement.excluded.kind, "data": statement.excluded.data},
            ).execution_options(synchronize_session=False)
        )
    return True


def delete_events(session: Session, claim: RoundClaim) -> None:
    """Delete the events of an earlier run, when the round starts from the beginning."""
    owned = select(Round.id).where(ROUNDS.has_fence(claim.round_id, claim.fence))
    session.execute(
        delete(RoundEvent)
        .where(RoundEvent.round_id == claim.round_id, owned.exists())
        .execution_options(synchronize_session=False)
    )


# Ending


def finish_preparing(session: Session, claim: RoundClaim, snapshot_id: int) -> bool:
    """Give the round its snapshot and queue it for a worker with a device. Returns False if the lease was lost."""
    found = _lock_claimed(session, claim)
    if found is None:
        return False
    found.snapshot_id = snapshot_id
    if found.state == RoundState.cancelling:
        _end(session, found, RoundState.cancelled)
        return True
    ROUNDS.release(found)
    found.error, found.tries = None, 0
    found.progress = {"stage": "waiting", "fraction": 0.0, "eta_seconds": None}
    session.flush()
    queue.send(session, queue.RUN_ROUND, found.id)
    return True


def finish(session: Session, claim: RoundClaim, result: RoundResult) -> ModelVersion | None:
    """Register the new version, and activate it if the rule says so and its parent is still active.

    Returns None and writes nothing if the lease was lost. A finished round succeeds even if it was to be cancelled.
    """
    found = _lock_claimed(session, claim)
    if found is None:
        return None
    project = session.get_one(Project, claim.project_id)
    snapshot = session.get_one(Snapshot, found.snapshot_id)
    plan = plan_of(snapshot)
    version = versions.register(
        session,
        project,
        base_model=plan.base_model,
        parent_id=plan.parent_id,
        round_id=found.id,
        adapter=result.adapter,
        metrics=result.metrics,
    )
    for version_id, scores in ((version.id, result.scores), (plan.parent_id, result.parent_scores)):
        if scores:
            versions.keep_scores(
                session,
                version_id,
                prompts_hash=result.prompts_hash,
                settings_hash=result.settings_hash,
                scores=scores,
            )
    overtaken = project.active_version_id != plan.parent_id
    activate = result.activate and not overtaken
    reason = result.reason
    if result.activate and overtaken:
        reason = followed_by(reason, _("Not activated: another version became active during the round."))
    if activate and plan.settings.get("blind_gate"):
        activate = False
        parent = session.get_one(ModelVersion, plan.parent_id)
        reason = followed_by(reason, comparisons.hold_at_gate(session, project, old=parent, new=version))
    found.version_id = version.id
    found.metrics = {**result.metrics, **_measure_duration(result, snapshot)}
    if result.left_out:
        found.metrics["left_out"] = result.left_out
    if activate and not versions.put_in_force(session, SYSTEM, project, version):
        activate = False
        reason = followed_by(reason, HANDED_OVER)
    found.decision = {**result.decision, "activate": activate, "reason": reason}
    found.reason_phrase = stored_of(reason)
    found.progress = {**found.progress, "fraction": 1.0, "eta_seconds": 0}
    _end(session, found, RoundState.succeeded, version=version.number, activated=activate)
    if plan.settings.get("machine_critic", "off") != "off":
        queue.send(session, queue.SWEEP)
    return version


def _measure_duration(result: RoundResult, snapshot: Snapshot) -> dict[str, float]:
    """The duration of the round relative to its work; later rounds are estimated from it."""
    work = workload(snapshot.counts, epochs=snapshot.settings["project"]["epochs"])
    if result.seconds is None or work <= 0:
        return {}
    return {"seconds": round(result.seconds, 1), "seconds_per_work": result.seconds / work}


def fail(session: Session, claim: RoundClaim, error: str) -> bool:
    """End the round as failed, with a reason that helps an admin. Returns False if the lease was lost."""
    found = _lock_claimed(session, claim)
    if found is None:
        return False
    if found.state == RoundState.cancelling:
        _end(session, found, RoundState.cancelled)
    else:
        _end(session, found, RoundState.failed, error=error)
    return True


def finish_cancel(session: Session, claim: RoundClaim) -> bool:
    """End the round as cancelled. Returns False if the lease was lost."""
    found = _lock_claimed(session, claim)
    if found is None:
        return False
    _end(session, found, RoundState.cancelled)
    return True


def release(
    session: Session, claim: RoundClaim, *, error: str | None = None, counts: bool = False, at_once: bool = True
) -> bool:
    """Release the round, to resume elsewhere from its last checkpoint: `at_once`, or when the sweep sends it.

    `counts`: this was a failed try.
    """
    found = _lock_claimed(session, claim)
    if found is None:
        return False
    if found.state == RoundState.cancelling:
        _end(session, found, RoundState.cancelled)
        return True
    ROUNDS.release(found)
    found.state, found.error = RoundState.queued, error
    if not counts:
        found.tries = max(0, found.tries - 1)
    session.flush()
    if at_once:
        queue.send(session, task_of(found), found.id)
    return True


def _end(session: Session, found: Round, state: RoundState, *, error: str | None = None, **noted: Any) -> None:
    found.state, found.error = state, error
    ROUNDS.release(found)
    found.finished_at = func.now()
    session.flush()
    audit.record(
        session, SYSTEM, f"round.{state.value}", f"round:{found.id}", found.project_id, number=found.number, **noted
    )
    notify_finished(session, found)
    queue.send(session, queue.FILL_POOL, found.project_id)
