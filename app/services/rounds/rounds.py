"""Rounds as people see them: preview, start, cancel, retry, rerun, read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Float, cast, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import queue
from app.errors import Conflict, NotFound
from app.models import Project, Round, RoundEvent, RoundState, RoundTrigger, Snapshot, Split
from app.models.states import ACTIVE_ROUND_STATES
from app.services.acceptance.counting import OUT_OF_USE
from app.services.acceptance.positions import current_position
from app.services.acceptance.rules import fresh_count
from app.services.integrations import webhooks
from app.services.kernel import audit, counters, workers
from app.services.kernel.actors import SYSTEM, Actor, require
from app.services.kernel.leases import ROUNDS, held
from app.services.kernel.paging import Page, check_limit, decode_cursor, encode_cursor
from app.services.kernel.rights import Right
from app.services.projects.projects import ProjectSettings, settings_of
from app.services.rounds import snapshots
from app.services.rounds.estimate import size_of
from app.services.rounds.hand_over import why_rounds_are_off
from app.services.rounds.versions import lock_project
from illume.evaluation.activation import reword_reason
from illume.phrases import Phrase, _, kept, ngettext, pgettext

SECONDS_PER_ROW = 0.02
SECONDS_PER_SCORED_PROMPT = 0.35
SECONDS_AT_START = 15.0


TRY_LOCK = "SELECT pg_try_advisory_xact_lock(11, CAST(:project AS int))"


def nothing_accepted(count: int) -> Conflict:
    """The error of a round that has too few accepted explanations to train on."""
    return Conflict(_("Nothing to train on yet: %(count)s accepted explanations.", count=count), count=count)


@dataclass(frozen=True, slots=True)
class RoundPreview:
    """What a round that starts now would train on and be scored on, and its estimated duration.

    `n_rejections` of what was turned down would be learnt from, `n_pairs` of them beside an accepted text. Both are
    None where the objective leaves them out, and in a large project, whose other numbers are estimates: there, `exact`
    is False. `n_machine` rationales only a machine critic accepted; it is None where that is not wanted.
    """

    n_prompts: int
    n_rationales: int
    n_guard: int
    n_val: int
    n_heldout: int
    n_rejections: int | None
    n_pairs: int | None
    n_machine: int | None
    metric: str
    estimated_seconds: float
    exact: bool


def preview(session: Session, actor: Actor, project: Project) -> RoundPreview:
    """Preview a round that would start now."""
    require(session, actor, project, Right.sees_model, Right.sees_others)
    settings = settings_of(session, project)
    size = size_of(session, project, settings)
    counts = size.counts
    return RoundPreview(
        n_prompts=counts["prompts"],
        n_rationales=counts["rationale"],
        n_guard=counts["guard"],
        n_val=counts["val"],
        n_heldout=counts["heldout"],
        n_rejections=counts.get("rejection"),
        n_pairs=counts.get("pairs"),
        n_machine=counts.get("machine"),
        metric=size.metric,
        estimated_seconds=estimate_seconds(session, project, counts, epochs=settings.epochs),
        exact=size.exact,
    )


def estimate_seconds(session: Session, project: Project, counts: dict[str, int], *, epochs: int) -> float:
    """Estimate the seconds of a round from the project's last rounds, else for two cores."""
    work = workload(counts, epochs=epochs)
    took = cast(Round.metrics["seconds_per_work"].astext, Float)
    last = (
        select(took.label("took"))
        .where(
            Round.project_id == project.id,
            Round.state == RoundState.succeeded,
            Round.metrics["seconds_per_work"].astext.is_not(None),
        )
        .order_by(Round.number.desc())
        .limit(3)
        .subquery()
    )
    per_work = session.scalar(select(func.avg(last.c.took)))
    return round(SECONDS_AT_START + work * (per_work or 1.0), 1)


