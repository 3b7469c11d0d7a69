"""The heartbeat: a thread that renews this worker's row and leases in the database."""

from __future__ import annotations

import logging
import threading

import psutil
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.db.engine import make_engine
from app.services.candidates import candidates
from app.services.kernel import workers
from app.services.machine_critics import jobs
from app.services.machine_critics.jobs import CriticClaim
from app.services.rounds import lease
from app.services.rounds.lease import RoundClaim
from app.settings import get_settings

log = logging.getLogger(__name__)


class Heartbeat:
    """Renews a worker's row and all its leases, in its own thread and over its own connection.

    A worker that is busy computing thus counts as alive, and one whose process has died or hangs does not.
    """

    def __init__(self, worker: str, *, queues: str, device: str) -> None:
        self.worker, self.queues, self.device = worker, queues, device
        self.doing = ""
        # A lease that is not set here lapses, even if this process failed to release it.
        self.sampling = False
        self.holds_device = False
        settings = get_settings()
        self._interval = min(3.0, settings.lease_seconds / 6)
        self._engine = make_engine(settings.database_url, pool_size=1)
        self._rounds: frozenset[RoundClaim] = frozenset()
        self._critics: frozenset[CriticClaim] = frozenset()
        self._samplers: frozenset[str] = frozenset()
        self._ended = threading.Event()
        self._memory = psutil.Process()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and remove this worker's row."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        try:
            with Session(self._engine) as session, session.begin():
                workers.remove_worker(session, self.worker)
        except SQLAlchemyError as error:
            log.warning("this worker could not be taken off the list: %s", error)
        self._engine.dispose()

    def hold_round(self, claim: RoundClaim) -> None:
        """Renew the lease of a round from now on. One round may be prepared while another one trains."""
        self._rounds |= {claim}

    def drop_round(self, claim: RoundClaim) -> None:
        """Stop renewing the round's lease."""
        self._rounds -= {claim}

    def hold_critic(self, claim: CriticClaim) -> None:
        """Renew the lease of a job that fits a machine critic from now on."""
        self._critics |= {claim}

    def drop_critic(self, claim: CriticClaim) -> None:
        """Stop renewing the job's lease."""
        self._critics -= {claim}

    def hold_sampler(self, name: str) -> None:
        """Renew the leases of the sets that are sampled under a name, in the background, from now on."""
        self._samplers |= {name}

    def drop_sampler(self, name: str) -> None:
        """Stop renewing them."""
        self._samplers -= {name}

    def _run(self) -> None:
        while True:
            self.beat()
            if self._ended.wait(self._interval):
                return

    def beat(self) -> None:
        """Renew everything once. Without a database, leases lapse, and fencing tokens prevent conflicts."""
        try:
            with Session(self._engine) as session, session.begin():
                workers.beat_worker(
                    session,
                    self.worker,
                    queues=self.queues,
                    device=self.device,
                    doing=self.doing,
                    memory_mb=self._memory.memory_info().rss // 2**20,
                )
                if self.sampling:
                    candidates.beat_sampling(session, self.worker)
                for name in self._samplers:
                    candidates.beat_sampling(session, name)
                if self.holds_device:
                    workers.beat_devices(session, self.worker)
                for claim in self._rounds:
                    lease.beat(session, claim)
                for fitting in self._critics:
                    jobs.beat(session, fitting)
        except SQLAlchemyError as error:
            log.warning("no heartbeat: %s", error)
