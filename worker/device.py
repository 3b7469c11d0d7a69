"""Exclusive use of a device: one worker at a time."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from app.db.sessions import session_scope
from app.services.kernel import workers
from worker.process import WorkerProcess

log = logging.getLogger(__name__)


@contextlib.contextmanager
def hold_device(process: WorkerProcess, *, purpose: str) -> Iterator[bool]:
    """Hold the lease on this process's device during the block. Yields False if another live worker has it."""
    with session_scope() as session:
        held = workers.claim_device(session, process.device_key, worker=process.name, purpose=purpose)
    if not held:
        log.info("%s is in use by another worker", process.device_key)
        yield False
        return
    process.heartbeat.holds_device = True
    try:
        yield True
    finally:
        process.heartbeat.holds_device = False
        with session_scope() as session:
            workers.release_device(session, process.device_key, worker=process.name)
