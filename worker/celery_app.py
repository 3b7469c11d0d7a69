"""The Celery application of workers and of beat."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from celery import Celery
from celery.schedules import schedule
from celery.signals import worker_shutting_down

from app import queue
from app.settings import get_settings
from worker import tasks
from worker.process import WorkerProcess


def steady_now() -> datetime:
    """A time that only goes forward, for what is to happen at intervals: a clock put back would hold it up."""
    return datetime.fromtimestamp(time.monotonic(), UTC)


def make_celery(process: WorkerProcess | None = None) -> Celery:
    """The application: the broker of the settings and every task of `app.queue`, run by `process`.

    Rows are the truth and a message only says 'look': so messages are acked before the work, results are not kept, and
    a worker takes one message at a time.
    """
    settings = get_settings()
    celery = Celery("illume", broker=settings.redis_url, set_as_current=False)
    celery.conf.update(
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
    """Let running tasks know when Celery was told to stop: a solo worker would only look after them."""

    def on_shutdown(**_: object) -> None:
        process.stop.set()

    worker_shutting_down.connect(on_shutdown, weak=False)
