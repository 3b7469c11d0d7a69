"""A round in a child process: what it returns, how it fails, that it stops with whoever waits and goes on later."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from illume.tuning import launcher
from illume.tuning.job import read_json
from illume.tuning.launcher import TuningError, tune
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
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TuningError, match="another process"):
            tune(folder)
    assert not (folder / "progress.json").exists()
