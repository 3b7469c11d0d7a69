"""The `illume` command as a person uses it: its words, its refusals, and the demo it runs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import psutil
import pytest
from sqlalchemy import func, select

from app.cli import doctor, main
from app.cli import round as tuning_round
from app.models import Project, Role, Round, RoundState, Split
from app.processes.connect import forget_settings
from app.processes.embedded import SERVICES_FILE, free_port
from app.services.kernel import secret_key
from app.services.kernel.store import Store
from app.services.rounds.rounds import RoundPreview
from app.settings import ROOT, Settings, get_settings
from app.web.words import round_words
from illume.end_with_parent import signal_on_parent_end
from illume.root import STARTER
from tests import factories as make
from tests.app.services.feedback import judge
from tests.conftest import CommittedDatabase

NO_URLS = {"ILLUME_DATABASE_URL": "", "ILLUME_REDIS_URL": ""}
ILLUME = [sys.executable, "-m", "app.cli"]
PROMPT = {"question": "What is on the beach?", "answer": "an umbrella", "split": "train", "images": ["a.png"]}


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs one command to its end, in this process."""

    def run_command(*words: str | Path, stdin: str = "", **environment: str) -> Done:
        capsys.readouterr()
        before = dict(os.environ)  # a command sets some for the processes it starts
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdin", io.StringIO(stdin))
            forget_settings()
            code = main.main([str(word) for word in words])
        os.environ.clear()
        os.environ.update(before)
        forget_settings()
        return Done(code, *capsys.readouterr())

    yield run_command
    forget_settings()


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that is no group, with the words that lead to it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        _, command, _ = group.resolve_command(context, [name])
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


def refused(done: Done, code: int) -> str:
    """The one sentence of a command that was refused with `code`."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("illume: ")
    return lines[0]


@pytest.fixture(scope="module")
def starter(data_dir: Path) -> Path:
    """A starter of two scenes, a pair and no model."""
    folder = Path(tempfile.mkdtemp(dir=data_dir))
    parts = [{"type": "image", "image": f"{name}.png"} for name in ("a", "b")]
    pair = {"parts": [*parts, {"type": "text", "text": "What is on both?"}, parts[0]], "external_id": "a-b"}
    scenes = [{**PROMPT, "external_id": name, "images": [f"{name}.png"]} for name in ("a", "b")]
    shipped: dict[str, list[dict[str, Any]]] = {"scenes": scenes, "pairs": [pair]}
    for task, items in shipped.items():
        (folder / task).mkdir()
        for name in ("a", "b"):
            (folder / task / f"{name}.png").write_bytes(make.image_bytes())
        (folder / task / "prompts.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    return folder


@dataclass
class Demo:
    """A demo that runs; `said` are the lines it printed before it was ready."""

    process: subprocess.Popen[str]
    folder: Path
    port: int
    said: list[str] = field(default_factory=list)

    def family(self) -> list[psutil.Process]:
        """Every process it started, and those they started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, how: signal.Signals) -> tuple[int, str]:
        """Tell it to stop. The exit code, and the last things it said."""
        self.process.send_signal(how)
        output, _ = self.process.communicate(timeout=120)
        return self.process.returncode, output


def start_demo(folder: Path, starter: Path, *, words: Sequence[str] = ()) -> Demo:
    """Start a demo and wait until it is ready."""
    environment = {
        name: value for name, value in os.environ.items() if not name.endswith(("_DATABASE_URL", "_REDIS_URL"))
    }
    environment |= {"ILLUME_STARTER_DIR": str(starter)}
    port = free_port()
    command = [*ILLUME, "demo", "--port", str(port), "--data-dir", str(folder), "--no-browser", *words]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=signal_on_parent_end(signal.SIGTERM),
    )
    demo = Demo(process, folder, port)
    assert process.stdout is not None
    for line in process.stdout:
        demo.said.append(line.rstrip("\n"))
        if line.startswith("ready: "):
            return demo
    pytest.fail(f"The demo ended: {demo.said}")


