"""Running another program of Illume: in this process's place, or as a child beside the services that this one runs."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence

from app.cli.terminal import say, warn
from app.processes.connect import Refused, Stopped, services, until_stopped, wait_for_database
from app.processes.embedded import Embedded
from app.settings import get_settings


def become(arguments: Sequence[str]) -> None:
    """Go on as another Python program in this process's place."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 - our own interpreter


def report_health(healthy: bool) -> int:
    """Print the result of a health check, and return its exit code."""
    say("alive" if healthy else "not alive")
    return 0 if healthy else 1


def run_worker_program(words: Sequence[str]) -> int:
    """Become the worker. If this process runs the embedded services, start the worker as a child instead."""
    program = ["-m", "worker", *words]
    with until_stopped() as stopping, services() as embedded:
        wait_for_database(get_settings(), say=say)
        if embedded is None:
            become(program)
        else:
            return run_beside(embedded, program, stopping)
    return 0


def run_beside(embedded: Embedded, program: Sequence[str], stopping: Callable[[], None]) -> int:
    """Run a Python program as a child, keeping its services running; its exit code. Raises Refused."""
    from app.processes.supervise import GaveUp, start_child, stop_child

    child = start_child([sys.executable, *program])
    code = 0
    try:
        with contextlib.suppress(Stopped):
            while child.poll() is None:
                for sentence in embedded.check(time.monotonic()):
                    warn(sentence)
                time.sleep(0.2)
    except GaveUp as error:
        raise Refused(f"Stopped: {error}. Its log is in {embedded.data_dir / 'logs'}.") from error
    finally:
        stopping()
        code = stop_child(child, patience=20)
    return code
