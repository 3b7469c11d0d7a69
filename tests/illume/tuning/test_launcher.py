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
from illume.tuning.job import EXIT_IN_USE, EXIT_STOPPED, FolderInUseError, read_json
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
