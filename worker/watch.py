"""Renews the lease of a job that this worker runs, reports its progress, and detects when it should stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.db.sessions import session_scope
from app.models import RoundState
from app.services.kernel.leases import LeaseLostError
from app.services.machine_critics.jobs import CriticClaim
from app.services.rounds import lease
from app.services.rounds.lease import Beat, RoundClaim
from app.settings import get_settings
from illume.phrases import _, pgettext
from illume.tuning.launcher import read_progress
from worker import child_process
from worker.process import DATABASE_AWAY, StepTimeoutError, WorkerProcess

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
STATE_OF_STAGE = {
    "preparing": RoundState.preparing,
    "training": RoundState.training,
    "evaluating": RoundState.evaluating,
}
STAGE_WORDS: Mapping[str, str] = {
    "preparing": pgettext("state of a training round", "preparing"),
    "training": pgettext("state of a training round", "training"),
    "evaluating": pgettext("state of a training round", "evaluating"),
}


class Cancelled(Exception):
    """The round should be cancelled."""


@dataclass
class Watch:
    """Renews a round's lease and reports its progress, about once a second."""

    process: WorkerProcess
    claim: RoundClaim | CriticClaim
    state: RoundState = RoundState.preparing
    progress: dict[str, Any] = field(default_factory=dict)
    epochs_done: int | None = None
    beat_at: float = 0.0
    reported: str | None = None
    advanced_at: float | None = None
    renew: Callable[..., Beat] = lease.beat
    """Renews the lease of the claim: `lease.beat`, or `beat` of `app.services.machine_critics.jobs`."""

    def report(self, ready: int, wanted: int) -> None:
        """Report how far the pool is filled before the round."""
        self.progress = {"stage": "filling", "ready": ready, "wanted": wanted, "fraction": 0.0, "eta_seconds": None}
        self.process.heartbeat.doing = _(
            "writing explanations before %(name)s: %(ready)s of %(wanted)s",
            name=self.claim.name,
            ready=ready,
            wanted=wanted,
        )
        self.beat_at = 0.0
        self()

    def report_snapshot(self, share: float) -> None:
        """Report which share of the round's snapshot is made."""
        self.progress = {"stage": "snapshot", "fraction": round(share, 3), "eta_seconds": None}
        self()

    def __call__(self, *, advanced: bool = False) -> None:
        """Raise `Stopping`, `Cancelled` or `LeaseLostError` if the work should end."""
        self.process.check()
        moment = time.monotonic()
        if moment - self.beat_at < BEAT_SECONDS and not advanced:
            return
        self.beat_at = moment
        found = self._beat(advanced)
        if found is not None and not found.held:
            raise LeaseLostError
        if found is not None and found.cancelling:
            raise Cancelled

    def _beat(self, advanced: bool) -> Beat | None:
        try:
            with session_scope() as session:
                return self.renew(
                    session, self.claim, state=self.state, progress=self.progress or None, advanced=advanced
                )
        except DATABASE_AWAY as error:
            # The round continues without a database; the next heartbeat shows whether the lease is still ours.
            log.warning("%s: no database: %s", self.claim.name, error)
            return None

    def _check_progress(self, progress: Mapping[str, Any]) -> None:
        """Raise `StepTimeoutError` if the tuning process has reported nothing for too long."""
        moment, reported = time.monotonic(), progress.get("updated")
        if self.advanced_at is None or reported != self.reported:
            self.reported, self.advanced_at = reported, moment
        seconds = get_settings().step_seconds
        if moment - self.advanced_at > seconds:
            raise StepTimeoutError(
                _("the tuning process made no progress for %(seconds)s s and was ended", seconds=f"{seconds:.0f}")
            )

    def begin_run(self) -> None:
        """Note that a new tuning process begins."""
        self.advanced_at = None

    def poll(self, folder: Path) -> None:
        """Read the progress of the tuning process, and renew the lease."""
        progress = read_progress(folder)
        self._check_progress(progress)
        epochs_done = child_process.epochs_done(folder)
        advanced = self.epochs_done is not None and epochs_done > self.epochs_done
        self.epochs_done = epochs_done
        if progress:
            self.progress = progress
            self.state = STATE_OF_STAGE.get(progress.get("stage", ""), self.state)
            stage = progress.get("stage", self.state)
            self.process.heartbeat.doing = _(
                "%(name)s: %(stage)s", name=self.claim.name, stage=STAGE_WORDS.get(stage, stage)
            )
        self(advanced=advanced)
