"""Where the demo says that it is ready, and when it opens a browser."""

from __future__ import annotations

import json
import sys
import time
import webbrowser
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import select

from app.cli.server import demo, seeding
from app.models import Installation
from app.processes import health_checks
from app.processes.supervise import start_child
from app.services.kernel import secret_key
from app.settings import Settings, get_settings
from tests.conftest import CommittedDatabase

ADDRESS = "http://127.0.0.1:8000"


class EnoughSeen(Exception):
    """Ends a demo that would go on running."""


class Terminal:
    """A stdin that is a terminal, or is not."""

    def __init__(self, *, is_terminal: bool) -> None:
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        """Whether somebody types."""
        return self._is_terminal


@pytest.mark.parametrize(
    ("browser", "is_terminal", "display", "opens"),
    [
        (True, True, ":0", True),
        (True, True, "", False),
        (True, False, ":0", False),
        (False, True, ":0", False),
    ],
)
def test_opens_a_browser_only_for_somebody_who_sees_it(
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    browser: bool,
    is_terminal: bool,
    display: str,
    opens: bool,
) -> None:
    accounts = {"admin": {"email": "admin@example.org", "password": "a password", "token": "a token"}}
    path = data_dir / demo.ACCOUNTS_FILE
    path.write_text(json.dumps(accounts))
    opened: list[str] = []
    said: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "stdin", Terminal(is_terminal=is_terminal))
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", display)
    demo.announce(get_settings(), ADDRESS, browser=browser, say=said.append)
    path.unlink()
    assert opened == ([f"{ADDRESS}/admin/projects/scenes/first-steps"] if opens else [])
    assert said[0] == "admin: admin@example.org  password a password  token a token"
    assert said[1] == f"first steps: {ADDRESS}/admin/projects/scenes/first-steps (sign in as admin@example.org)"
    assert said[-1] == f"ready: {ADDRESS}"


def test_the_check_of_the_secret_key_is_stored_before_workers_start(
    committed_db: CommittedDatabase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(seeding, "seed_demo", lambda *_: {})
    monkeypatch.setattr(seeding, "is_complete", lambda *_: True)
    here = get_settings().model_copy(update={"data_dir": tmp_path})
    demo.prepare(here, say=print)
    with committed_db.sessions() as session:
        assert session.scalar(select(Installation.key_check)) == secret_key.make_check(here.secret_key)


@pytest.mark.parametrize("word", ["--no-open", "--no-browser"])
def test_both_words_say_no(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    asked: list[bool] = []

    def run(*, port: object, browser: bool, say: object) -> int:
        asked.append(browser)
        return 0

    monkeypatch.setattr(demo, "run", run)
    for words in ([word], []):
        CliRunner().invoke(demo.demo, words, standalone_mode=False)
    assert asked == [False, True]


def test_the_server_of_the_demo_knows_which_account_its_sign_in_page_names(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, str]] = []
    monkeypatch.setattr(demo, "start_child", lambda _, *, log, env: started.append(env))
    settings = get_settings()
    assert settings.data_dir == data_dir
    for child in demo.processes(settings, account="admin@example.org"):
        child.start()
    assert {env["ILLUME_DEMO_ACCOUNT"] for env in started} == {"admin@example.org"}
    monkeypatch.setenv("ILLUME_DEMO_ACCOUNT", "admin@example.org")
    assert Settings().demo_account == "admin@example.org"


def test_says_where_prompts_could_not_be_added(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else goes on running."""
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        raise EnoughSeen

    failing = [sys.executable, "-c", "raise SystemExit(3)"]
    monkeypatch.setattr(demo, "start_seeding", lambda _: start_child(failing))
    monkeypatch.setattr(demo, "announce", lambda *_, **__: None)
    monkeypatch.setattr(health_checks, "is_web_healthy", lambda _: True)
    with pytest.raises(EnoughSeen):
        demo.serve([], None, get_settings(), seeds=True, browser=False, say=say)
    assert said == [
        "Not all example projects have prompts yet: adding them ended with exit code 3. "
        f"The next start tries again; the log is {data_dir / 'logs' / 'seeding.log'}"
    ]


def test_adds_no_prompts_where_none_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[str] = []

    def sleep(_: float) -> None:
        raise EnoughSeen

    monkeypatch.setattr(demo, "start_seeding", lambda _: pytest.fail("A process was started."))
    monkeypatch.setattr(demo, "announce", lambda _, address, **__: announced.append(address))
    monkeypatch.setattr(health_checks, "is_web_healthy", lambda _: True)
    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(EnoughSeen):
        demo.serve([], None, get_settings(), seeds=False, browser=False, say=pytest.fail)
    assert len(announced) == 1
