"""`illume demo`: run everything on this machine, in processes that end with this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path

import click

from app.cli.server.demo_projects import SCENES
from app.cli.terminal import Say, data_dir_option, say, upgrade_tables
from app.processes import health_checks
from app.processes.connect import (
    Refused,
    ensure_public_url,
    refuse_used_port,
    services,
    until_stopped,
    wait_for_database,
)
from app.processes.embedded import Embedded, free_port
from app.processes.supervise import GaveUp, Supervised, describe_exit, start_child, stop_all, stop_child
from app.settings import Settings, get_settings
from illume.files import write_text

ACCOUNTS_FILE = "demo-accounts.json"
FIRST_STEPS = f"/admin/projects/{SCENES.slug}/first-steps"
READY_SECONDS = 120.0
LOOK_SECONDS = 0.2


@click.command()
@click.option("--port", type=int, default=8000, show_default=True, help="Port to listen on; 0 picks a free one.")
@click.option("--no-browser", "--no-open", is_flag=True, help="Do not open a browser.")
@data_dir_option
def demo(port: int, *, no_browser: bool) -> int:
    """Set up and run everything on this machine, with three example projects.

    Prints the accounts to sign in with, then `ready:` and the address. Ctrl-C stops everything; the data stays.
    """
    return run(port=port, browser=not no_browser, say=say)


def run(*, port: int, browser: bool, say: Say) -> int:
    """Run the demo until it is told to stop; port 0 takes a free one. Returns the exit code; raises Refused."""
    port = port or free_port()
    refuse_used_port("127.0.0.1", port)
    ensure_public_url(get_settings(), host="127.0.0.1", port=port)
    with until_stopped() as stopping, services(share=False) as embedded:
        children: list[Supervised] = []
        try:
            settings = get_settings()
            accounts, complete = prepare(settings, say=say)
            children = processes(settings, account=accounts["admin"]["email"])
            serve(children, embedded, settings, seeds=not complete, browser=browser, say=say)
        except GaveUp as error:
            raise Refused(f"Stopped: {error}. Its log is in {settings.data_dir / 'logs'}.") from error
        finally:
            stopping()
            stop_all(children)
    return 0


def prepare(settings: Settings, *, say: Say) -> tuple[dict[str, dict[str, str]], bool]:
    """Upgrade the tables, add the example data, and write the accounts to a file.

    Returns the accounts, and whether all the example data is there.
    """
    from app.cli.server import seeding
    from app.db.sessions import session_scope
    from app.services.kernel import secret_key

    wait_for_database(settings, say=say)
    upgrade_tables(settings)
    secret_key.store_check()  # before the workers start, which compare their key with it
    path = settings.data_dir / ACCOUNTS_FILE
    known = json.loads(path.read_text()) if path.exists() else {}
    with session_scope() as session:
        accounts = seeding.seed_demo(session, settings, known)
        complete = seeding.is_complete(session, settings)
    write_text(path, json.dumps(accounts, indent=2) + "\n", private=True)
    return accounts, complete


def commands() -> dict[str, list[str]]:
    """The programs beside the database and the broker, as in docker-compose.yml."""
    return {
        "web": [sys.executable, "-m", "app.cli", "serve"],
        "worker-model": [sys.executable, "-m", "worker", "--queues", "model"],
        "worker-default": [sys.executable, "-m", "worker", "--queues", "default"],
        "beat": [sys.executable, "-m", "worker", "beat"],
    }


def processes(settings: Settings, *, account: str = "") -> list[Supervised]:
    """The processes of the demo, not started yet. The sign-in page names `account`, if any."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "ILLUME_DEMO_ACCOUNT": account}

    def starter(name: str, command: list[str]) -> Callable[[], subprocess.Popen[bytes]]:
        return lambda: start_child(command, log=log_of(settings, name), env=environment)

    return [Supervised(name=name, start=starter(name, command)) for name, command in commands().items()]


def log_of(settings: Settings, name: str) -> Path:
    """The log of a process, in a folder that exists."""
    logs = settings.data_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return logs / f"{name}.log"


def start_seeding(settings: Settings) -> subprocess.Popen[bytes]:
    """Start the process that adds the prompts that are still missing, and then ends."""
    command = [sys.executable, "-m", "app.cli.server.seeding"]
    return start_child(command, log=log_of(settings, "seeding"), env=os.environ)


def serve(
    children: list[Supervised],
    embedded: Embedded | None,
    settings: Settings,
    *,
    seeds: bool,
    browser: bool,
    say: Say,
) -> None:
    """Start the children and keep them running; say `ready` once, and then add missing prompts if it `seeds`.

    Ends by `Stopped`, GaveUp or Refused.
    """
    address = f"http://127.0.0.1:{settings.port}"
    give_up_at: float | None = time.monotonic() + READY_SECONDS
    seeding: subprocess.Popen[bytes] | None = None
    try:
        while True:
            now = time.monotonic()
            for sentence in embedded.check(now) if embedded else ():
                say(sentence)
            for child in children:
                ended = child.check(now)
                if ended:
                    say(f"{ended}; its log is {log_of(settings, child.name)}")
            if give_up_at is not None:
                if health_checks.is_web_healthy(settings):
                    give_up_at = None
                    announce(settings, address, browser=browser, say=say)
                    seeding = start_seeding(settings) if seeds else None
                elif now > give_up_at:
                    raise Refused(f"Stopped: the server was not ready within {READY_SECONDS:g} s.")
            if seeding is not None and (code := seeding.poll()) is not None:
                seeding = None
                if code != 0:
                    say(
                        f"Not all example projects have prompts yet: adding them ended with {describe_exit(code)}. "
                        f"The next start tries again; the log is {log_of(settings, 'seeding')}"
                    )
            time.sleep(LOOK_SECONDS)
    finally:
        if seeding is not None:
            stop_child(seeding)


def announce(settings: Settings, address: str, *, browser: bool, say: Say) -> None:
    """Print the accounts and the address, and open the first steps where somebody sits at a display.

    Nobody does where stdin is no terminal: a script started the demo.
    """
    accounts = json.loads((settings.data_dir / ACCOUNTS_FILE).read_text())
    for name, account in accounts.items():
        say(f"{name}: {account['email']}  password {account['password']}  token {account['token']}")
    say(f"first steps: {address}{FIRST_STEPS} (sign in as {accounts['admin']['email']})")
    say(f"ready: {address}")
    if browser and sys.stdin.isatty() and has_display():
        webbrowser.open(address + FIRST_STEPS)


def has_display() -> bool:
    """Whether this machine can show a browser."""
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