@pytest.fixture(scope="module")
def place(data_dir: Path) -> Iterator[Path]:
    """A folder for the data of demos."""
    folder = Path(tempfile.mkdtemp(dir=data_dir))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def demo(place: Path, starter: Path) -> Iterator[Demo]:
    """A demo for tests that leave it running."""
    started = start_demo(place / "shared", starter)
    yield started
    if started.process.poll() is None:
        started.stop(signal.SIGTERM)


def answer(demo: Demo, path: str) -> int:
    """The status of a page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{demo.port}{path}") as response:
        return int(response.status)


def get(demo: Demo, path: str) -> Any:
    """What the demo answers its admin."""
    token = json.loads((demo.folder / "demo-accounts.json").read_text())["admin"]["token"]
    request = urllib.request.Request(
        f"http://127.0.0.1:{demo.port}{path}", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request) as response:  # noqa: S310 - our own server
        return json.load(response)


class TestDemo:
    def test_it_says_who_may_sign_in_and_once_that_it_is_ready(self, demo: Demo) -> None:
        assert demo.said[-1] == f"ready: http://127.0.0.1:{demo.port}"
        assert sum(line.startswith("ready") for line in demo.said) == 1
        path = demo.folder / "demo-accounts.json"
        accounts = json.loads(path.read_text())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert {name: account["email"] for name, account in accounts.items()} == {
            "admin": "admin@example.org",
            "critic": "critic@example.org",
        }
        for account in accounts.values():
            assert any(account["password"] in line and account["token"] in line for line in demo.said)
        assert answer(demo, "/readyz") == 200

    def test_its_token_opens_the_project(self, demo: Demo) -> None:
        assert get(demo, "/api/v1/projects/scenes")["slug"] == "scenes"
        assert len(get(demo, "/api/v1/projects/scenes/prompts")["items"]) == 2

    def test_the_other_project_is_there_and_soon_has_prompts(self, demo: Demo) -> None:
        assert [one["slug"] for one in get(demo, "/api/v1/projects")["items"]] == ["scenes", "pairs"]
        prompt = await_pair(demo)
        assert [part["type"] for part in prompt["parts"]] == ["image", "image", "text", "image"]

    def test_a_second_one_is_refused(self, run: Run, demo: Demo) -> None:
        done = run("demo", "--port", "0", "--data-dir", demo.folder, "--no-browser", **NO_URLS)
        assert f"already in use by process {demo.process.pid}" in refused(done, 2)
        assert answer(demo, "/readyz") == 200

    def test_a_port_in_use_is_refused(self, run: Run, demo: Demo) -> None:
        done = run("demo", "--port", str(demo.port), "--data-dir", demo.folder / "other", "--no-browser")
        assert f"Port {demo.port} of 127.0.0.1 cannot be used" in refused(done, 2)
        assert not (demo.folder / "other").exists()

    def test_other_commands_use_its_database(self, run: Run, demo: Demo) -> None:
        done = run("user", "add", "ann@example.org", "--role", "critic", "--data-dir", demo.folder, **NO_URLS)
        assert done.stdout.startswith("Added ann@example.org as critic.\npassword: ")
        again = run("user", "add", "ann@example.org", "--role", "critic", "--data-dir", demo.folder, **NO_URLS)
        assert "already" in refused(again, 1)

    def test_a_child_that_was_killed_is_started_again(self, demo: Demo) -> None:
        web = next(child for child in demo.family() if "serve" in child.cmdline())
        web.kill()
        web.wait()
        assert demo.process.stdout is not None
        assert "web ended with SIGKILL; restarting it in 0.5 s" in demo.process.stdout.readline()
        while not is_up(demo):
            assert demo.process.poll() is None
        assert answer(demo, "/readyz") == 200

    def test_told_to_stop_it_stops_everything(self, demo: Demo) -> None:
        family = demo.family()
        assert len(family) >= 6
        assert_stopped(demo, signal.SIGINT)
        assert not any(process.is_running() for process in family)


class TestDemoEnds:
    def test_killed_it_leaves_nothing_and_starts_again_with_its_accounts_and_services(
        self, place: Path, starter: Path
    ) -> None:
        killed = start_demo(place / "killed", starter)
        left, before = killed.family(), (killed.folder / "demo-accounts.json").read_text()
        killed.stop(signal.SIGKILL)
        demo = start_demo(place / "killed", starter)
        try:
            _, alive = psutil.wait_procs(left, timeout=60)
            assert not alive
            assert (demo.folder / "demo-accounts.json").read_text() == before
            await_pair(demo)
            while is_seeding(demo):  # without a database it would say so
                time.sleep(0.2)
            # Its database and broker come back where they are killed alone.
            for name in ("postgres", "redis-server"):
                next(child for child in demo.family() if child.name().startswith(name)).kill()
            output = demo.process.stdout
            assert output is not None
            said = {output.readline().split(";")[0] for _ in range(2)}
            assert said == {"PostgreSQL ended with SIGKILL", "Redis ended with SIGKILL"}
            await_ready(demo)
        finally:
            family = demo.family()
            demo.stop(signal.SIGTERM)
        assert demo.process.returncode == 0
        assert not any(process.is_running() for process in family)


class TestLists:
    def test_projects_and_people(self, run: Run, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions.begin() as session:
            project = make.make_project(session, slug="cats", name="All cats")
            make.make_user(session, email="boss@example.org", name="Ada", role=Role.admin)
            ann = make.make_member(session, project, Role.critic)
            gone = make.make_user(session, email="gone@example.org", role=Role.viewer)
            gone.disabled_at = func.now()
            email = ann.email
        assert [line.split()[:3] for line in run("project", "list").stdout.splitlines()] == [
            ["slug", "name", "created"],
            ["cats", "All", "cats"],
        ]
        header, *lines = run("user", "list").stdout.splitlines()
        assert header.split() == ["email", "name", "role", "projects", "state"]
        assert sorted(line.split() for line in lines) == sorted(
            [
                ["boss@example.org", "Ada", "admin", "-", "active"],
                [email, "-", ann.role, "cats", "(critic)", "active"],
                ["gone@example.org", "-", "viewer", "-", "disabled"],
            ]
        )

    def test_the_version(self, run: Run) -> None:
        done = run("--version")
        assert (done.returncode, done.stdout) == (0, f"illume {importlib.metadata.version('illume')}\n")


class TestDataDirectory:
    @pytest.mark.parametrize(
        "words",
        [
            ("user", "list"),
            ("project", "list"),
            ("doctor", "--skip-model"),
            ("backup",),
            ("worker",),
            ("beat",),
            ("db", "upgrade"),
            ("round", "list", "cats"),
            ("export", "cats", "--out", "x.jsonl"),
            ("erase", "project", "cats"),
        ],
    )
    def test_one_that_is_not_there_is_refused(self, run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
        for more in (NO_URLS, {}):
            done = run(*words, "--data-dir", tmp_path / "mistyped", **more)
            assert done.returncode == 2
            assert f"There is no data directory {tmp_path / 'mistyped'}" in done.stderr
            assert not (tmp_path / "mistyped").exists()

    def test_neither_is_one_named_by_the_environment_made(self, run: Run, tmp_path: Path) -> None:
        done = run("user", "list", ILLUME_DATA_DIR=str(tmp_path / "mistyped"), **NO_URLS)
        assert (done.returncode, (tmp_path / "mistyped").exists()) == (2, False)


class TestServe:
    @pytest.mark.slow
    def test_with_services_of_its_own_they_come_back(self, place: Path) -> None:
        folder = place / "serving"
        environment = {**os.environ, **NO_URLS, "ILLUME_DATA_DIR": str(folder)}
        subprocess.run([*ILLUME, "db", "upgrade"], cwd=ROOT, env=environment, check=True, capture_output=True)
        port = free_port()
        process = subprocess.Popen(
            [*ILLUME, "serve", "--port", str(port)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=signal_on_parent_end(signal.SIGTERM),
        )
        server = Demo(process, folder, port)
        try:
            await_ready(server)
            next(child for child in server.family() if child.name().startswith("postgres")).kill()
            output = process.stdout
            assert output is not None
            assert any("PostgreSQL ended with SIGKILL" in line for line in output)
            await_ready(server)
        finally:
            family = server.family()
            server.stop(signal.SIGTERM)
        assert process.returncode == 0
        assert not any(one.is_running() for one in family)


def assert_stopped(demo: Demo, how: signal.Signals) -> None:
    """Tell a demo to stop, which it does well and quietly."""
    code, said = demo.stop(how)
    assert (code, said) == (0, "")
    assert not (demo.folder / SERVICES_FILE).exists()


def await_ready(demo: Demo) -> None:
    """Wait until the server answers that it, its database and its broker are well."""
    end = time.monotonic() + 90
    while True:
        with contextlib.suppress(OSError):
            if answer(demo, "/readyz") == 200:
                return
        assert demo.process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)


def await_pair(demo: Demo) -> Any:
    """Wait for the prompts that are added when the demo is ready. Returns the first."""
    while not (items := get(demo, "/api/v1/projects/pairs/prompts")["items"]):
        assert demo.process.poll() is None
        time.sleep(0.2)
    return items[0]


def is_seeding(demo: Demo) -> bool:
    """Whether prompts are still being added."""
    for process in demo.family():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "app.cli.server.seeding" in process.cmdline():
                return True
    return False


def is_up(demo: Demo) -> bool:
    """Whether somebody listens on the demo's port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", demo.port)) == 0


