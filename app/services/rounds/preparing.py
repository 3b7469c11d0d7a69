"""Preparing a round: a worker makes the snapshot of what stood when the round was started.

Everything is read and written in short transactions, so that it holds nobody up however large the project is, and every
one that writes matches the fence of the claim. Killed at any moment it is begun anew by the next worker, from the same
position: the rows are the same again.
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
from app.errors import Conflict
from app.models import ModelVersion, Project, Prompt, Round, SettingRevision, Snapshot, SnapshotKind, StoreRemoval
from app.services.acceptance.rules import Moment
from app.services.kernel.actors import SYSTEM
from app.services.kernel.leases import ROUNDS, LeaseLostError
from app.services.projects.projects import parse_settings
from app.services.rounds import lease, snapshots
from app.services.rounds.lease import RoundClaim
from app.services.rounds.rounds import NOTHING_ACCEPTED
from app.services.rounds.row_files import Report, ignore
from app.services.rounds.training_set import Choice, in_parts
from app.services.rounds.versions import lock_project


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be prepared."""

    snapshot: Snapshot
    choice: Choice
    parent: ModelVersion


def prepare(claim: RoundClaim, *, report: Report = ignore, session: Session | None = None) -> None:
    """Make the snapshot of a claimed round, and leave the round to a worker with a device.

    `report` is told the share that is done, and may raise to break off. Raises `LeaseLostError`, and `Conflict` where
    nothing of what is accepted can be trained on. With a session it all happens in the one transaction open there.
    """
    with open_session(session) as used:
        order = _read_order(used, claim)
    written = snapshots.make(
        order.snapshot,
        order.choice,
        parent=order.parent,
        check=lambda used: lease.check_held(used, claim),
        report=lambda share: report(0.95 * share),
        session=session,
    )
    if not written.n_of["rationale"]:
        raise Conflict(NOTHING_ACCEPTED.format(count=0), count=0)
    _end_freshness(claim, written.prompt_ids, order.choice.moment, report=report, session=session)
    with open_session(session) as used:
        snapshot = used.get_one(Snapshot, order.snapshot.id)
        if not lease.finish_preparing(used, claim, snapshot.id):
            raise LeaseLostError
        snapshots.finish(used, SYSTEM, snapshot)


def _read_order(session: Session, claim: RoundClaim) -> Order:
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
    choice = Choice(project, settings, moment, snapshots.seed_of(snapshot))
    return Order(snapshot, choice, session.get_one(ModelVersion, found.parent_id))


def _end_freshness(
    claim: RoundClaim, prompt_ids: array[int], moment: Moment, *, report: Report, session: Session | None
) -> None:
    """End the freshness of the prompts in the snapshot; one that became fresh again since the position stays so."""
    position = cast(moment.position, PgSnapshot)
    of_then = or_(Prompt.fresh_xid.is_(None), func.pg_visible_in_snapshot(Prompt.fresh_xid, position))
    done = 0
    for part in in_parts(prompt_ids):
        with open_session(session) as used:
            lease.check_held(used, claim)
            used.execute(
                update(Prompt)
                .where(id_in(Prompt.id, part), Prompt.fresh, of_then)
                .values(fresh=False)
                .execution_options(synchronize_session=False)
            )
        done += len(part)
        report(0.95 + 0.05 * done / len(prompt_ids))


def prepare_anew(session: Session, project_ids: Sequence[int]) -> None:
    """Have the snapshots that are being made in some projects made from nothing once more: something was erased.

    Their workers lose their leases, and what was written so far is forgotten.
    """
    taken = and_(
        Round.project_id.in_(project_ids), Round.snapshot_id.is_(None), ROUNDS.going_on, Round.worker.is_not(None)
    )
    for round_id in ROUNDS.revoke(session, taken):
        queue.send(session, queue.PREPARE_ROUND, round_id)
    begun = select(Snapshot).where(Snapshot.project_id.in_(project_ids), ~Snapshot.prepared)
    for snapshot in session.scalars(begun.with_for_update()):
        keys = {key for key in (snapshot.sha256, snapshot.records_key) if key}
        if keys:
            forget = insert(StoreRemoval).values([{"key": key} for key in sorted(keys)])
            session.execute(forget.on_conflict_do_nothing())
        snapshot.sha256, snapshot.records_key = "", None
    session.flush()
