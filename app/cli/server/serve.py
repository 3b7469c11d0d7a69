"""`illume serve`: run the web server."""

from __future__ import annotations

import click

from app.cli.server.programs import report_health, run_beside
from app.cli.terminal import at_least_one, data_dir_option, refuse_other_tables
from app.processes.connect import Refused, ensure_public_url, refuse_used_port, services, until_stopped
from app.settings import get_settings


@click.command()
@click.option("--host", help="Address to listen on.  [default: ILLUME_HOST, else 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on.  [default: ILLUME_PORT, else 8000]")
@click.option(
    "--workers", type=int, default=1, show_default=True, callback=at_least_one, help="Number of web processes."
)
@click.option("--check", is_flag=True, help="Start nothing; exit with 0 if a running server is healthy, else with 1.")
@data_dir_option
def serve(host: str | None, port: int | None, workers: int, *, check: bool) -> int:
    """Run the web server."""
    from app.processes import health_checks, serving
    from app.services.accounts import openid_providers
    from app.services.kernel.store import StoreMisnamed, check_store_url

    if check:
        return report_health(health_checks.is_web_healthy(get_settings()))
    settings = get_settings()
    host, port = (host or settings.host).strip("[]"), settings.port if port is None else port
    openid_providers.check_providers()
    try:
        check_store_url(settings.store)
    except StoreMisnamed as error:
        raise Refused(f"{error}.", code=2) from error
    refuse_used_port(host, port)
    ensure_public_url(settings, host=host, port=port)
    with until_stopped() as stopping, services() as embedded:
        refuse_other_tables(get_settings())
        if embedded is not None:
            words = ["serve", "--host", host, "--port", str(port), "--workers", str(workers)]
            return run_beside(embedded, ["-m", "app.cli", *words], stopping)
        serving.serve(serving.server_config(host=host, port=port, processes=workers))
    return 0
