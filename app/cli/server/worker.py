"""`illume worker`: run a worker."""

from __future__ import annotations

import click

from app.cli.server.programs import report_health, run_worker_program
from app.cli.terminal import data_dir_option
from app.processes.connect import services

QUEUES = {"default", "model"}


def parse_queues(_context: click.Context, _parameter: click.Parameter, value: str) -> list[str]:
    """The queues of a list with commas."""
    queues = [name.strip() for name in value.split(",") if name.strip()]
    if not queues or not set(queues) <= QUEUES:
        raise click.UsageError("--queues takes `default`, `model` or `default,model`.")
    return queues


@click.command()
@click.option(
    "--queues",
    default="default,model",
    show_default=True,
    callback=parse_queues,
    help="Queues to take tasks from: `model` for sampling and tuning, `default` for all else.",
)
@click.option(
    "--check", is_flag=True, help="Start nothing; exit with 0 if such a worker is running on this machine, else with 1."
)
@data_dir_option
def worker(queues: list[str], *, check: bool) -> int:
    """Run a worker, which samples candidates and runs rounds."""
    if check:
        from app.processes import health_checks

        with services():
            return report_health(health_checks.is_worker_healthy(queues))
    return run_worker_program(["--queues", ",".join(queues)])