def workload(counts: dict[str, int], *, epochs: int) -> float:
    """The work of a round, in seconds on two cores with the starter model."""
    # A pair is four texts, one of which is not trained on.
    compared = 3 * counts.get("pairs", 0) + counts.get("rejection", 0)
    trained = (counts["rationale"] + counts["guard"] + counts.get("machine", 0) + compared) * epochs * SECONDS_PER_ROW
    # Each epoch is scored once; the best epoch and the parent are scored at the end.
    scored = (counts["val"] + counts["heldout"]) * (epochs + 2) * SECONDS_PER_SCORED_PROMPT / 3
    return trained + scored


# Starting


def start(session: Session, actor: Actor, project: Project, *, trigger: RoundTrigger = RoundTrigger.manual) -> Round:
    """Start a round of all rationales accepted now. Raises `Conflict` if a round is active or nothing is accepted.

    Takes a few statements in a project of any size: a position in the feed fixes the round's content, and a worker
    makes its snapshot.
    """
    require(session, actor, project, Right.administers)
    lock_project(session, project)
    refuse_second(session, project)
    refuse_switched_off(session, project)
    if project.active_version_id is None:
        raise Conflict(_("The project has no active model version."))
    count = accepted_count(session, project)
    if count == 0:
        raise nothing_accepted(count)
    made = _new_round(session, actor, project, trigger=trigger)
    made.position, made.revision_id = current_position(session), project.revision_id
    made.parent_id = project.active_version_id
    _queue(session, actor, made)
    return made


def accepted_count(session: Session, project: Project) -> int:
    """The number of usable train prompts with an accepted rationale."""
    of_train = (one for one in counters.prompt_counts(session, project) if one.split is Split.train)
    return sum(one.n for one in of_train if one.has_accepted and one.state not in OUT_OF_USE)


def refuse_second(session: Session, project: Project) -> None:
    """Raise `Conflict` if the project has an active round."""
    active = active_round(session, project)
    if active is not None:
        raise Conflict(
            _("Training round %(number)s is still running: wait for it to finish or cancel it.", number=active.number),
            round=str(active.id),
        )


def refuse_switched_off(session: Session, project: Project) -> None:
    """Raise `Conflict` if the project's model server runs another model than workers tune."""
    if (why_not := why_rounds_are_off(session, settings_of(session, project))) is not None:
        raise Conflict(why_not)


def _new_round(session: Session, actor: Actor, project: Project, *, trigger: RoundTrigger) -> Round:
    last = session.scalar(select(func.max(Round.number)).where(Round.project_id == project.id)) or 0
    return Round(
        project_id=project.id,
        number=last + 1,
        state=RoundState.queued,
        trigger=trigger,
        progress={},
        metrics={},
        decision={},
        created_by=actor.stored_id,
    )


def _queue(session: Session, actor: Actor, made: Round) -> None:
    _flush_one_active(session, made)
    audit.record(
        session,
        actor,
        "round.start",
        f"round:{made.id}",
        made.project_id,
        number=made.number,
        trigger=made.trigger.value,
    )
    queue.send(session, task_of(made), made.id)


def task_of(waiting: Round) -> str:
    """The task for a waiting round: making its snapshot, or training on it."""
    return queue.PREPARE_ROUND if waiting.snapshot_id is None else queue.RUN_ROUND


def _flush_one_active(session: Session, changed: Round) -> None:
    """Write `changed`; the database allows one active round a project. Raises `Conflict`."""
    try:
        with session.begin_nested():
            session.add(changed)
            session.flush()
    except IntegrityError as error:
        raise Conflict(
            _("A training round of this project is still running: wait for it to finish or cancel it.")
        ) from error


def is_due(session: Session, project: Project, settings: ProjectSettings) -> bool:
    """Whether a round should start by itself."""
    return (
        settings.auto_rounds
        and project.active_version_id is not None
        and active_round(session, project) is None
        and fresh_count(session, project, limit=settings.round_every) >= settings.round_every
        and why_rounds_are_off(session, settings) is None
    )


