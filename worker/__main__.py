"""`python -m worker --queues default,model` runs a worker, `python -m worker beat` schedules the sweep."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from celery.exceptions import SecurityWarning
from sqlalchemy.exc import OperationalError, ProgrammingError

from app import queue
from app.db.sessions import session_scope
from app.processes.log_lines import keep_lines_whole
from app.services.kernel import secret_key
from app.services.kernel.store import StoreMisnamed, check_store_url
from app.settings import get_settings
from illume.phrases import _
from illume.tuning.accelerate_file import check_accelerate_file
from illume.tuning.job import JobError
from worker.celery_app import make_celery, stop_on_shutdown
from worker.process import WorkerProcess, expire_dead_workers, lower_priority, make_process

log = logging.getLogger("worker")
STOP_SECONDS = 10.0
KNOWN_QUEUES = (queue.DEFAULT_QUEUE, queue.MODEL_QUEUE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and run a worker or beat. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["work", "beat"], default="work")
    parser.add_argument("--queues", default=",".join(KNOWN_QUEUES), help="queues to serve, separated by commas")
    parser.add_argument("--log-level", default="INFO")
    options = parser.parse_args(arguments)
    keep_lines_whole()
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
    """Serve `queues` until told to stop. Returns the exit code."""
    # OpenMP reads this when torch is loaded. Threads that spin while waiting used 20 times the CPU time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    lower_priority(os.getpid())
    try:
        check_store_url(get_settings().store)
    except StoreMisnamed as error:
        sys.stderr.write(f"{error}.\n")
        return 2
    process = make_process(queues)
    try:
        _wait_for_database(process)
        has_another_key = _has_another_key()
    except OperationalError as error:
        sys.stderr.write(f"The database cannot be reached: {error.orig}\n")
        return 1
    if has_another_key:
        sys.stderr.write(f"This worker has another secret key than the web server. {secret_key.REMEDY}\n")
        return 2
    process.heartbeat.doing = _("starting")
    process.heartbeat.start()  # before torch is loaded, which takes long on a busy machine: pages show who is coming
    try:
        return _serve(process, queues, log_level)
    finally:
        process.heartbeat.stop()


def _serve(process: WorkerProcess, queues: tuple[str, ...], log_level: str) -> int:
    if queue.MODEL_QUEUE in queues:
        if problem := _model_problem():
            sys.stderr.write(problem + "\n")
            return 2
        process.device = process.heartbeat.device = _device()
    process.heartbeat.doing = ""
    # Celery warns about pickled messages when run as root; our messages are JSON.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    log_warnings_only("celery.worker.strategy", "celery.worker.request", "celery.app.trace")
    celery = make_celery(process)
    stop_on_shutdown(process)
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
        process.join_background(STOP_SECONDS)


def log_warnings_only(*names: str) -> None:
    """Silence loggers below warnings: a log line for each regular message would bury the rest."""
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)


def _model_problem() -> str:
    """Which setting of models this machine cannot meet, and why; empty if it meets all."""
    from illume.model.machine import count_cards, find_unavailable  # loads torch, which only a worker of models needs

    here = get_settings()
    if lacking := find_unavailable(**here.machine):
        return f"ILLUME_{lacking[0].upper()}={here.machine[lacking[0]]}: {lacking[1]}."
    if here.accelerate_config:
        try:
            check_accelerate_file(
                Path(here.accelerate_config), quantization=here.quantization, cards=count_cards(here.device)
            )
        except JobError as error:
            return f"ILLUME_ACCELERATE_CONFIG: {error}."
    return ""


def _device() -> str:
    from worker.model_cache import device_name  # loads torch too

    return device_name()


def _wait_for_database(process: WorkerProcess) -> None:
    """Wait for the database, then release the leases of this machine's dead workers.

    Raises OperationalError if the database does not respond within `database_wait` seconds.
    """
    give_up = time.monotonic() + get_settings().database_wait
    while True:
        try:
            expire_dead_workers(process)
        except OperationalError:
            if time.monotonic() > give_up:
                raise
            log.warning("waiting for the database")
            time.sleep(1.0)
        else:
            return


def _has_another_key() -> bool:
    """Whether the web server has another secret key, as far as the tables of this database can say."""
    try:
        with session_scope() as session:
            return secret_key.is_another(session)
    except ProgrammingError:  # the database is not upgraded yet
        return False


def run_beat(log_level: str) -> int:
    """Send the sweep every `sweep_seconds`. Needs no schedule file, because due work is recorded in the database."""
    log_warnings_only("celery.beat")
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
    os._exit(code)  # all work is stored; unloading torch would take seconds
