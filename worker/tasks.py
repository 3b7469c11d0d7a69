"""The tasks. Each checks whether there is work to do, so that lost or repeated messages are harmless."""

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
from app.services.engines import handing_over, probing, removing
from app.services.erasure import running
from app.services.imports.running import SLICE_SECONDS, run_import
from app.services.integrations import webhooks
from app.services.publishing import uploading
from app.settings import get_settings
from worker.engines.filling import fill_from_engine
from worker.process import AWAY, Stopping, WorkerProcess, describe_away, logged

log = logging.getLogger(__name__)


class Tasks:
    """The tasks of one worker process.

    Modules that import torch are loaded by the first task that needs them: a worker of other queues stays small.
    """

    def __init__(self, process: WorkerProcess | None) -> None:
        self._process = process
        self._models: Any = None
        self._swept: float | None = None

    @property
    def process(self) -> WorkerProcess:
        """The worker process. Raises RuntimeError in a process that only sends tasks."""
        if self._process is None:
            raise RuntimeError("this process runs no tasks")
        return self._process

    @property
    def models(self) -> Any:
        """The cache of the loaded model."""
        if self._models is None:
            from worker.model_cache import ModelCache

            self._models = ModelCache()
        return self._models

    def fill_pool(self, project_id: int) -> None:
        """Sample candidate sets for a project."""
        from worker.filling import fill_pool

        fill_pool(self.process, self.models, project_id)

    def prepare_round(self, round_id: int) -> None:  # noqa: ARG002 - the message only triggers the task
        """Make the snapshots of waiting rounds, in the background: a large one takes minutes."""
        from worker.preparing import prepare_rounds

        self.process.run_in_background(functools.partial(prepare_rounds, self.process), lane="rounds")

    def run_round(self, round_id: int) -> None:  # noqa: ARG002 - the message only triggers the task
        """Run the oldest waiting round."""
        from worker.rounds import run_next_round

        run_next_round(self.process, self.models)

    def sweep(self) -> None:
        """Start due work. Skipped if this process has just done so: after a long task, many of these messages wait."""
        now = time.monotonic()
        if self._swept is None or now >= self._swept + get_settings().sweep_seconds / 2:
            self._swept = now
            sweep.run()

    def run_import(self, import_id: int) -> None:
        """Import a file of prompts."""
        run_import(import_id, worker=self.process.name, check=self.process.check, seconds=SLICE_SECONDS)

    def deliver(self, webhook_id: int) -> None:
        """Send a webhook's due deliveries."""
        webhooks.deliver(webhook_id)

    def check_base(self, check_id: int) -> None:
        """Check whether a base model can be used."""
        from worker.base_check import check_base

        check_base(check_id)

    def fill_from_engine(self, project_id: int) -> None:
        """Sample candidate sets for a project from its model server, in the background: others compute."""
        work = functools.partial(fill_from_engine, self.process, project_id)
        self.process.run_in_background(logged(work), lane=f"engine of project {project_id}")

    def probe_engine(self, engine_id: int) -> None:
        """Probe a model server, in the background: it may be slow."""
        work = functools.partial(probing.probe_engine, engine_id, check=self.process.check)
        self.process.run_in_background(logged(work), lane=f"probe of engine {engine_id}")

    def hand_over(self, adapter_id: int) -> None:
        """Hand an adapter over to a model server, in the background."""
        work = functools.partial(handing_over.hand_over, adapter_id, check=self.process.check)
        self.process.run_in_background(logged(work), lane=f"hand-over {adapter_id}")

    def remove_adapter(self, adapter_id: int) -> None:
        """Take an adapter off a model server, in the background."""
        work = functools.partial(removing.remove_adapter, adapter_id, check=self.process.check)
        self.process.run_in_background(logged(work), lane=f"removal of adapter {adapter_id}")

    def fit_critic(self, job_id: int) -> None:  # noqa: ARG002 - the message only triggers the task
        """Train the machine critic of the oldest job that waits."""
        from worker.critics.fitting import fit_next_critic

        fit_next_critic(self.process, self.models)

    def score_candidates(self, project_id: int) -> None:
        """Rate a project's candidates by its machine critic."""
        from worker.critics.scoring import score_candidates

        score_candidates(self.process, self.models, project_id)

    def publish(self, publication_id: int) -> None:
        """Upload to the Hugging Face Hub, in the background: a large dataset takes long."""
        work = functools.partial(
            uploading.run_upload, publication_id, worker=self.process.name, check=self.process.check
        )
        self.process.run_in_background(logged(work), lane=f"publication {publication_id}")

    def erase(self, erasure_id: int) -> None:
        """Erase a person, an image or a project."""
        running.run_erasure(erasure_id, check=self.process.check)


def register(celery: Celery, process: WorkerProcess | None) -> None:
    """Register every task of `app.queue` with `celery`, run by `process`."""
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
        (queue.FILL_FROM_ENGINE, own.fill_from_engine),
        (queue.PROBE_ENGINE, own.probe_engine),
        (queue.HAND_OVER, own.hand_over),
        (queue.REMOVE_ADAPTER, own.remove_adapter),
        (queue.FIT_CRITIC, own.fit_critic),
        (queue.SCORE_CANDIDATES, own.score_candidates),
        (queue.PUBLISH, own.publish),
    ):
        celery.task(_wrap_task(function), name=name, shared=False)


def _database_time() -> float:
    """The database's time, in seconds since 1970."""
    with session_scope() as session:
        return database_now(session).timestamp()


def _wrap_task(function: Callable[..., None]) -> Callable[..., None]:
    def task(*ids: int, until: float | None = None) -> None:
        try:
            if until is None or _database_time() <= until:
                function(*ids)
        except Stopping:
            log.info("broken off, to be taken up elsewhere")
        except AWAY as error:
            log.warning("%s: %s", function.__name__, describe_away(error))

    task.__doc__ = function.__doc__
    return task
