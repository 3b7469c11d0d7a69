"""`python -m worker --queues default,model` runs a worker, `python -m worker beat` has the sweep run regularly."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence

from celery.exceptions import SecurityWarning
from sqlalchemy.exc import OperationalError

from app import queue
from app.settings import get_settings
from worker.celery_app import make_celery, stop_on_shutdown
from worker.process import WorkerProcess, bury_dead, lower_priority, make_process

log = logging.getLogger("worker")
STOP_SECONDS = 10.0
KNOWN_QUEUES = (queue.DEFAULT_QUEUE, queue.MODEL_QUEUE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["work", "beat"], default="work")
    parser.add_argument("--queues", default=",".join(KNOWN_QUEUES), help="queues to serve, separated by commas")
    parser.add_argument("--log-level", default="INFO")
    options = parser.parse_args(arguments)
    missing = [name for name in ("database_url", "redis_url") if not getattr(get_settings(), name)]
    if missing:
        sys.stderr.write(f"Set ILLUME_{missing[0].upper()}: a worker needs the database and the broker.\n")
        return 2
    if options.command == "beat":
        return run_beat(options.log_level)
    queues = tuple(dict.fromkeys(name.strip() for name in options.queues.split(",") if name.strip()))
    unknown = sorted(set(queues) - set(KNOWN_QUEUES))
    if unknown or not queues:
        sys.stderr.write(f"There is no queue {unknown[0] if unknown else ''!r}: use {', '.join(KNOWN_QUEUES)}.\n")
        return 2
    return run_worker(queues, options.log_level)


def run_worker(queues: tuple[str, ...], log_level: str) -> int:
    """Serve `queues` until told to stop."""
    # Read when torch is loaded. Threads that spin while they wait took 20 times the CPU time beside other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    lower_priority(os.getpid())
    process = make_process(queues, device=_device() if queue.MODEL_QUEUE in queues else "")
    try:
        _when_there_is_a_database(process)
    except OperationalError as error:
        sys.stderr.write(f"The database cannot be reached: {error.orig}\n")
        return 1
    # Messages are JSON, so what Celery warns of here cannot happen; who runs us as root has their reasons.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    hush("celery.worker.strategy", "celery.worker.request", "celery.app.trace")
    celery = make_celery(process)
    stop_on_shutdown(process)
    process.heartbeat.start()
    queue.send_now(queue.SWEEP)
    try:
        worker = celery.Worker(
            queues=list(queues),
            pool="solo",
            concurrency=1,
            hostname=process.name,
            loglevel=log_level,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
        )
        worker.start()
        return int(worker.exitcode or 0)
    finally:
        process.stop.set()
        process.wait_beside(STOP_SECONDS)
        process.heartbeat.stop()


def hush(*names: str) -> None:
    """Log warnings only: lines for each message would drown the others, as the sweep sends some every time."""
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)


def _device() -> str:
    from worker.model_cache import device_name  # loads torch, which only a worker of models needs

    return device_name()


def _when_there_is_a_database(process: WorkerProcess) -> None:
    """Free what this machine's dead workers held, once the database answers. Raises OperationalError after a while."""
    give_up = time.monotonic() + get_settings().database_wait
    while True:
        try:
            bury_dead(process)
        except OperationalError:
            if time.monotonic() > give_up:
                raise
            log.warning("waiting for the database")
            time.sleep(1.0)
        else:
            return


def run_beat(log_level: str) -> int:
    """Have the sweep run every `sweep_seconds`. Keeps no file: what is due stands in the database."""
    hush("celery.beat")
    celery = make_celery()
    beat = celery.Beat(
        scheduler_cls="celery.beat:Scheduler",
        max_interval=get_settings().sweep_seconds,
        loglevel=log_level,
        quiet=True,
    )
    beat.run()
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is written down; taking torch apart module by module would take seconds
