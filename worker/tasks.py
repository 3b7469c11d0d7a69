"""The tasks. Each looks whether there is still something to do, so that a lost or doubled message does no harm."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from celery import Celery

from app import queue
from app.db.sessions import database_now, session_scope
from app.services import sweep
from app.services.erasure import running
from app.services.imports.running import SLICE_SECONDS, run_import
from app.services.integrations import webhooks
from app.settings import get_settings
from worker.process import DATABASE_AWAY, Stopping, WorkerProcess

log = logging.getLogger(__name__)


class Tasks:
    """The tasks of one worker process. What needs a model is loaded with the first task that does: a worker of other
    queues stays small."""

    def __init__(self, process: WorkerProcess | None) -> None:
        self._process = process
        self._models: Any = None
        self._swept: float | None = None

    @property
    def process(self) -> WorkerProcess:
        """The worker process. Raises RuntimeError in a process that only sends."""
        if self._process is None:
            raise RuntimeError("this process runs no tasks")
        return self._process

    @property
    def models(self) -> Any:
        """The model this process has loaded, if any."""
        if self._models is None:
            from worker.model_cache import ModelCache

            self._models = ModelCache()
        return self._models

    def fill_pool(self, project_id: int) -> None:
        """Sample candidate sets for a project."""
        from worker.filling import fill_pool

        fill_pool(self.process, self.models, project_id)

    def prepare_round(self, round_id: int) -> None:  # noqa: ARG002 - the message only says 'look'
        """Make the snapshots of the rounds that wait for one, beside other tasks: a large one takes minutes."""
        from worker.preparing import prepare_rounds

        self.process.run_beside(functools.partial(prepare_rounds, self.process))

    def run_round(self, round_id: int) -> None:  # noqa: ARG002 - the message only says 'look'
        """Run the oldest round that waits for a worker."""
        from worker.rounds import run_next_round

        run_next_round(self.process, self.models)

    def sweep(self) -> None:
        """Look for what is due, unless this process has just done so: a worker that was busy finds a heap of these."""
        now = time.monotonic()
        if self._swept is None or now >= self._swept + get_settings().sweep_seconds / 2:
            self._swept = now
            sweep.run()

    def run_import(self, import_id: int) -> None:
        """Take in a file of prompts."""
        run_import(import_id, worker=self.process.name, check=self.process.check, seconds=SLICE_SECONDS)

    def deliver(self, webhook_id: int) -> None:
        """Send what is due for a webhook."""
        webhooks.deliver(webhook_id)

    def check_base(self, check_id: int) -> None:
        """Look whether a base model can be used."""
        from worker.base_check import check_base

        check_base(check_id)

    def erase(self, erasure_id: int) -> None:
        """Erase a person, an image or a project."""
        running.run_erasure(erasure_id, check=self.process.check)


def register(celery: Celery, process: WorkerProcess | None) -> None:
    """Give `celery` every task of `app.queue`, run by `process`."""
    own = Tasks(process)
    for name, function in (
        (queue.FILL_POOL, own.fill_pool),
        (queue.PREPARE_ROUND, own.prepare_round),
        (queue.RUN_ROUND, own.run_round),
        (queue.SWEEP, own.sweep),
        (queue.RUN_IMPORT, own.run_import),
        (queue.DELIVER, own.deliver),
        (queue.CHECK_BASE, own.check_base),
        (queue.ERASE, own.erase),
    ):
        celery.task(_stoppable(function), name=name, shared=False)


def _time() -> float:
    """The time by the database's clock, in seconds since 1970."""
    with session_scope() as session:
        return database_now(session).timestamp()


def _stoppable(function: Callable[..., None]) -> Callable[..., None]:
    def task(*ids: int, until: float | None = None) -> None:
        try:
            if until is None or _time() <= until:
                function(*ids)
        except Stopping:
            log.info("broken off, to be taken up elsewhere")
        except DATABASE_AWAY as error:
            log.warning("%s: no database, the sweep sends it again: %s", function.__name__, str(error).splitlines()[0])

    task.__doc__ = function.__doc__
    return task
