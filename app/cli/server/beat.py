"""`illume beat`: run the scheduler."""

from __future__ import annotations

import click

from app.cli.server.programs import report_health, run_worker_program
from app.cli.terminal import data_dir_option
from app.processes.connect import services
from app.settings import get_settings


@click.command()
@click.option(
    "--check", is_flag=True, help="Start nothing; exit with 0 if one is running on this machine, else with 1."
)
@data_dir_option
def beat(*, check: bool) -> int:
    """Run the scheduler, which starts whatever is due. An installation needs one."""
    if check:
        from app.processes import health_checks

        with services():
            return report_health(health_checks.is_beat_healthy(get_settings()))
    return run_worker_program(["beat"])
