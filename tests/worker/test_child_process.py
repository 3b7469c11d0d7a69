"""The tuning process of a round: its environment, its left-overs, the files it speaks through."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from app.settings import get_settings
from illume.critics.job import CriticJob, write_critic_job
from illume.settings import CriticSettings, TuningSettings
from illume.tuning.job import read_json
from illume.tuning.launcher import read_progress
from tests.worker import loop
from worker import child_process
from worker.child_process import EventTail
from worker.process import WorkerProcess


class TestEnvironment:
    def test_tells_nothing_of_databases_and_keys(self, process: WorkerProcess) -> None:
        env = child_process.environment()
        assert not [name for name in env if name.startswith("ILLUME_")]
        assert (env["OMP_NUM_THREADS"], env["OMP_WAIT_POLICY"]) == ("1", "PASSIVE")


class TestRunning:
    def test_a_folder_without_a_job_is_an_error_with_a_reason(self, process: WorkerProcess, tmp_path: Path) -> None:
        with child_process.running(tmp_path) as child:
            assert child.wait(60) == 1
        assert child_process.read_error(tmp_path) == "job.json is missing"


class TestGoesOn:
    def test_a_critics_job_goes_on_as_a_round_does(
        self, process: WorkerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = CriticSettings(tuning=TuningSettings(**get_settings().machine))
        write_critic_job(tmp_path, CriticJob("base", {}, settings=settings), [])
        monkeypatch.setattr(get_settings(), "attn_implementation", "eager")
        assert child_process.goes_on(tmp_path)
        tuning = dataclasses.replace(settings.tuning, attn_implementation="eager")
        job = CriticJob.from_json(read_json(tmp_path / "job.json"))
        assert job == CriticJob("base", {}, settings=dataclasses.replace(settings, tuning=tuning))
        monkeypatch.setattr(get_settings(), "quantization", "8bit")
        assert not child_process.goes_on(tmp_path)


class TestEndLeftoverProcess:
    def test_ends_the_recorded_process_alone(self, tmp_path: Path) -> None:
        sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
        left, other = subprocess.Popen(sleeper), subprocess.Popen(sleeper)
        created = psutil.Process(left.pid).create_time()
        (tmp_path / "process.json").write_text(json.dumps([{"pid": left.pid, "created": created}]))
        child_process.end_leftover_process(tmp_path)
        assert not psutil.pid_exists(left.pid)
        left.wait()
        assert not (tmp_path / "process.json").exists()
        (tmp_path / "process.json").write_text(json.dumps([{"pid": other.pid, "created": created - 100}]))
        child_process.end_leftover_process(tmp_path)
        assert other.poll() is None
        other.kill()
        other.wait()

    def test_a_process_that_ignores_the_signal_is_killed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(child_process, "LEFTOVER_STOP_SECONDS", 0.5)
        code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
        deaf = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert deaf.stdout is not None
        deaf.stdout.readline()
        created = psutil.Process(deaf.pid).create_time()
        (tmp_path / "process.json").write_text(json.dumps([{"pid": deaf.pid, "created": created}]))
        child_process.end_leftover_process(tmp_path)
        assert not psutil.pid_exists(deaf.pid)
        deaf.wait()
        deaf.stdout.close()

    def test_nothing_left_is_nothing_to_do(self, tmp_path: Path) -> None:
        child_process.end_leftover_process(tmp_path)


class TestReading:
    def test_a_folder_that_says_nothing_yet(self, tmp_path: Path) -> None:
        assert read_progress(tmp_path) == {}
        assert child_process.epochs_done(tmp_path) == 0
        assert "process.log" in child_process.read_error(tmp_path)


class TestEventTail:
    def test_each_whole_line_once_with_its_number(self, tmp_path: Path) -> None:
        path = tmp_path / "events.jsonl"
        tail = EventTail(path)
        assert tail.read(10) == []
        path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
        assert tail.read(1) == [(1, {"a": 1})]
        assert tail.read(10) == [(2, {"a": 2})]
        assert tail.read(10) == []
        with path.open("a") as file:
            file.write('\n"no object"\n{"a": 5}\n')
        assert tail.read(10) == [(5, {"a": 5})]

    def test_lines_can_be_unread(self, tmp_path: Path) -> None:
        path = tmp_path / "events.jsonl"
        path.write_text('{"a": 1}\n{"a": 2}\n')
        tail = EventTail(path)
        tail.unread(tail.read(10))
        assert tail.read(1) == [(1, {"a": 1})]
        assert tail.read(10) == [(2, {"a": 2})]


def test_the_clock_is_not_needed_for_a_process_that_is_gone(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / "process.json").write_text(json.dumps([{"pid": gone.pid, "created": time.time()}]))
    child_process.end_leftover_process(tmp_path)
    loop.wait_until(lambda: not (tmp_path / "process.json").exists())