def start_if_due(session: Session, project_id: int) -> bool:
    """Start a round if enough prompts are fresh and no round is active. Returns whether it did.

    It is cheap and never waits: if another transaction is checking or changing the project, nothing starts, and the
    sweep tries again. Call it after the commit of what may have made the round due: the round contains only committed
    verdicts and those of this transaction.
    """
    project = session.get(Project, project_id)
    if project is None or not is_due(session, project, settings_of(session, project)):
        return False
    free = select(Project.id).where(Project.id == project.id).with_for_update(key_share=True, skip_locked=True)
    if not session.scalar(text(TRY_LOCK), {"project": project_id % 2**31}) or session.scalar(free) is None:
        return False
    session.refresh(project)
    if not is_due(session, project, settings_of(session, project)):  # another transaction was faster
        return False
    start(session, SYSTEM, project, trigger=RoundTrigger.auto)
    return True


def active_round(session: Session, project: Project) -> Round | None:
    """The project's active round, if any."""
    return session.scalar(select(Round).where(Round.project_id == project.id, Round.state.in_(ACTIVE_ROUND_STATES)))


def has_worker(session: Session, running: Round) -> bool:
    """Whether a worker runs this round, or is alive to take it up."""
    if session.scalar(select(Round.id).where(Round.id == running.id, held(Round.beats_at))) is not None:
        return True
    return bool(workers.list_workers(session, queue="default" if running.snapshot_id is None else "model"))


def training_elsewhere(session: Session, project: Project) -> Round | None:
    """A round of another project that a living worker is running on a device."""
    query = select(Round).where(
        Round.project_id != project.id,
        Round.snapshot_id.is_not(None),
        Round.state.in_(ACTIVE_ROUND_STATES),
        held(Round.beats_at),
    )
    return session.scalars(query.order_by(Round.id).limit(1)).first()


# Stopping and trying again


def _round_for_admin(session: Session, actor: Actor, round_id: int) -> tuple[Round, Project]:
    found, project = _find(session, round_id)
    require(session, actor, project, Right.administers)
    lock_project(session, project)
    session.refresh(found, with_for_update=True)
    return found, project


def cancel(session: Session, actor: Actor, round_id: int) -> Round:
    """Cancel a round: at once if no worker runs it, else through its worker. Raises `Conflict` if it has ended."""
    found, project = _round_for_admin(session, actor, round_id)
    state = RoundState(found.state)
    if not state.is_active:
        raise Conflict(
            _("Training round %(number)s has already ended: it %(state)s.", number=found.number, state=ENDED[state])
        )
    if state is RoundState.queued or (state is RoundState.preparing and found.worker is None):
        found.state = RoundState.cancelled
        found.finished_at = func.now()
        notify_finished(session, found)
        queue.send(session, queue.FILL_POOL, project.id)
    elif state is not RoundState.cancelling:
        found.state = RoundState.cancelling
    session.flush()
    session.refresh(found)
    audit.record(session, actor, "round.cancel", f"round:{found.id}", project.id, number=found.number)
    return found


def notify_finished(session: Session, found: Round) -> None:
    """Notify webhooks that a round has ended."""
    payload = {
        "id": str(found.id),
        "number": found.number,
        "state": found.state.value,
        "version": None if found.version_id is None else str(found.version_id),
        "decision": found.decision,
        "error": found.error,
    }
    webhooks.emit(session, found.project_id, webhooks.ROUND_FINISHED, payload)


ENDED = {
    RoundState.cancelled: pgettext("a training round: it", "was cancelled"),
    RoundState.failed: pgettext("a training round: it", "failed"),
    RoundState.succeeded: pgettext("a training round: it", "succeeded"),
}


def retry(session: Session, actor: Actor, round_id: int) -> Round:
    """Resume a failed or cancelled round from its last checkpoint, with its snapshot. Raises `Conflict`.

    A round without a snapshot starts with making it, at the position at which the round was started.
    """
    found, project = _round_for_admin(session, actor, round_id)
    state = RoundState(found.state)
    if state not in (RoundState.failed, RoundState.cancelled):
        standing = pgettext("a training round: it", "is still in progress") if state.is_active else ENDED[state]
        raise Conflict(
            _("Only a failed or cancelled training round can be resumed; this one %(standing)s.", standing=standing)
        )
    refuse_second(session, project)
    refuse_switched_off(session, project)
    refuse_redacted(session, found)
    found.state = RoundState.queued
    ROUNDS.release(found)
    found.error, found.finished_at, found.tries = None, None, 0
    _flush_one_active(session, found)
    audit.record(session, actor, "round.retry", f"round:{found.id}", project.id, number=found.number)
    queue.send(session, task_of(found), found.id)
    return found


