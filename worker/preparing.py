"""Prepares rounds: makes the snapshots that rounds wait for. This needs no device."""

from __future__ import annotations

import logging

from sqlalchemy.exc import IntegrityError

from app.db.sessions import session_scope
from app.errors import DomainError
from app.services.kernel.leases import LeaseLostError
from app.services.kernel.store import StoreAway
from app.services.rounds import lease, preparing
from app.services.rounds.lease import RoundClaim
from illume.phrases import _, said_by
from worker.process import AWAY, DATABASE_AWAY, Stopping, WorkerProcess, describe_away
from worker.watch import Cancelled, Watch

log = logging.getLogger(__name__)


def prepare_rounds(process: WorkerProcess) -> None:
    """Prepare waiting rounds, oldest first, until none is left or this process should stop."""
    try:
        while not process.stop.is_set() and (claim := _claim(process)) is not None:
            log.info("round %s: its snapshot is being made", claim.round_id)
            process.heartbeat.hold_round(claim)
            try:
                _prepare(process, claim)
            finally:
                process.heartbeat.drop_round(claim)
    except AWAY as error:
        log.warning("%s", describe_away(error))


def _claim(process: WorkerProcess) -> RoundClaim | None:
    with session_scope() as session:
        return lease.claim_round(session, worker=process.name, prepared=False)


def _prepare(process: WorkerProcess, claim: RoundClaim) -> None:
    watch = Watch(process, claim)
    try:
        preparing.prepare(claim, report=watch.report_snapshot)
    except LeaseLostError:
        log.warning("round %s is no longer ours", claim.round_id)
    except Cancelled:
        log.info("round %s: cancelled", claim.round_id)
        with session_scope() as session:
            lease.finish_cancel(session, claim)
    except Stopping:
        with session_scope() as session:
            lease.release(session, claim)
    except IntegrityError as error:
        # A row refers to something that was removed after it was read.
        log.warning("round %s is prepared anew: %s", claim.round_id, error.orig)
        with session_scope() as session:
            lease.release(session, claim, error=_("what it names was removed"), counts=True)
    except DATABASE_AWAY as error:
        # The database was too slow or was restarted. Release the lease instead of waiting until it lapses.
        log.warning("round %s is prepared anew: %s", claim.round_id, str(error).splitlines()[0])
        with session_scope() as session:
            lease.release(session, claim, error=_("the database was away or too busy"), counts=True)
        raise
    except StoreAway as error:
        with session_scope() as session:
            lease.release(session, claim, error=error.detail, at_once=False)
        raise
    except (DomainError, ValueError, RuntimeError, OSError) as error:
        log.warning("round %s failed: %s", claim.round_id, error)
        with session_scope() as session:
            lease.fail(session, claim, said_by(error))
