"""Preparing a round: a worker makes the snapshot of the moment at which the round was started.

It reads and writes in short transactions, so that it blocks nobody in a large project. Every write checks the claim's
fencing token. If the worker is killed, the next one starts again from the same position and gets the same rows.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, cast, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app import queue
from app.db.sessions import id_in, open_session
from app.db.types import PgSnapshot
from app.models import ModelVersion, Project, Prompt, Round, SettingRevision, Snapshot, SnapshotKind, StoreRemoval
from app.services.acceptance.rules import Moment
from app.services.kernel.actors import SYSTEM
from app.services.kernel.leases import ROUNDS, LeaseLostError
from app.services.projects.projects import parse_settings
from app.services.rounds import lease, snapshots
from app.services.rounds.lease import RoundClaim
from app.services.rounds.rounds import nothing_accepted
from app.services.rounds.row_files import Report, ignore
from app.services.rounds.training_set import RowSelection, split_batches
from app.services.rounds.versions import lock_project


@dataclass(frozen=True, slots=True)
class PreparationInputs:
    """The snapshot to make, how its rows are selected, and the parent version."""

    snapshot: Snapshot
    selection: RowSelection
    parent: ModelVersion


def prepare(claim: RoundClaim, *, report: Report = ignore, session: Session | None = None) -> None:
    """Make the snapshot of a claimed round, and queue the round for a worker with a device.

    `report` gets the share that is done, and may raise to abort. Raises `LeaseLostError`, and `Conflict` if none of the
    accepted rationales can be trained on. With `session`, everything happens in its open transaction.
    """
    with open_session(session) as used:
        inputs = _read_inputs(used, claim)
    written = snapshots.make(
        inputs.snapshot,
        inputs.selection,
        parent=inputs.parent,
        check=lambda used: lease.check_held(used, claim),
        report=lambda share: report(0.95 * share),
        session=session,
    )
    if not written.n_of["rationale"]:
        raise nothing_accepted(0)
    _clear_fresh(claim, written.prompt_ids, inputs.selection.moment, report=report, session=session)
    with open_session(session) as used:
        snapshot = used.get_one(Snapshot, inputs.snapshot.id)
        if not lease.finish_preparing(used, claim, snapshot.id):
            raise LeaseLostError
        snapshots.finish(used, SYSTEM, snapshot)


def _read_inputs(session: Session, claim: RoundClaim) -> PreparationInputs:
    project = session.get_one(Project, claim.project_id)
    lock_project(session, project)
    lease.check_held(session, claim)
    found = session.get_one(Round, claim.round_id, populate_existing=True)
    if found.position is None or found.revision_id is None:
        raise LeaseLostError
    snapshot = snapshots.begin(
        session, project, kind=SnapshotKind.round, created_by=found.created_by, created_at=found.created_at
    )
    settings = parse_settings(session.get_one(SettingRevision, found.revision_id).settings)
    moment = Moment(found.position, found.revision_id)
    selection = RowSelection(project, settings, moment, snapshots.seed_of(snapshot))
    return PreparationInputs(snapshot, selection, session.get_one(ModelVersion, found.parent_id))


def _clear_fresh(
    claim: RoundClaim, prompt_ids: array[int], moment: Moment, *, report: Report, session: Session | None
) -> None:
    """Clear `fresh` for the prompts in the snapshot, unless they became fresh again after its position."""
    position = cast(moment.position, PgSnapshot)
    was_fresh = or_(Prompt.fresh_xid.is_(None), func.pg_visible_in_snapshot(Prompt.fresh_xid, position))
    done = 0
    for part in split_batches(prompt_ids):
        with open_session(session) as used:
            lease.check_held(used, claim)
            used.execute(
                update(Prompt)
                .where(id_in(Prompt.id, part), Prompt.fresh, was_fresh)
                .values(fresh=False)
                .execution_options(synchronize_session=False)
            )
        done += len(part)
        report(0.95 + 0.05 * done / len(prompt_ids))


def restart_preparation(session: Session, project_ids: Sequence[int]) -> None:
    """Restart the preparation of unfinished snapshots in some projects, because something was erased.

    Their workers lose their leases, and the files written so far are removed.
    """
    interrupted = and_(
        Round.project_id.in_(project_ids), Round.snapshot_id.is_(None), ROUNDS.going_on, Round.worker.is_not(None)
    )
    for round_id in ROUNDS.revoke(session, interrupted):
        queue.send(session, queue.PREPARE_ROUND, round_id)
    unfinished = select(Snapshot).where(Snapshot.project_id.in_(project_ids), ~Snapshot.prepared)
    for snapshot in session.scalars(unfinished.with_for_update()):
        keys = {key for key in (snapshot.sha256, snapshot.records_key) if key}
        if keys:
            removal = insert(StoreRemoval).values([{"key": key} for key in sorted(keys)])
            session.execute(removal.on_conflict_do_nothing())
        snapshot.sha256, snapshot.records_key = "", None
    session.flush()
