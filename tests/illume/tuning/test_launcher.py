"""A round in a child process: what it returns, how it fails, that it stops with whoever waits and goes on later."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from illume.tuning import launcher
from illume.tuning.command import StopRequest, main
from illume.tuning.job import (
    EXIT_FAILED,
    EXIT_IN_USE,
    EXIT_KILLED,
    EXIT_STOPPED,
    FolderInUseError,
    TuningJob,
    read_json,
    write_job,
    write_json,
)
from illume.tuning.launcher import TuningError, run_job, running, tune
from tests.illume.families import make_llava
from tests.illume.rounds import SETTINGS, make_round


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("base"))


def test_stopped_by_an_exception_it_goes_on_when_called_again(base: Path, tmp_path: Path) -> None:
    folder = make_round(tmp_path / "round", base, settings=replace(SETTINGS, epochs=3))

    def interrupt(progress: Mapping[str, Any]) -> None:
        if progress["step"] >= 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(folder, on_progress=interrupt)
    assert (folder / ".lock").exists()
    assert not (folder / "result.json").exists()
    result = tune(folder)
    assert result == read_json(folder / "result.json")
    assert len(result["epochs"]) == 3
    assert "resumed at epoch" in (folder / "events.jsonl").read_text()


def test_a_failed_round_says_why(base: Path, tmp_path: Path) -> None:
    folder = make_round(tmp_path / "round", base)
    (folder / "train.jsonl").write_text("no row\n")
    with pytest.raises(TuningError, match="line 1"):
        tune(folder)


def test_a_folder_in_use_is_left_alone(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_round(tmp_path / "round", base)
    monkeypatch.setattr(launcher, "_LOCK_SECONDS", 0.0)
    monkeypatch.setattr(StopRequest, "install", lambda self, parent: None)
    with FileLock(folder / ".lock"):
        with pytest.raises(FolderInUseError, match="another process"):
            run_job(folder, request=StopRequest())
        assert main([str(folder)]) == EXIT_IN_USE
    assert not (folder / "progress.json").exists()
    assert not (folder / "error.json").exists()


SCRIPT = """
import os, pathlib, signal, sys, time
pathlib.Path(sys.argv[1], os.environ["RANK"]).touch()
while len(list(pathlib.Path(sys.argv[1]).iterdir())) < 2:
    time.sleep(0.01)
{end}
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL) if os.environ['RANK'] == '1' else sys.exit(1)", EXIT_KILLED),
        pytest.param("os.environ['RANK'] == '1' and sys.exit(1)", EXIT_FAILED, marks=pytest.mark.slow),
    ],
)
def test_several_processes_tell_one_that_was_killed_from_one_that_failed(end: str, code: int, tmp_path: Path) -> None:
    script, ranks = tmp_path / "script.py", tmp_path / "ranks"
    script.write_text(SCRIPT.format(end=end))
    ranks.mkdir()
    launching = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), str(ranks)]
    command = [sys.executable, "-m", "illume.tuning.processes", *launching]
    assert subprocess.run(command, check=False).returncode == code


def test_a_round_of_which_a_process_was_killed_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where another process, which waited for the killed one, wrote an error of its own."""
    write_job(tmp_path / "round", TuningJob("base", processes=2), train=[], val=[])
    launching = tmp_path / "launching"
    error = tmp_path / "round" / "error.json"
    launching.write_text(f"#!/bin/sh\necho '{{}}' > {error}\nexit {EXIT_KILLED}\n")
    launching.chmod(0o755)
    monkeypatch.setattr(StopRequest, "install", lambda self, parent: None)
    monkeypatch.setattr(sys, "executable", str(launching))
    assert main([str(tmp_path / "round")]) == EXIT_KILLED
    assert not error.exists()
    assert "one of the round's processes was killed" in capsys.readouterr().err
    with pytest.raises(TuningError, match="can be resumed"):
        tune(tmp_path / "round")


def test_one_of_several_processes_leaves_the_error_that_came_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StopRequest, "install", lambda self, parent: None)
    assert main([str(tmp_path), "--rank"]) == EXIT_FAILED
    assert read_json(tmp_path / "error.json")["message"] == "job.json is missing"
    write_json(tmp_path / "error.json", {"message": "memory ran out"})
    assert main([str(tmp_path), "--rank"]) == EXIT_FAILED
    assert read_json(tmp_path / "error.json")["message"] == "memory ran out"
    assert main([str(tmp_path)]) == EXIT_FAILED
    assert read_json(tmp_path / "error.json")["message"] == "job.json is missing"


def test_its_lock_goes_with_a_process_that_is_killed(base: Path, tmp_path: Path) -> None:
    folder = make_round(tmp_path / "round", base)
    with running(folder) as child:
        while not (folder / "progress.json").exists():
            assert child.poll() is None
            time.sleep(0.05)
        assert not is_free(folder)
        child.kill()
        child.wait()
        assert is_free(folder)


def test_it_ends_at_once_where_its_launcher_has_ended_before(base: Path, tmp_path: Path) -> None:
    folder = make_round(tmp_path / "round", base)
    gone = subprocess.Popen(["true"])
    gone.wait()
    command = [sys.executable, "-m", "illume.tuning", str(folder), "--parent", str(gone.pid)]
    assert subprocess.run(command, check=False).returncode == EXIT_STOPPED
    assert not (folder / "result.json").exists()


def is_free(folder: Path) -> bool:
    """Whether no process holds the folder's lock."""
    try:
        with FileLock(folder / ".lock", blocking=False):
            return True
    except Timeout:
        return False
