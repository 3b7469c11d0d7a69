"""The Celery application of workers and of beat."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from celery import Celery
from celery.schedules import schedule
from celery.signals import worker_shutting_down

from app import queue
from app.broker import celery_options
from app.settings import get_settings
from worker import tasks
from worker.process import WorkerProcess


def steady_now() -> datetime:
    """A monotonic time for schedules: with the wall clock, setting it back would delay the next run."""
    return datetime.fromtimestamp(time.monotonic(), UTC)


def make_celery(process: WorkerProcess | None = None) -> Celery:
    """The Celery application, with every task of `app.queue` run by `process`.

    The database holds the state; a message only triggers a task to look at it. Messages are therefore acknowledged
    before the work, results are not stored, and a worker prefetches one message at a time.
    """
    settings = get_settings()
    celery = Celery("illume", set_as_current=False)
    celery.conf.update(
        celery_options(settings.redis_url) if settings.redis_url else {},  # a worker without one ends with a reason
        task_ignore_result=True,
        task_acks_late=False,
        task_default_queue=queue.DEFAULT_QUEUE,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_log_color=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        beat_schedule={
            "sweep": {
                "task": queue.SWEEP,
                "schedule": schedule(timedelta(seconds=settings.sweep_seconds), nowfun=steady_now),
                "options": {"queue": queue.TASK_QUEUES[queue.SWEEP]},
            }
        },
    )
    tasks.register(celery, process)
    return celery


def stop_on_shutdown(process: WorkerProcess) -> None:
    """Set `process.stop` when Celery is told to stop. Without it, a solo worker would first finish its task."""

    def on_shutdown(**_: object) -> None:
        process.stop.set()

    worker_shutting_down.connect(on_shutdown, weak=False)