class TestRefusals:
    def test_a_data_directory_that_cannot_be_written(self, run: Run, place: Path) -> None:
        (place / "a file").write_text("")
        done = run("demo", "--port", "0", "--data-dir", place / "a file", "--no-browser", **NO_URLS)
        assert "cannot be written to" in refused(done, 2)

    def test_a_database_that_stays_away(self, run: Run) -> None:
        away = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
        done = run("db", "upgrade", ILLUME_DATABASE_URL=away, ILLUME_REDIS_URL="redis://x", ILLUME_DATABASE_WAIT="0.5")
        assert done.returncode == 1
        assert "waiting up to" in done.stdout
        assert "did not answer within 0.5 s" in done.stderr
        assert "Traceback" not in done.stderr

    def test_why_the_database_does_not_answer_is_said(self, run: Run) -> None:
        away = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
        done = run("db", "upgrade", ILLUME_DATABASE_URL=away, ILLUME_REDIS_URL="redis://x", ILLUME_DATABASE_WAIT="0")
        assert "Connection refused" in refused(done, 1)
        assert "Is the server running" not in done.stderr

    def test_settings_that_cannot_be_read_are_named(self, run: Run) -> None:
        done = run("db", "upgrade", ILLUME_POOL_SIZE="many")
        assert "ILLUME_POOL_SIZE is 'many': it must be a whole number." in refused(done, 2)

    def test_a_database_of_another_kind(self, run: Run) -> None:
        done = run("db", "upgrade", ILLUME_DATABASE_URL="mysql://x/y", ILLUME_REDIS_URL="redis://x")
        assert "must start with postgresql://" in refused(done, 2)

    def test_tables_that_are_not_there(self, run: Run, embedded: object, redis_url: str, database_url: str) -> None:
        none = database_url.replace("/illume?", "/postgres?")
        done = run("serve", "--port", str(free_port()), ILLUME_DATABASE_URL=none, ILLUME_REDIS_URL=redis_url)
        assert "illume db upgrade" in refused(done, 1)

    def test_a_store_that_can_be_nowhere(self, run: Run) -> None:
        done = run("serve", "--port", str(free_port()), ILLUME_STORE_URL="nonsense://me:secret@host/store")
        assert "ILLUME_STORE_URL=nonsense://host/store: Protocol not known: nonsense." in refused(done, 2)

    def test_words_nobody_knows(self, run: Run) -> None:
        assert run("dance").returncode == 2
        assert run("user", "add", "x@example.org", "--role", "king").returncode == 2

    def test_a_queue_nobody_knows(self, run: Run, database_url: str) -> None:
        assert "--queues takes" in refused(run("worker", "--queues", "model,dance"), 2)

    def test_numbers_that_cannot_be_meant(self, run: Run) -> None:
        for words in (("serve", "--workers", "0"), ("doctor", "--workers", "-3")):
            assert "--workers must be at least 1." in refused(run(*words), 2)

    def test_a_misused_command_line_is_one_sentence(self, run: Run) -> None:
        assert "Did you mean 'doctor'?" in refused(run("docter"), 2)
        assert "'--role'" in refused(run("user", "add", "x@example.org"), 2)
        assert "See `illume export --help`." in refused(run("export", "cats", "--out", "x", "--format", "xml"), 2)
        assert "--map takes COLUMN=FIELD" in refused(run("import", "cats", "x.csv", "--map", "caption"), 2)


