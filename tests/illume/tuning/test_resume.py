"""Sampling, tuning and simulation, killed at random moments and started again: they end as if nothing had happened."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from illume.model.vlm import load_vlm
from illume.records import Rationale, stable_seed
from illume.sampling.file import read_rationales, sample_to_file
from illume.settings import SamplingSettings
from illume.simulation.command import simulate
from illume.simulation.loop.stages import Display
from illume.simulation.settings import SimulationSettings
from illume.tuning.command import main as tune
from illume.tuning.job import read_json
from tests.illume.killing import run, steps_of
from tests.illume.rounds import make_examples, make_round
from tests.illume.simulation.test_simulation import SETTINGS, make_prompts, with_all
from tests.illume.tuning.test_preferences import make_folder
from tests.illume.tuning.test_tuning import copy_round, outcome

N_KILLS = 2
"""One after the other; the third start is left alone."""

SAMPLING = SamplingSettings(max_new_tokens=6, token_budget=1)


def killed_and_ended(work: Callable[..., Any], *arguments: Any, steps: int, seed: int, note: Path) -> bool:
    """Starts the work until it ends, the first starts killed at moments drawn from all `steps`. Whether any was."""
    for number in range(N_KILLS):
        moment = random.Random(stable_seed("kill", seed, number)).randint(1, steps)
        if (code := run(work, *arguments, note=note, kill_at=moment)) == 0:
            return number > 0
        assert code == -signal.SIGKILL
    assert run(work, *arguments, note=note, kill_at=None) == 0
    return True


def sample(base: str, images: str, out: str) -> None:
    examples = make_examples(Path(images), count=6, split="train")
    sample_to_file(load_vlm(base, device="cpu"), examples, SAMPLING, Path(out), seed=5)


def simulated(settings: SimulationSettings, out: str) -> None:
    simulate(settings, Path(out), display=Display(lambda _: None, live=False))


def same(left: dict[str, list[Rationale]], right: dict[str, list[Rationale]]) -> bool:
    """Whether all candidates are the same; what was batched otherwise may differ in the last digits."""
    for name, sets in left.items():
        for one, other in zip(sets, right[name], strict=True):
            assert asdict(one) == asdict(other) | {"mean_logprob": pytest.approx(other.mean_logprob, abs=1e-5)}
    return list(left) == list(right)


@pytest.fixture(scope="module")
def sampled(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, list[Rationale]]]:
    """How many steps sampling takes that nobody kills, and what it ends with."""
    folder = tmp_path_factory.mktemp("sampled")
    out = folder / "rationales.jsonl"
    steps = steps_of(sample, str(base), str(folder / "images"), str(out), note=folder / "steps")
    return steps, read_rationales(out)


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """How many steps a round takes that nobody kills, and its folder."""
    folder = make_round(tmp_path_factory.mktemp("tuned") / "round", base)
    return steps_of(tune, [str(folder)], note=folder.parent / "steps"), folder


@pytest.fixture(scope="module")
def preferring(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """As `tuned`, of a round that also learns from rejections."""
    folder = make_folder(tmp_path_factory.mktemp("preferring") / "round", base)
    return steps_of(tune, [str(folder)], note=folder.parent / "steps"), folder


@pytest.fixture(scope="module")
def settings(base: Path, tmp_path_factory: pytest.TempPathFactory) -> SimulationSettings:
    prompts = make_prompts(tmp_path_factory.mktemp("prompts"))
    return replace(SETTINGS, model=str(base), prompts=(str(prompts),))


@pytest.fixture(scope="module")
def small_run(settings: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Any]:
    return measured(settings, tmp_path_factory.mktemp("simulated"))


@pytest.fixture(scope="module")
def whole_run(settings: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Any]:
    return measured(with_all(settings), tmp_path_factory.mktemp("simulated"))


def measured(settings: SimulationSettings, out: Path) -> tuple[int, Any]:
    """How many steps a simulation takes that nobody kills, and its result."""
    steps = steps_of(simulated, settings, str(out), note=out.with_name("steps"))
    return steps, read_json(out / "result.json")


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 21))])
def test_sampling(base: Path, sampled: tuple[int, dict[str, list[Rationale]]], tmp_path: Path, seed: int) -> None:
    steps, expected = sampled
    out = tmp_path / "rationales.jsonl"
    arguments = (str(base), str(tmp_path / "images"), str(out))
    assert killed_and_ended(sample, *arguments, steps=steps, seed=seed, note=tmp_path / "steps")
    assert same(read_rationales(out), expected)
    assert not out.with_name("rationales.jsonl.part").exists()


@pytest.mark.slow  # picks and rejections, below, are the harder round
@pytest.mark.parametrize("seed", range(13))
def test_tuning(tuned: tuple[int, Path], tmp_path: Path, seed: int) -> None:
    steps, finished = tuned
    folder = copy_round(finished, tmp_path / "round")
    assert killed_and_ended(tune, [str(folder)], steps=steps, seed=seed, note=tmp_path / "steps")
    assert outcome(folder) == outcome(finished)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 13))])
def test_tuning_on_picks_and_rejections(preferring: tuple[int, Path], tmp_path: Path, seed: int) -> None:
    steps, finished = preferring
    folder = copy_round(finished, tmp_path / "round")
    assert killed_and_ended(tune, [str(folder)], steps=steps, seed=seed, note=tmp_path / "steps")
    assert outcome(folder) == outcome(finished)
    assert read_json(folder / "references.json") == read_json(finished / "references.json")
    assert read_json(folder / "result.json")["n_pairs"] == 4


@pytest.mark.slow  # killed at one moment in test_simulation.py
def test_simulation(settings: SimulationSettings, small_run: tuple[int, Any], tmp_path: Path) -> None:
    check_simulation(settings, small_run, tmp_path, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_simulation_with_baselines_and_controls(
    settings: SimulationSettings, whole_run: tuple[int, Any], tmp_path: Path, seed: int
) -> None:
    check_simulation(with_all(settings), whole_run, tmp_path, seed=seed)


def check_simulation(settings: SimulationSettings, whole: tuple[int, Any], tmp_path: Path, *, seed: int) -> None:
    steps, expected = whole
    out = tmp_path / "run"
    assert killed_and_ended(simulated, settings, str(out), steps=steps, seed=seed, note=tmp_path / "steps")
    assert read_json(out / "result.json") == expected
