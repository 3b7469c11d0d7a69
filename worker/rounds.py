"""Runs a round: fills the pool, runs the tuning process, and stores its result."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from app.db.sessions import session_scope
from app.errors import DomainError
from app.processes.supervise import describe_exit
from app.services.candidates import pools
from app.services.kernel.leases import LeaseLostError
from app.services.kernel.store import StoreAway
from app.services.rounds import lease
from app.services.rounds.lease import RoundClaim
from illume.errors import UNEXPECTED_ERRORS
from illume.phrases import _, said_by
from illume.tuning.job import EXIT_DONE, EXIT_FAILED
from worker import child_process, round_folder
from worker.device import hold_device
from worker.filling import fill_for_round, fill_others
from worker.model_cache import ModelCache
from worker.process import DATABASE_AWAY, StepTimeoutError, Stopping, WorkerProcess
from worker.watch import Cancelled, Watch

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
MAX_EVENTS = 500
TURN_SECONDS = 300.0
"""How long a round trains before it makes room for projects whose critics have nothing to judge."""
ASK_SECONDS = 10.0


def run_next_round(process: WorkerProcess, models: ModelCache) -> None:
    """Claim the oldest waiting round and run it until it ends, is cancelled, or this process should stop."""
    with session_scope() as session:
        if not lease.is_round_waiting(session):
            return
    with hold_device(process, purpose="round") as is_held:
        if not is_held:
            return
        with session_scope() as session:
            claim = lease.claim_round(session, worker=process.name)
            round_folder.remove_old_folders(session)
        if claim is None:
            return
        log.info("round %s: taken up", claim.round_id)
        process.heartbeat.hold_round(claim)
        try:
            _run(process, models, claim)
        finally:
            process.heartbeat.drop_round(claim)
            process.heartbeat.doing = ""


def _run(process: WorkerProcess, models: ModelCache, claim: RoundClaim) -> None:
    watch = Watch(process, claim)
    try:
        fill_for_round(process, models, claim.project_id, report=watch.report, watch=watch)
        fill_others(process, models, claim.project_id, watch=watch)
        models.drop()
        _tune(process, models, claim, watch)
    except LeaseLostError:
        log.warning("round %s is no longer ours", claim.round_id)
    except Cancelled:
        log.info("round %s: cancelled", claim.round_id)
        with session_scope() as session:
            lease.finish_cancel(session, claim)
    except Stopping:
        with session_scope() as session:
            lease.release(session, claim)
        raise
    except StoreAway as error:
        with session_scope() as session:
            lease.release(session, claim, error=error.detail, at_once=False)
        raise
    except (DomainError, StepTimeoutError, *UNEXPECTED_ERRORS) as error:
        log.warning("round %s failed: %s", claim.round_id, error)
        with session_scope() as session:
            lease.fail(session, claim, said_by(error))


def _tune(process: WorkerProcess, models: ModelCache, claim: RoundClaim, watch: Watch) -> None:
    folder = round_folder.folder_of(claim)
    child_process.end_leftover_process(folder)
    with session_scope() as session:
        inputs = round_folder.read_inputs(session, claim)
    is_new = round_folder.prepare(inputs, folder)
    if is_new:
        with session_scope() as session:
            lease.delete_events(session, claim)
    started, is_whole = time.monotonic(), is_new
    models.check(inputs.plan.base_model)
    while not (folder / "result.json").exists():
        code = _watch_child(folder, claim, watch)
        if code is None:  # the round goes on from its checkpoint after the others' turn
            is_whole = False
            fill_others(process, models, claim.project_id, watch=watch)
            models.drop()
        elif code != EXIT_DONE:
            _release_or_fail(folder, claim, code)
            return
    # The duration of a resumed run would distort the estimates.
    seconds = time.monotonic() - started if is_whole else None
    result = round_folder.read_result(inputs, folder, seconds=seconds)
    with session_scope() as session:
        version = lease.finish(session, claim, result)
    if version is None:
        raise LeaseLostError
    log.info("round %s: made version %s", claim.round_id, version.number)
    round_folder.remove_folder(folder)


def _watch_child(folder: Path, claim: RoundClaim, watch: Watch) -> int | None:
    """Run the tuning process and monitor it. Returns its exit code; an exception here ends the process.

    After a turn it is stopped, to go on from its checkpoint, if critics of another project have nothing to judge; the
    result is None then.
    """
    (folder / "progress.json").unlink(missing_ok=True)
    tail = child_process.EventTail(folder / "events.jsonl")
    watch.begin_run()
    turn_ends = time.monotonic() + TURN_SECONDS
    with child_process.running(folder) as child:
        while (code := child.poll()) is None:
            watch.poll(folder)
            _store_events(claim, tail)
            time.sleep(POLL_SECONDS)
            if time.monotonic() > turn_ends:
                if _are_others_starving(claim):
                    log.info("round %s: makes room for other projects", claim.round_id)
                    break
                turn_ends = time.monotonic() + ASK_SECONDS
    while _store_events(claim, tail):
        pass
    return code


def _are_others_starving(claim: RoundClaim) -> bool:
    try:
        with session_scope() as session:
            return bool(pools.list_starving(session, without=claim.project_id))
    except DATABASE_AWAY:
        return False


def _store_events(claim: RoundClaim, tail: child_process.EventTail) -> bool:
    """Store the next lines of the event file. Returns whether there were any."""
    lines = tail.read(MAX_EVENTS)
    if not lines:
        return False
    try:
        with session_scope() as session:
            lease.add_events(session, claim, lines)
    except DATABASE_AWAY as error:
        tail.unread(lines)
        log.warning("round %s: events wait for the database: %s", claim.round_id, error)
        return False
    return True


def _release_or_fail(folder: Path, claim: RoundClaim, code: int) -> None:
    """Fail the round if the process reported an error. Else release it, to resume from the last checkpoint."""
    with session_scope() as session:
        if code == EXIT_FAILED:
            lease.fail(session, claim, child_process.read_error(folder))
        else:
            log.warning("round %s: the tuning process ended with %s", claim.round_id, describe_exit(code))
            error = _("the tuning process ended with %(end)s", end=describe_exit(code))
            lease.release(session, claim, error=error, counts=True)