class TestHelp:
    def test_every_option_and_argument_has_its_help(self) -> None:
        for words, command in commands(main.illume):
            for parameter in command.params:
                assert parameter.help, f"{' '.join(words)}: {parameter.name}"

    def test_the_list_of_commands_agrees_with_them(self) -> None:
        for name, (_, summary) in main.COMMANDS.items():
            command = main.load_command(name)
            assert command.name == name
            assert (command.help or "").splitlines()[0].startswith(f"{summary}.")

    def test_no_words_show_the_commands(self, run: Run) -> None:
        done = run()
        assert done.returncode == 2
        assert done.stderr.startswith("Usage: illume")
        for words in (("--help",), ("-h",), ("round", "--help"), ("round", "start", "--help")):
            assert run(*words).returncode == 0

    def test_words_for_the_library_go_there_unread(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        became: list[list[str]] = []
        monkeypatch.setattr("os.execv", lambda _program, words: became.append(words[1:]))
        assert run("simulate", "--help").returncode == 0
        run("scenes", "make", "--", "--n", "3")
        assert became == [
            ["-m", "illume.simulation", "--help"],
            ["-m", "illume.scenes", "make", "--", "--n", "3"],
        ]

    def test_a_shell_completes_commands_and_choices(self) -> None:
        def complete(*words: str) -> list[str]:
            environment = {
                **os.environ,
                "_ILLUME_COMPLETE": "bash_complete",
                "COMP_WORDS": " ".join(["illume", *words]),
                "COMP_CWORD": str(len(words)),
            }
            done = subprocess.run(ILLUME, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
            return [line.split(",")[1] for line in done.stdout.splitlines()]

        assert complete("se") == ["serve"]
        assert complete("round", "c") == ["cancel"]
        assert complete("user", "add", "x@example.org", "--role", "v") == ["viewer"]

    def test_help_and_completion_load_no_database(self) -> None:
        code = "import sys; from app.cli.main import main; main(['--help']); print('sqlalchemy' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "False"


class TestPeople:
    def test_a_password_can_be_brought(self, run: Run, committed_db: CommittedDatabase) -> None:
        done = run(
            "user", "add", "bo@example.org", "--role", "admin", "--password-stdin", stdin="a good long password\n"
        )
        assert done.stdout == "Added bo@example.org as admin.\n"
        from app.services.accounts import sessions

        with committed_db.sessions() as session:
            user = sessions.check_password(session, "bo@example.org", "a good long password", address="127.0.0.1")
            assert user.role == "admin"

    def test_without_passwords_the_first_admin_is_added_for_a_provider(
        self, run: Run, committed_db: CommittedDatabase
    ) -> None:
        done = run("user", "add", "di@example.org", "--role", "admin", ILLUME_PASSWORDS="false")
        assert done.stdout == (
            "Added di@example.org as admin.\nThey sign in with a provider that confirms this address.\n"
        )
        from app.services.accounts import users

        with committed_db.sessions() as session:
            user = users.find_user(session, "di@example.org")
            assert user is not None
            assert user.password_hash is None

    def test_a_token_is_printed_and_works(self, run: Run, committed_db: CommittedDatabase) -> None:
        from app.services.accounts import users

        with committed_db.sessions.begin() as session:
            make.make_user(session, email="cy@example.org")
        done = run("token", "add", "cy@example.org", "--scope", "write")
        with committed_db.sessions() as session:
            assert users.actor_for_token(session, done.stdout.strip()).email == "cy@example.org"
        assert "There is no account for dee@example.org" in refused(
            run("token", "add", "dee@example.org", "--scope", "read"), 1
        )


class TestProjects:
    def test_in_and_out(self, run: Run, committed_db: CommittedDatabase, tmp_path: Path) -> None:
        assert run("project", "add", "cats", "--name", "Cats").stdout == "Added the project cats.\n"
        assert "already" in refused(run("project", "add", "cats"), 1)
        (tmp_path / "a.png").write_bytes(make.image_bytes())
        table = tmp_path / "prompts.jsonl"
        table.write_text(json.dumps({**PROMPT, "external_id": "1"}) + "\n" + "not JSON\n")
        done = run("import", "cats", table)
        assert done.returncode == 1
        assert "1 added, 0 unchanged, 1 rejected." in done.stdout
        assert done.stderr.startswith("line 2: ")
        table.write_text(json.dumps({**PROMPT, "external_id": "1"}) + "\n")
        again = run("import", "cats", table)
        assert (again.returncode, again.stdout.splitlines()[-1]) == (0, "0 added, 1 unchanged, 0 rejected.")
        shared = run("import", "cats", table, "--val-share", "0.1")
        assert shared.stdout.splitlines()[-1] == "0 added, 0 of them to val, 1 unchanged, 0 rejected."
        assert "leave out --split" in refused(run("import", "cats", table, "--val-share", "0.1", "--split", "val"), 2)
        assert "0.0<=x<=0.5" in refused(run("import", "cats", table, "--val-share", "0.9"), 2)
        assert "could not be read" in refused(run("import", "cats", tmp_path / "none.jsonl"), 2)
        nowhere = tmp_path / "nowhere"
        assert "There is no folder or zip" in refused(run("import", "cats", table, "--images", nowhere), 2)
        picture = run("import", "cats", tmp_path / "a.png")
        assert "neither a table (.jsonl, .csv, .json, .xlsx, .parquet) nor a zip" in refused(picture, 1)
        done = run("restore", nowhere)
        assert refused(done, 2).strip() == f"illume: {nowhere} could not be read: No such file or directory."
        assert run("export", "cats", "--out", tmp_path / "out.jsonl").returncode == 0
        assert (tmp_path / "out.jsonl").read_text() == ""
        assert "no such project" in refused(run("export", "dogs", "--out", tmp_path / "out.jsonl"), 1)


class TestRounds:
    def test_from_what_it_would_do_to_its_end(self, run: Run, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions.begin() as session:
            project = make.make_project(session, slug="cats", auto_rounds=False)
            make.make_prompt(session, project, split=Split.val, references=["because it is"])
        assert "There are no rounds yet" in run("round", "list", "cats").stdout
        assert "Nothing to train on yet" in refused(run("round", "start", "cats", "--yes"), 1)
        with committed_db.sessions.begin() as session:
            project = session.scalars(select(Project)).one()
            judge(session, project, make.make_critic(session, project), picks=2)
        asked = run("round", "start", "cats")
        assert "Trains on 2 accepted rationales from 1 prompt," in asked.stdout
        assert "--yes" in refused(asked, 2)
        assert run("round", "start", "cats", "--yes").stdout.splitlines()[-1] == "Round 1 is queued."
        assert "still running" in refused(run("round", "start", "cats", "--yes"), 1)
        assert "waiting for a worker" in run("round", "list", "cats").stdout
        assert run("round", "cancel", "cats").stdout == "Round 1 is cancelled.\n"
        assert "No round of cats" in refused(run("round", "cancel", "cats"), 1)
        assert run("round", "resume", "cats").stdout == "Round 1 is queued; it goes on from its last checkpoint.\n"
        assert "this one is still in progress" in refused(run("round", "resume", "cats"), 1)

    def test_its_preview_names_rejections_and_what_a_machine_accepted(self) -> None:
        seen = RoundPreview(
            n_prompts=9,
            n_rationales=12,
            n_guard=24,
            n_val=5,
            n_heldout=0,
            n_rejections=None,
            n_pairs=None,
            n_machine=None,
            metric="rouge_l",
            estimated_seconds=95.0,
            exact=True,
        )
        plain = tuning_round.preview_words(seen, learns_rejections=False)
        assert "ejected" not in plain
        assert "machine" not in plain
        both = replace(seen, n_rejections=30, n_pairs=20, n_machine=3)
        words = tuning_round.preview_words(both, learns_rejections=True).splitlines()
        assert words[1:3] == [
            "Also on 3 that only the machine critic accepted, each counting half.",
            "Learns from 30 rejected rationales, 20 of them beside an accepted one.",
        ]
        large = tuning_round.preview_words(replace(seen, exact=False), learns_rejections=True)
        assert "Rejected rationales are counted when the round starts" in large

    def test_it_is_followed_to_its_end(self, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions.begin() as session:
            found = make.make_round(session, make.make_project(session, slug="cats"), state=RoundState.training)
            found.progress = {"fraction": 0.5, "eta_seconds": 30}
            round_id = found.id
        said: list[str] = []

        def say(words: str) -> None:
            said.append(words)
            with committed_db.sessions.begin() as session:
                ended = session.get_one(Round, round_id)
                ended.state, ended.error, ended.finished_at = RoundState.failed, "It is broken.", func.now()

        assert tuning_round.watch(round_id, say=say) == 1
        assert said == ["Training, 50 %, about 30 s left", "Round 1 failed: It is broken."]

    def test_while_its_snapshot_is_made(self) -> None:
        found = Round(state=RoundState.preparing, progress={"stage": "snapshot", "fraction": 0.4})
        assert round_words(found) == "preparing the snapshot (40 %)"
        found.progress = {"stage": "waiting", "fraction": 0.0}
        assert round_words(found) == "prepared, waiting for a model worker"


class TestDoctor:
    def test_all_is_well(self, run: Run, committed_db: CommittedDatabase) -> None:
        done = run("doctor", "--skip-model")
        assert done.returncode == 0, done.stdout
        checked = [line[9:].split(":")[0] for line in done.stdout.splitlines()]
        services = ["database", "migrations", "pictures", "secret key", "connections", "broker"]
        assert checked == ["data directory", "store", *services, "public URL", "web process"]

    @pytest.mark.parametrize(
        ("free", "is_enough", "ok", "said"),
        [
            (9e9, True, True, "fits sampling and training rounds"),
            (7e9, False, True, "fits sampling and training rounds of projects with the setting 'Save memory'"),
            (6e9, False, False, "fits sampling"),
            (6e9, True, True, "fits sampling"),
            (1e9, False, False, "too large"),
        ],
    )
    def test_it_says_where_a_model_fits(self, free: float, is_enough: bool, ok: bool, said: str) -> None:
        device = {"name": "cuda:0", "free": free}
        needs = {
            "sampling": 5e9,
            "round": 8e9,
            "round_checkpointed": 6.5e9,
            "dtype": "bfloat16",
            "quantization": "none",
        }
        found = doctor.device_finding(device, needs, is_enough=is_enough)
        assert found.ok is ok
        assert found.detail.endswith(f": {said}")
        assert ("8.0 GB" in found.remedy) is not ok

    def test_it_names_the_setting_of_models_that_this_machine_cannot_meet(self) -> None:
        found = doctor.check_machine(Settings(device="cpu", attn_implementation="flash_attention_2"))
        assert not found.ok
        assert found.detail == (
            "ILLUME_ATTN_IMPLEMENTATION=flash_attention_2: flash_attention_2 needs a CUDA device, and this is cpu"
        )
        assert found.remedy.startswith("Unset ILLUME_ATTN_IMPLEMENTATION")

    def test_it_names_what_is_wrong_with_a_configuration_of_several_cards(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "accelerate.yaml"
        path.write_text("distributed_type: MULTI_GPU\nnum_processes: 4\n")
        said = {"device": "cuda", "dtype": "bfloat16", "cards": 2}
        monkeypatch.setattr(doctor, "ask", lambda module, words: said)
        found = doctor.check_machine(Settings(accelerate_config=str(path)))
        assert not found.ok
        assert found.detail == f"{path}: num_processes is 4, and this machine has only 2 graphics cards"
        said["cards"] = 4
        assert doctor.check_machine(Settings(accelerate_config=str(path))).ok

    def test_a_database_that_is_away_is_named_and_what_hangs_on_it_waits(self) -> None:
        away = Settings(database_url=f"postgresql://illume@127.0.0.1:{free_port()}/illume")
        found = doctor.check_database(away)
        assert (found.ok, "refused" in found.detail, "ILLUME_DATABASE_URL" in found.remedy) == (False, True, True)
        waiting = [doctor.check_migrations(away), doctor.check_pictures(away), doctor.check_connections(away, 1)]
        assert not any(one.ok for one in waiting)
        assert all(one.detail.startswith("unknown until the database") for one in waiting)
        assert {one.remedy for one in waiting} == {"Fix the database first."}

    def test_it_estimates_what_a_model_takes(self) -> None:
        counted, *devices = doctor.estimate_memory(str(STARTER / "model"))
        assert (counted.ok, "million parameters" in counted.detail) == (True, True)
        assert devices
        assert all("for a training round" in one.detail for one in devices)

    @pytest.mark.slow
    def test_it_estimates_nothing_for_a_model_that_is_not_there(self) -> None:
        (found,) = doctor.estimate_memory("/nowhere/model")
        assert (found.ok, found.remedy.startswith("Name a folder")) == (False, True)

    def test_a_store_that_is_away_is_named_with_the_reason(self, tmp_path: Path) -> None:
        found = doctor.check_store(Settings(store_url=f"ftp://me:secret@127.0.0.1:{free_port()}/store"))
        assert (found.ok, "ILLUME_STORE_URL" in found.remedy) == (False, True)
        assert "refused" in found.detail
        assert "secret" not in found.detail
        found = doctor.check_store(Settings(store_url="nonsense://host/store"))
        assert (found.ok, found.detail) == (
            False,
            "ILLUME_STORE_URL=nonsense://host/store: Protocol not known: nonsense",
        )
        here = Settings(store_url=str(tmp_path / "store"))
        assert doctor.check_store(here) == doctor.Finding("store", True, str(tmp_path / "store"))
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "store").mkdir()
        assert doctor.check_store(here).ok
        assert list(tmp_path.rglob("*")) == [tmp_path / "store"]

    def test_a_store_of_another_installation_is_noticed(self, committed_db: CommittedDatabase, tmp_path: Path) -> None:
        here = get_settings().model_copy(update={"store_url": str(tmp_path / "store")})
        assert doctor.check_pictures(here).detail == "none yet"
        data = make.image_bytes()
        with committed_db.sessions.begin() as session:
            make.make_image(session, data)
        found = doctor.check_pictures(here)
        assert (found.ok, "lacks the newest picture" in found.detail) == (False, True)
        assert found.remedy.startswith("Set ILLUME_STORE_URL")
        Store(here.store).put_bytes(data)
        assert doctor.check_pictures(here).ok

    def test_a_secret_key_of_another_machine_is_noticed(self, committed_db: CommittedDatabase) -> None:
        here = get_settings()
        assert doctor.check_secret_key(here) == doctor.Finding(
            "secret key", True, "compared once a web server has started"
        )
        secret_key.store_check()
        assert doctor.check_secret_key(here) == doctor.Finding("secret key", True, "the web server's")
        found = doctor.check_secret_key(here.model_copy(update={"secret_key": "another"}))
        assert (found.ok, "another one than the web server" in found.detail) == (False, True)
        assert found.remedy.startswith("Set ILLUME_SECRET_KEY to the web server's")

    def test_it_shows_the_public_url(self) -> None:
        url = "https://illume.example.org"
        found = doctor.check_public_url(Settings(public_url=url))
        assert (found.ok, url in found.detail) == (False, True)
        assert "ILLUME_SECURE_COOKIES=true" in found.remedy
        found = doctor.check_public_url(Settings(public_url=url, secure_cookies=True, trusted_proxies="10.0.0.0/8"))
        assert (found.ok, found.detail) == (True, f"{url}; trusted proxies: 10.0.0.0/8")

    def test_what_is_wrong_is_named_with_what_to_do(self, run: Run, database_url: str) -> None:
        none = database_url.replace("/illume?", "/postgres?")
        away = f"redis://127.0.0.1:{free_port()}/0"
        done = run("doctor", "--skip-model", "--workers", "9", ILLUME_DATABASE_URL=none, ILLUME_REDIS_URL=away)
        assert done.returncode == 1
        problems = [line for line in done.stdout.splitlines() if line.startswith("PROBLEM")]
        found = [line[9:].split(":")[0] for line in problems]
        assert found == ["migrations", "pictures", "secret key", "connections", "broker"]
        assert "Run `illume db upgrade`." in done.stdout
