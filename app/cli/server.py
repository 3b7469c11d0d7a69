"""The commands that go on running: the demo, the web server, workers, the clock."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence

from app.cli.terminal import refuse_other_tables, say, warn
from app.processes.connect import Refused, Stopped, refuse_used_port, services, until_stopped, wait_for_database
from app.processes.embedded import Embedded
from app.settings import get_settings


def become(arguments: Sequence[str]) -> None:
    """Go on as another Python program in this process's place."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 - our own interpreter


def run_demo(options: argparse.Namespace) -> int:
    from app.cli import demo

    return demo.run(port=options.port, browser=not options.no_browser, say=say)


def run_serve(options: argparse.Namespace) -> int:
    from app.processes import health_checks as alive
    from app.processes import serving

    if options.check:
        return check(alive.web(get_settings()))
    if options.workers < 1:
        raise Refused("--workers must be at least 1.", code=2)
    settings = get_settings()
    host, port = options.host or settings.host, settings.port if options.port is None else options.port
    refuse_used_port(host, port)
    with until_stopped() as stopping, services() as embedded:
        refuse_other_tables(get_settings())
        if embedded is not None:
            words = ["serve", "--host", host, "--port", str(port), "--workers", str(options.workers)]
            return run_beside(embedded, ["-m", "app.cli", *words], stopping)
        serving.serve(serving.config_of(host=host, port=port, processes=options.workers))
    return 0


def run_worker(options: argparse.Namespace) -> int:
    known = {"default", "model"}
    queues = [name.strip() for name in options.queues.split(",") if name.strip()]
    if not queues or not set(queues) <= known:
        raise Refused("--queues takes `default`, `model` or `default,model`.", code=2)
    if options.check:
        from app.processes import health_checks as alive

        with services():
            return check(alive.worker(queues))
    return run_worker_program(["--queues", ",".join(queues)])


def run_beat(options: argparse.Namespace) -> int:
    if options.check:
        from app.processes import health_checks as alive

        with services():
            return check(alive.beat(get_settings()))
    return run_worker_program(["beat"])


def check(alive: bool) -> int:
    """What a health check says, and its exit code."""
    say("alive" if alive else "not alive")
    return 0 if alive else 1


def run_worker_program(words: Sequence[str]) -> int:
    """Go on as the worker; where its services are ours to run, start it as a child and stay."""
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
                for sentence in embedded.look(time.monotonic()):
                    warn(sentence)
                time.sleep(0.2)
    except GaveUp as error:
        raise Refused(f"Stopped: {error}. Its log is in {embedded.data_dir / 'logs'}.") from error
    finally:
        stopping()
        code = stop_child(child, patience=20)
    return code
