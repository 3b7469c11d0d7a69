"""A run that is killed goes on from its last checkpoint, and gives what it would have given without."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from illume.starter import training
from illume.starter.__main__ import main
from illume.starter.architecture import CHAT_TEMPLATE, build_tokenizer
from illume.starter.curriculum import MIXING, SEEING, Recipe

TINY = Recipe(
    stages=(
        replace(SEEING, steps=2, pictures=2),
        replace(MIXING, steps=3, rates=(0.5, 0.1), scenes=1, pairs=1, guard=1, questions=1, rationales=1),
    ),
    warmup=2,
)


ROOT = Path(__file__).resolve().parents[3]


class Killed(BaseException):
    """Ends a run where a kill would."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "build_tokenizer", lambda seed: build_tokenizer(seed, n=60))
    monkeypatch.setattr(training, "prefetch", lambda make, steps: map(make, steps))  # without the data process
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 1)
    monkeypatch.setattr(training, "REPORT_EVERY", 1)


def _train(out: Path, emoji: Path, recipe: Recipe = TINY, *, compiled: bool = False) -> dict[str, torch.Tensor]:
    folder = training.train(out, recipe=recipe, emoji=emoji, threads=1, compiled=compiled)
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


class TestResuming:
    def test_equals_the_whole_run(self, emoji: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Killed before the checkpoint of the fourth step is in its place, and again in the middle of the last step."""
        whole = _train(tmp_path / "whole", emoji)
        save, compute, calls = training._save_checkpoint, training.compute_losses, []

        def save_or_die(path: Path, recipe: Recipe, model: object, optimizer: object, progress: object) -> None:
            if training_step(progress) == 4:
                raise Killed
            save(path, recipe, model, optimizer, progress)  # type: ignore[arg-type]

        def training_step(progress: object) -> int:
            return int(progress.step)  # type: ignore[attr-defined]

        monkeypatch.setattr(training, "_save_checkpoint", save_or_die)
        with pytest.raises(Killed):
            _train(tmp_path / "cut", emoji)
        monkeypatch.setattr(training, "_save_checkpoint", save)
        assert torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["progress"]["step"] == 3

        def compute_or_die(*arguments: object) -> object:
            calls.append(1)
            if len(calls) == 2:
                raise Killed
            return compute(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(training, "compute_losses", compute_or_die)
        with pytest.raises(Killed):
            _train(tmp_path / "cut", emoji)
        monkeypatch.setattr(training, "compute_losses", compute)
        resumed = _train(tmp_path / "cut", emoji)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
        curves = [json.loads((tmp_path / name / "curve.json").read_text())["curve"] for name in ("whole", "cut")]
        assert curves[0] == curves[1]
        assert main(["export", "--run", str(tmp_path / "cut"), "--out", str(tmp_path / "model")]) == 0
        exported = load_file(tmp_path / "model" / "model.safetensors")
        assert all(torch.equal(whole[name], exported[name]) for name in whole)
        assert (tmp_path / "model" / "chat_template.jinja").read_text() == CHAT_TEMPLATE
        assert [point["stage"] for point in curves[0]] == ["seeing", "seeing", "mixing", "mixing", "mixing"]
        assert {"scenes", "pairs", "guard", "patches"} <= set(curves[0][-1])
        assert "scenes" not in curves[0][0]
        assert (tmp_path / "cut" / "curve.svg").is_file()
        assert {"seeing.pt", "mixing.pt"} <= {path.name for path in (tmp_path / "cut").iterdir()}

    def test_only_stages_to_come_may_change(self, emoji: Path, tmp_path: Path) -> None:
        first = replace(TINY, stages=TINY.stages[:1])
        _train(tmp_path, emoji, first)
        other = replace(TINY, stages=(replace(TINY.stages[0], pictures=3), TINY.stages[1]))
        with pytest.raises(ValueError, match="another recipe"):
            _train(tmp_path, emoji, other)
        changed = replace(TINY, stages=(TINY.stages[0], replace(TINY.stages[1], steps=1)))
        _train(tmp_path, emoji, changed)
        assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["progress"]["step"] == 3

    @pytest.mark.slow
    def test_killed_at_a_random_moment(self, emoji: Path, tmp_path: Path) -> None:
        """By SIGKILL, anywhere: while a step is computed, or a checkpoint written. The data process ends too."""
        code = (
            "import sys; from pathlib import Path; import illume.starter.training as training;"
            "from illume.starter.architecture import build_tokenizer;"
            "from tests.illume.starter.test_training import TINY;"
            "training.CHECKPOINT_EVERY = 1; training.build_tokenizer = lambda seed: build_tokenizer(seed, n=60);"
            "training.train(Path(sys.argv[1]), recipe=TINY, emoji=Path(sys.argv[2]), device='cpu', threads=1)"
        )

        def start(name: str) -> subprocess.Popen[bytes]:
            words = [sys.executable, "-c", code, str(tmp_path / name), str(emoji)]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            return subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)

        assert start("whole").wait() == 0
        cut, checkpoint = start("cut"), tmp_path / "cut" / "checkpoint.pt"
        while not checkpoint.exists():
            assert cut.poll() is None
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        helpers = psutil.Process(cut.pid).children(recursive=True)
        cut.kill()
        cut.wait()
        psutil.wait_procs(helpers, timeout=10)
        assert helpers
        assert not any(helper.is_running() for helper in helpers)
        done = torch.load(checkpoint, weights_only=True)["progress"]["step"]
        assert start("cut").wait() == 0
        whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole), f"killed after step {done}"


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(emoji: Path, tmp_path: Path) -> None:
    for name in ("plain", "compiled"):
        _train(tmp_path / name, emoji, compiled=name == "compiled")
    plain, compiled = (
        json.loads((tmp_path / name / "curve.json").read_text())["curve"] for name in ("plain", "compiled")
    )
    assert [set(point) for point in plain] == [set(point) for point in compiled]
    for one, other in zip(plain, compiled, strict=True):
        for name in set(one) - {"stage"}:
            assert other[name] == pytest.approx(one[name], rel=0.02)


@pytest.mark.parametrize("fast", [True, False])
def test_halves_are_for_processors_that_multiply_them_fast(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": fast})
    assert training.multiplies_halves(torch.device("cpu")) is fast
    assert not training.multiplies_halves(torch.device("mps"))


class TestWriteCurve:
    def test_numbers_and_a_figure(self, tmp_path: Path) -> None:
        training.write_curve(tmp_path, {"curve": []})
        assert [path.name for path in tmp_path.iterdir()] == ["curve.json"]
        training.write_curve(tmp_path, {"curve": [{"step": 50, "stage": "seeing", "pairs": 0.5, "patches": 1.0}]})
        drawn = ET.fromstring((tmp_path / "curve.svg").read_text())  # noqa: S314 (our own file)
        assert {"pairs", "patches"} <= set("\n".join(drawn.itertext()).split())


class TestCommand:
    def test_says_what_is_wrong(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", "--out", str(tmp_path / "out"), "--emoji", str(tmp_path)]) == 1
        assert "does not contain" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["train"], "required: --out"),
            (["train", "--out", "x", "--share", "1.5"], "--share: must be above 0 and at most 1"),
            (["make", "--out", "x"], "required: --task"),
            (["score", "--model", "m", "--task", "all"], "--task: invalid choice: 'all'"),
            (["score", "--model", "m", "--n", "0"], "--n: must be at least 1, not 0"),
        ],
    )
    def test_bad_options(self, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err

    def test_unknown_device(self, emoji: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "out"
        assert main(["train", "--out", str(out), "--emoji", str(emoji), "--device", "abacus"]) == 1
        assert "unknown device abacus" in capsys.readouterr().err
        assert not out.exists()