def rerun(session: Session, actor: Actor, round_id: int) -> Round:
    """Start a new round with the same snapshot: the same rows, settings, parent and seed. Raises `Conflict`."""
    found, project = _round_for_admin(session, actor, round_id)
    refuse_second(session, project)
    refuse_switched_off(session, project)
    snapshot = refuse_redacted(session, found)
    if snapshot is None:
        raise Conflict(_("Training round %(number)s has no snapshot to rerun: start a new one.", number=found.number))
    made = _new_round(session, actor, project, trigger=RoundTrigger.rerun)
    made.snapshot_id, made.parent_id = snapshot.id, snapshots.plan_of(snapshot).parent_id
    _queue(session, actor, made)
    return made


def refuse_redacted(session: Session, found: Round) -> Snapshot | None:
    """The round's snapshot, or None if it has none yet. Raises `Conflict` if rows of it were erased."""
    if found.snapshot_id is None:
        return None
    snapshot = session.get_one(Snapshot, found.snapshot_id)
    if snapshot.redacted:
        raise Conflict(
            ngettext(
                "%(num)s row of its snapshot has been erased: it can no longer be repeated exactly. Start a new one.",
                "%(num)s rows of its snapshot have been erased: it can no longer be repeated exactly. Start a new one.",
                snapshot.redacted,
            ),
            redacted=snapshot.redacted,
        )
    return snapshot


# Looking


def _find(session: Session, round_id: int) -> tuple[Round, Project]:
    found = session.get(Round, round_id)
    project = session.get(Project, found.project_id) if found is not None else None
    if found is None or project is None:
        raise NotFound(_("There is no such training round."))
    return found, project


def get_round(session: Session, actor: Actor, round_id: int) -> Round:
    """A round. Raises `NotFound` for non-members of its project."""
    found, project = _find(session, round_id)
    require(session, actor, project)
    return found


def decision_of(found: Round) -> dict[str, Any]:
    """The decision on a round's version, with its reason as a phrase where one was stored.

    A reason that was stored in earlier words is put into today's.
    """
    reason = kept(found.decision.get("reason"), found.reason_phrase)
    if not reason:
        return found.decision
    if isinstance(reason, Phrase):
        return {**found.decision, "reason": reason}
    change = found.metrics.get("change") or {}
    return {**found.decision, "reason": reword_reason(reason, change.get("score"))}


def get_round_by_number(session: Session, actor: Actor, project: Project, number: int) -> Round:
    """The round `number` of a project. Raises `NotFound`."""
    require(session, actor, project)
    found = session.scalar(select(Round).where(Round.project_id == project.id, Round.number == number))
    if found is None:
        raise NotFound(_("There is no training round %(number)s in this project.", number=number))
    return found


def list_rounds(
    session: Session, actor: Actor, project: Project, *, limit: int = 100, cursor: str | None = None
) -> Page[Round]:
    """The rounds of a project, newest first."""
    require(session, actor, project)
    check_limit(limit)
    query = select(Round).where(Round.project_id == project.id).order_by(Round.number.desc())
    if cursor is not None:
        query = query.where(Round.number < decode_cursor(cursor, int)[0])
    found = list(session.scalars(query.limit(limit + 1)))
    return Page(found[:limit], encode_cursor(found[limit - 1].number) if len(found) > limit else None)


def events(session: Session, found: Round, *, after: int = 0, limit: int = 10_000) -> list[RoundEvent]:
    """The round's curve points and log lines after position `after`, in order."""
    query = (
        select(RoundEvent)
        .where(RoundEvent.round_id == found.id, RoundEvent.position > after)
        .order_by(RoundEvent.position)
        .limit(limit)
        .execution_options(populate_existing=True)
    )
    return list(session.scalars(query))
