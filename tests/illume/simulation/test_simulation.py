"""The loop without people: what each stage hands on, what a run finds, and that a killed run ends the same."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock
from PIL import Image

from illume.evaluation.evaluation import score_rationales
from illume.evaluation.meteor import Meteor
from illume.evaluation.metrics import bleu, caption_rouge_l, caption_words
from illume.figure import figure
from illume.pairs.making import make_pairs
from illume.records import Example, Rationale, Verdict
from illume.root import STARTER
from illume.scenes.emoji import load_sprites
from illume.settings import CandidateSettings, EvaluationSettings, TuningSettings
from illume.simulation import options
from illume.simulation.baselines import make_control_pools, make_reference_pool
from illume.simulation.command import main, simulate
from illume.simulation.field import field_report, field_table
from illume.simulation.jobs import Task, plan_tasks
from illume.simulation.loop import judging
from illume.simulation.loop.judging import Judged, add_picks, order_waiting_prompts, prompts_per_round
from illume.simulation.loop.scoring import shuffle_images
from illume.simulation.loop.simulation import Simulation
from illume.simulation.loop.stages import Display, Models, Stages
from illume.simulation.options import choose_job_count, parser, read_settings
from illume.simulation.report import report, table
from illume.simulation.settings import (
    BASELINES,
    CONTROLS,
    Data,
    SimulationError,
    SimulationSettings,
    load_data,
    read_examples,
    read_prompts,
    store_settings,
)
from illume.simulation.values import prompt_values
from illume.tuning.job import read_json, write_json
from tests.illume.families import make_llava
from tests.illume.rounds import make_examples, stand_in_java

TUNING = TuningSettings(
    epochs=1,
    batch_size=8,
    micro_batch_size=8,
    lora_r=4,
    lora_alpha=8,
    learning_rate=5e-3,
    guard_per_rationale=1,
    threads=1,
    device="cpu",
    evaluation=EvaluationSettings(samples=1, max_new_tokens=5, max_answer_tokens=3),
)
SETTINGS = SimulationSettings(
    heldout_scenes=0,
    critic="rouge",
    threshold=0.0,
    rounds=1,
    seeds=1,
    prompts_per_round=2,
    baselines=(),
    controls=("shuffled",),
    candidates=CandidateSettings(temperatures=((0.0, 1), (1.0, 1)), max_new_tokens=5),
    tuning=TUNING,
)


def quiet() -> Display:
    return Display(lambda _: None, live=False)


def make_prompts(folder: Path) -> Path:
    """Nine prompts in three splits, as a prompts file."""
    lines = []
    for split, count in (("train", 5), ("val", 2), ("test", 2)):
        for example in make_examples(folder, count=count, split=split):
            row = {
                "external_id": example.id,
                "split": split,
                "images": [Path(image).name for image in example.images],
                "question": example.question,
                "answer": example.answer,
                "references": list(example.references),
            }
            lines.append(json.dumps(row))
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> SimulationSettings:
    model = make_llava(tmp_path_factory.mktemp("model"))
    prompts = make_prompts(tmp_path_factory.mktemp("prompts"))
    return replace(SETTINGS, model=str(model), prompts=(str(prompts),))


def compute_nothing(patch: pytest.MonkeyPatch) -> None:
    """Nothing is sampled, tuned, fitted or scored any more."""
    work = ("judging.sample_rationales", "rounds.run_job", "run.fit_machine", "judging.fit_machine")
    for place in (*work, "scoring.evaluate", "scoring.evaluate_structured"):
        patch.setattr(f"illume.simulation.loop.{place}", None)


def rationale(example_id: str, text: str) -> Rationale:
    return Rationale(example_id, text, 0.7, 1, -1.0, 3, "red", "gold")


def judged(example_id: str, texts: str, *, picks: tuple[int, ...], right: tuple[int, ...] | None = None) -> Judged:
    candidates = tuple(rationale(example_id, text) for text in texts.split())
    return Judged(example_id, candidates, picks, picks if right is None else right)


def example(name: str, *references: str, answer: str | None = "red") -> Example:
    return Example(name, (f"{name}.png",), "what?", answer, references)


def with_all(settings: SimulationSettings) -> SimulationSettings:
    return replace(
        settings,
        rounds=2,
        baselines=("supervised-same",),
        controls=("shuffled", "random"),
        learning_rates=(5e-3,),
    )


@pytest.fixture(scope="module")
def run(settings: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("run")
    return out, simulate(with_all(settings), out, display=quiet())


class TestWholeRun:
    def test_rounds_judge_tune_and_score(self, run: tuple[Path, dict[str, Any]]) -> None:
        out, result = run
        rounds = result["seeds"]["1"]["rounds"]
        assert [row["judged_in_all"] for row in rounds] == [2, 4]
        assert [row["accepted_prompts"] for row in rounds] == [2, 4]
        assert rounds[1]["tuning"]["n_rationale"] == rounds[1]["accepted_rationales"] > rounds[0]["accepted_rationales"]
        assert rounds[0]["measures"]["rouge_l"]["n"] == 2
        job = read_json(out / "stages/seed-1/round-2/job.json")
        assert job["parent"] == str(out / "stages/seed-1/round-1/adapter")
        assert sorted(job["parent_scores"]["prompts"]) == ["val-0", "val-1"]

    def test_controls_and_baselines_are_of_equal_size(self, run: tuple[Path, dict[str, Any]]) -> None:
        seed = run[1]["seeds"]["1"]
        accepted = seed["rounds"][-1]["accepted_rationales"]
        assert seed["random"]["accepted_rationales"] == accepted
        assert seed["supervised-same"]["references"] == accepted
        assert seed["supervised-same"]["learning_rate"] == 5e-3
        assert set(seed["shuffled"]) >= {"measures", "last round against it"}

    def test_files_for_people(self, run: tuple[Path, dict[str, Any]]) -> None:
        out, result = run
        page = (out / "table.md").read_text()
        assert "| round 2 |" in page
        assert "2 train" not in page
        assert "5 train, 2 val prompts; held out: 2 (the test split)" in page
        ET.fromstring((out / "figure.svg").read_text())  # noqa: S314 (our own file)
        assert read_json(out / "result.json") == json.loads(json.dumps(result))
        assert result["complete"] is True
        taken = read_json(out / "run.json")["seconds"]
        assert taken["seed-1/round-1/tuning"] > 0
        assert not list(out.rglob("checkpoints"))

    def test_a_second_start_computes_nothing(
        self, run: tuple[Path, dict[str, Any]], settings: SimulationSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out, result = run
        compute_nothing(monkeypatch)
        assert simulate(with_all(settings), out, display=quiet()) == result

    def test_other_settings_are_refused(self, run: tuple[Path, dict[str, Any]], settings: SimulationSettings) -> None:
        with pytest.raises(SimulationError, match=r"other settings: .*rounds was 2, now 1.*Choose another folder"):
            simulate(settings, run[0], display=quiet())
        fewer = replace(with_all(settings), tuning=replace(TUNING, threads=2))
        with pytest.raises(SimulationError, match=r"other settings: tuning.threads was 1, now 2\. Choose"):
            simulate(fewer, run[0], display=quiet())

    def test_a_run_that_began_before_a_setting_was_there_goes_on(
        self, run: tuple[Path, dict[str, Any]], settings: SimulationSettings
    ) -> None:
        stored = read_json(run[0] / "settings.json")
        del stored["first_seed"], stored["tuning"]["feature_cache_mb"]
        write_json(run[0] / "settings.json", stored)
        assert simulate(with_all(settings), run[0], display=quiet()) == run[1]
        assert read_json(run[0] / "settings.json")["first_seed"] == 1

    def test_one_that_learnt_all_answers_in_each_epoch_goes_on_like_that_only(
        self, run: tuple[Path, dict[str, Any]], settings: SimulationSettings, tmp_path: Path
    ) -> None:
        shutil.copytree(run[0], tmp_path / "run")
        stored = read_json(run[0] / "settings.json")
        del stored["tuning"]["spread_guard"]
        write_json(tmp_path / "run" / "settings.json", stored)
        with pytest.raises(SimulationError, match=r"other settings: tuning.spread_guard was False, now True\. Choose"):
            simulate(with_all(settings), tmp_path / "run", display=quiet())

    def test_changed_prompts_are_refused(self, run: tuple[Path, dict[str, Any]], settings: SimulationSettings) -> None:
        prompts = Path(settings.prompts[0])
        before = prompts.read_text()
        prompts.write_text(before + "\n")
        try:
            with pytest.raises(SimulationError, match="the files of prompts have changed since"):
                simulate(with_all(settings), run[0], display=quiet())
        finally:
            prompts.write_text(before)

    def test_meteor_is_added_to_a_finished_run_and_stays(
        self,
        run: tuple[Path, dict[str, Any]],
        settings: SimulationSettings,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        out, asked = tmp_path / "run", with_all(settings)
        shutil.copytree(run[0], out)
        assert "METEOR" not in run[1]["mean"]["versions"]["base"]
        assert "install the extra illume[meteor]" in run[1]["left out"]
        assert "METEOR was not computed" in (out / "table.md").read_text()
        java = stand_in_java(tmp_path)
        monkeypatch.setattr("illume.evaluation.meteor.find_java", lambda: str(java))
        written: list[str] = []
        with Meteor() as program:
            result = simulate(asked, out, display=Display(written.append, live=False), jobs=2, meteor=program)
        assert "left out" not in result
        fresh = [line for line in written if "] " in line]
        assert len(fresh) == 1 + 2 + 2 + 1
        assert all("/meteor: " in line for line in fresh)
        last = result["seeds"]["1"]["rounds"][-1]
        texts = read_json(out / "stages/seed-1/round-2/heldout.json")["content"]["gold"]["sampled"]["rationales"]
        lengths = [len(caption_words(text)) / 10 for [text] in texts]
        assert last["measures"]["meteor"]["mean"] == pytest.approx(sum(lengths) / 2)
        assert result["field"]["last round"]["greedy"]["unfiltered"]["meteor_corpus"] > 0
        assert result["seeds"]["1"]["random"]["last round against it"]["meteor"]["n"] == 2
        page = (out / "table.md").read_text()
        assert "METEOR (English), T = 0.7" in page
        assert "not computed" not in page
        java.unlink()
        assert simulate(asked, out, display=quiet()) == result


def test_rounds_that_also_learn_from_what_was_turned_down(
    settings: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round is given all that the critic did not pick so far, beside what was picked of the same prompt."""

    def pick_first(one: Example, _: Sequence[Rationale]) -> Verdict:
        return Verdict(one.id, "first", "picked", (0,))

    monkeypatch.setattr(judging, "make_critic", lambda _: pick_first)
    sampling = CandidateSettings(temperatures=((1.0, 3),), max_new_tokens=5)
    tuning = replace(settings.tuning, objective="picks_and_rejections")
    both = replace(settings, rounds=2, controls=(), candidates=sampling, tuning=tuning)
    report = simulate(both, tmp_path / "run", display=quiet())
    rounds = [row["tuning"] for row in report["seeds"]["1"]["rounds"]]
    folder = tmp_path / "run" / "stages" / "seed-1" / "round-2"
    rows = [json.loads(line) for line in (folder / "rejections.jsonl").read_text().splitlines()]
    picked = {json.loads(line)["rationale"] for line in (folder / "train.jsonl").read_text().splitlines()} - {None}
    assert 0 < rounds[0]["n_pairs"] < rounds[1]["n_pairs"] == len(rows)
    assert rounds[1]["n_unpaired"] == 0
    assert {row["accepted"] for row in rows} <= picked
    assert picked.isdisjoint(row["rationale"] for row in rows)


def test_other_seeds_are_kept_apart_and_the_first_chooses_the_rates(
    settings: SimulationSettings, tmp_path: Path
) -> None:
    asked = replace(
        settings, seeds=2, first_seed=4, heldout_seed=7, baselines=("supervised-all",), learning_rates=(5e-3, 1e-3)
    )
    result = simulate(asked, tmp_path, display=quiet())
    assert (result["settings"]["first_seed"], result["settings"]["heldout_seed"]) == (4, 7)
    assert list(result["seeds"]) == ["4", "5"]
    assert [len(result["seeds"][seed]["supervised-all"]["val"]) for seed in ("4", "5")] == [2, 1]
    assert "seeds 4, 5." in (tmp_path / "table.md").read_text()
    words = "".join(ET.fromstring((tmp_path / "figure.svg").read_text()).itertext())  # noqa: S314 (our own file)
    assert "seed 5" in words
    assert "seed 1" not in words


def spoil(settings: SimulationSettings, folder: Path, broken: Callable[[str], bool]) -> SimulationSettings:
    """The settings with a copy of the prompts in `folder`, of which the `broken` ones have a torn image."""
    shutil.copytree(Path(settings.prompts[0]).parent, folder)
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    path = folder / "prompts.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row | {"images": ["torn.png"]} if broken(row["external_id"]) else row for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return replace(settings, prompts=(str(path),))


class TestUnreadablePrompts:
    def test_they_are_left_out_counted_and_named(
        self, settings: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gone = {"train": "train-3", "val": "val-1", "test": "test-0"}
        asked, out = spoil(settings, tmp_path / "prompts", lambda name: name in gone.values()), tmp_path / "run"
        written: list[str] = []
        result = simulate(asked, out, display=Display(written.append, live=False), jobs=2)
        assert result["complete"] is True
        counts = result["prompts"]
        assert [counts[name] for name in ("train", "val", "heldout", "left_out")] == [4, 1, 1, 3]
        listed = read_json(out / "left_out.json")
        assert {entry["split"]: entry["prompt"] for entry in listed} == gone
        assert all(entry["reason"].startswith("the image torn.png cannot be read") for entry in listed)
        assert any(line.startswith("prompt train-3 left out (train): the image torn.png") for line in written)
        assert (
            "Prompts left out because the model cannot read them: 3 (left_out.json)." in (out / "table.md").read_text()
        )
        base = read_json(out / "stages/base/heldout.json")["content"]
        assert base["prompts"] == ["test-1"]
        monkeypatch.setattr("illume.simulation.left_out.list_unreadable", None)  # a later start does not try again
        assert simulate(asked, out, display=quiet()) == result

    @pytest.mark.parametrize(("split", "words"), [("train", "train"), ("test", "held-out")])
    def test_without_any_that_can_be_read_it_does_not_begin(
        self, settings: SimulationSettings, tmp_path: Path, split: str, words: str
    ) -> None:
        asked = spoil(settings, tmp_path / "prompts", lambda name: name.startswith(split))
        with pytest.raises(SimulationError, match=rf"no {words} prompts that the model can read \(the image torn.png"):
            simulate(asked, tmp_path / "run", display=quiet())
        assert not (tmp_path / "run/stages").exists()


def test_a_round_without_picks_keeps_the_version(settings: SimulationSettings, tmp_path: Path) -> None:
    nothing_fits = replace(settings, threshold=1.0, controls=("shuffled", "random"))
    result = simulate(nothing_fits, tmp_path, display=quiet())
    row = result["seeds"]["1"]["rounds"][0]
    assert row["picks"] == row["accepted_rationales"] == 0
    assert row["tuning"] is None
    assert row["against base"]["rouge_l"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 2}
    assert "random" not in result["seeds"]["1"]


@pytest.fixture(scope="module")
def whole(settings: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a run that nothing interrupts."""
    return simulate(settings, tmp_path_factory.mktemp("whole"), display=quiet())


def start(settings: SimulationSettings, out: Path, *, jobs: int = 1) -> subprocess.Popen[bytes]:
    """A simulation in a process of its own."""
    code = (
        "import sys, pickle; from pathlib import Path; from illume.simulation.command import simulate;"
        "from illume.simulation.loop.stages import Display;"
        "settings = pickle.loads(bytes.fromhex(sys.argv[1])); display = Display(lambda _: None, live=False);"
        "simulate(settings, Path(sys.argv[2]), display=display, jobs=int(sys.argv[3]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, pickle.dumps(settings).hex(), str(out), str(jobs)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for(path: Path, child: subprocess.Popen[bytes]) -> None:
    """Returns once `path` is there."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert child.poll() is None, "it ended before the file was there"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "stage",
    [
        "seed-1/round-1/progress.json",
        *(pytest.param(f"{one}.json", marks=pytest.mark.slow) for one in ("base/heldout", "seed-1/round-1/judging")),
    ],
)
def test_killed_and_started_again_it_ends_the_same(
    settings: SimulationSettings, whole: dict[str, Any], tmp_path: Path, stage: str
) -> None:
    out = tmp_path / "killed"
    child = start(settings, out)
    wait_for(out / "stages" / stage, child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (out / "result.json").exists()
    assert simulate(settings, out, display=quiet()) == whole


class TestProcesses:
    def test_two_processes_find_what_one_does(
        self, run: tuple[Path, dict[str, Any]], settings: SimulationSettings, tmp_path: Path
    ) -> None:
        written: list[str] = []
        asked = with_all(settings)
        result = simulate(asked, tmp_path, display=Display(written.append, live=False), jobs=2)
        assert result == run[1]
        lines = [line.partition("] ")[2].partition(":")[0] for line in written]
        stages = {str(path.relative_to(tmp_path / "stages").with_suffix("")) for path in found_stages(tmp_path)}
        assert sorted(lines) == sorted(stages)

    def test_they_end_with_the_one_that_started_them_and_a_later_start_goes_on(
        self, settings: SimulationSettings, whole: dict[str, Any], tmp_path: Path
    ) -> None:
        child = start(settings, tmp_path, jobs=2)
        wait_for(tmp_path / "stages/base/val.json", child)
        workers = psutil.Process(child.pid).children(recursive=True)
        assert len(workers) >= 2
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert simulate(settings, tmp_path, display=quiet()) == whole
        psutil.wait_procs(workers, timeout=10)
        assert not any(worker.is_running() for worker in workers)

    def test_a_task_that_fails_ends_the_run_with_its_reason(self, settings: SimulationSettings, tmp_path: Path) -> None:
        broken = replace(settings, tuning=replace(TUNING, learning_rate=1e30, max_grad_norm=1e30))
        with pytest.raises(SimulationError, match="is not a number: try a lower learning rate"):
            simulate(broken, tmp_path, display=quiet(), jobs=2)

    def test_the_rounds_come_first_and_what_builds_on_them_later(self) -> None:
        tasks = plan_tasks(replace(SETTINGS, seeds=2, baselines=BASELINES, controls=CONTROLS))
        order = list(tasks)
        assert order[:3] == [Task("val"), Task("loop", 1), Task("loop", 2)]
        assert len(tasks) == 2 + 2 * (1 + len(BASELINES) + len(CONTROLS))
        assert set(tasks[Task("supervised-same", 2)]) == {Task("loop", 2), Task("supervised-same", 1)}
        assert tasks[Task("supervised-all", 1)] == (Task("val"),)
        assert all(set(before) <= set(tasks) for before in tasks.values())
        others = plan_tasks(replace(SETTINGS, seeds=2, first_seed=4, baselines=("supervised-same",)))
        assert set(others[Task("supervised-same", 5)]) == {Task("loop", 5), Task("supervised-same", 4)}

    def test_as_many_as_cores_for_a_small_model_only(
        self, settings: SimulationSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(options, "n_cores", lambda: 6)
        small = ["--out", "x", "--device", "cpu", "--model", settings.model]
        assert choose_job_count(parser().parse_args(small)) == 6
        assert choose_job_count(parser().parse_args([*small, "--jobs", "3"])) == 3
        assert read_settings(parser().parse_args([*small, "--jobs", "3"])).tuning.threads == 2
        monkeypatch.setattr(options, "SMALL_MODEL_BYTES", 10)
        assert choose_job_count(parser().parse_args(small)) == 1


def found_stages(out: Path) -> list[Path]:
    """The files of the stages below a run."""
    files = (out / "stages").rglob("*.json")
    return [path for path in files if {"seconds", "content"} <= set(read_json(path))]


def test_two_runs_in_one_folder_are_refused(settings: SimulationSettings, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(SimulationError, match="another simulation"):
        simulate(settings, tmp_path, display=quiet())


class TestBudget:
    def test_a_quarter_of_the_train_prompts_over_all_rounds(self) -> None:
        assert prompts_per_round(replace(SETTINGS, prompts_per_round=0, rounds=4), 300) == 18
        assert prompts_per_round(replace(SETTINGS, prompts_per_round=7), 300) == 7
        assert prompts_per_round(replace(SETTINGS, prompts_per_round=0, picks_per_round=7), 300) == 300

    def test_never_judged_prompts_come_first_and_accepted_ones_not_at_all(self) -> None:
        data = Data(tuple(example(name, "a b") for name in "abcd"), (), (), "")
        sim = Simulation(SETTINGS, data, Stages(Path(), quiet()), Models("", device="cpu", dtype="auto"))
        order = order_waiting_prompts(sim, 1, {"a": ("x",)}, Counter(b=2, c=1))
        assert [one.id for one in order] == ["d", "c", "b"]
        orders = {tuple(one.id for one in order_waiting_prompts(sim, seed, {}, Counter())) for seed in range(9)}
        assert len(orders) > 1

    def test_a_budget_of_picks(self, settings: SimulationSettings, tmp_path: Path) -> None:
        asked = replace(settings, prompts_per_round=0, picks_per_round=3)
        row = simulate(asked, tmp_path, display=quiet())["seeds"]["1"]["rounds"][0]
        assert row["accepted_prompts"] == row["judged"] == 3


class TestControls:
    def test_random_picks_are_as_many_in_each_set(self) -> None:
        rows = [judged("a", "x y z", picks=(0, 1)), judged("b", "x y", picks=())]
        [pool] = make_control_pools("random", [rows], seed=1)
        assert len(pool["a"]) == 2
        assert "b" not in pool
        drawn = {make_control_pools("random", [rows], seed=seed)[0]["a"] for seed in range(9)}
        assert len(drawn) > 1

    def test_hallucinated_picks_are_wrong_and_as_many_in_all(self) -> None:
        rows = [judged("a", "x y z", picks=(0, 1), right=(0, 1)), judged("b", "u v w", picks=(0,), right=(0,))]
        [pool] = make_control_pools("hallucinated", [rows], seed=1)
        assert pool["a"] == ("z",)
        assert set(pool["b"]) == {"v", "w"}

    def test_pools_accumulate_over_rounds(self) -> None:
        pools = make_control_pools(
            "random", [[judged("a", "x y", picks=(0,))], [judged("b", "x y", picks=(1,))]], seed=1
        )
        assert [sorted(pool) for pool in pools] == [["a"], ["a", "b"]]

    def test_shuffled_images_are_as_many_as_before(self) -> None:
        counts = (1, 2, 1, 3, 2, 1)
        prompts = [
            Example(f"{number}", tuple(f"{number}-{place}" for place in range(count)), "q")
            for number, count in enumerate(counts)
        ]
        mixed = shuffle_images(prompts)
        assert [len(one.images) for one in mixed] == list(counts)
        assert [one.id for one in mixed if one.images[0].startswith(f"{one.id}-")] == ["3"], "no other has as many"

    def test_shuffled_images_are_always_anothers(self) -> None:
        examples = [example(str(number)) for number in range(7)]
        shuffled = shuffle_images(examples)
        assert all(a.images != b.images for a, b in zip(examples, shuffled, strict=True))
        assert sorted(one.images for one in shuffled) == sorted(one.images for one in examples)

    def test_prompts_about_the_same_images_stay_together(self) -> None:
        """As the variants of a policy, which are compared."""
        examples = [replace(example(f"{number}"), images=(f"{number // 2}.png",)) for number in range(6)]
        shuffled = shuffle_images(examples)
        assert all(one.images == two.images for one, two in zip(shuffled[::2], shuffled[1::2], strict=True))
        assert all(a.images != b.images for a, b in zip(examples, shuffled, strict=True))


class TestReferencePool:
    DATA = Data(
        (example("a", "a1", "a2", "a3"), example("b", "b1"), example("c", "c1", "c2"), example("d")), (), (), ""
    )

    def test_all(self) -> None:
        assert make_reference_pool(self.DATA, None, seed=1) == {
            "a": ("a1", "a2", "a3"),
            "b": ("b1",),
            "c": ("c1", "c2"),
        }

    def test_as_many_on_the_same_prompts(self) -> None:
        pool = make_reference_pool(self.DATA, {"a": ("x", "y")}, seed=1)
        assert len(pool["a"]) == 2
        assert set(pool) == {"a"}

    def test_where_the_same_prompts_have_too_few_others_help(self) -> None:
        pool = make_reference_pool(self.DATA, {"b": ("x", "y", "z"), "d": ("u",)}, seed=1)
        assert pool["b"] == ("b1",)
        assert sum(map(len, pool.values())) == 4
        assert len({text for texts in pool.values() for text in texts}) == 4


def test_picks_add_up_without_repeats() -> None:
    pool = add_picks({"a": ("x",)}, [judged("a", "X! y", picks=(0, 1)), judged("b", "z", picks=())])
    assert pool == {"a": ("x", "y")}


class TestPrompts:
    def test_vqax(self, tmp_path: Path) -> None:
        (tmp_path / "train2014").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "train2014" / "COCO_train2014_1.png")
        answers = [{"answer": "cat"}, {"answer": "dog"}, {"answer": "dog"}]
        row = {
            "question": "what?",
            "answers": answers,
            "explanation": ["it barks"],
            "image_name": "COCO_train2014_1.png",
        }
        path = tmp_path / "vqaX_val.json"
        path.write_text(json.dumps({"17": row}))
        [found] = read_prompts([str(path)], images=str(tmp_path))
        assert (found.id, found.split, found.answer, found.references) == ("17", "val", "dog", ("it barks",))
        assert Path(found.images[0]).is_file()

    def test_bad_files_name_what_is_wrong(self, tmp_path: Path) -> None:
        path = tmp_path / "vqaX_val.json"
        for content, message in (("[]", "object"), ('{"17": {}}', "question 17"), ("{", "no JSON")):
            path.write_text(content)
            with pytest.raises(SimulationError, match=message):
                read_prompts([str(path)])
        path.write_text(json.dumps({"17": {"question": "?", "explanation": [], "answers": [], "image_name": "a.jpg"}}))
        with pytest.raises(SimulationError, match=r"vqaX_val.json, question 17: there is no image a.jpg .* --images"):
            read_prompts([str(path)])
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text('{"external_id": "a", "images": ["gone.png"], "question": "?"}')
        with pytest.raises(SimulationError, match=r"prompt a names an image that is not there: .*gone.png"):
            read_prompts([str(prompts)])
        with pytest.raises(SimulationError, match=r"neither a prompts file .*\.jsonl.* nor one of VQA-X"):
            read_prompts([__file__])
        with pytest.raises(SimulationError, match="no prompts file"):
            read_prompts([str(tmp_path / "none.jsonl")])


@pytest.fixture(scope="module")
def pairs(settings: SimulationSettings, emoji: Path, tmp_path_factory: pytest.TempPathFactory) -> SimulationSettings:
    folder = tmp_path_factory.mktemp("pairs")
    make_pairs(folder, n=12, seed=3, sprites=load_sprites(emoji))
    prompts = (str(folder / "prompts.jsonl"),)
    return replace(settings, task="pairs", prompts=prompts, heldout_scenes=4, controls=("random", "shuffled"))


@pytest.fixture(scope="module")
def run_of_pairs(
    pairs: SimulationSettings, emoji: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("run-of-pairs")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("illume.scenes.emoji.find_emoji", lambda: emoji)
        return out, simulate(pairs, out, display=quiet())


class TestTasks:
    """A task brings prompts made for it, and is measured in groups of its own."""

    def test_each_language_has_measures_and_claims(self, run_of_pairs: tuple[Path, dict[str, Any]]) -> None:
        out, result = run_of_pairs
        assert result["prompts"]["heldout_source"] == "4 pairs of scenes made with seed 90001"
        assert list(result["groups"]) == ["de", "en"]
        for group in result["groups"].values():
            assert group["versions"]["round 1"]["truth"]["n"] == group["versions"]["base"]["accuracy"]["n"] == 2
            assert set(group["last round against"]) == {"random", "shuffled"}
        assert result["mean"]["against base"]["round 1"]["truth_matched"]["n"] == 4
        assert result["mean"]["last round against"]["random"]["distinct_true"]["n"] == 4
        claims = ("sampled truth above base", "sampled truth above random", "answer accuracy falls by at most 2 points")
        assert {f"{group}: {claim}" for group in ("de", "en") for claim in claims} <= set(result["shown"])
        assert "| de: 2 prompts | truth, T = 0.7 | truth, greedy | answer accuracy |" in (out / "table.md").read_text()

    def test_versions_are_sampled_at_the_entropy_of_the_base(self, run_of_pairs: tuple[Path, dict[str, Any]]) -> None:
        out, result = run_of_pairs
        usual = read_json(out / "stages/base/entropy.json")["content"]
        assert usual["temperature"] == 0.7
        assert result["base"]["matched"] == usual
        found = read_json(out / "stages/seed-1/round-1/heldout/matched.json")["content"]
        assert found["entropy"] == pytest.approx(usual["entropy"], rel=0.1)
        assert result["seeds"]["1"]["rounds"][0]["matched"]["temperature"] == found["temperature"]
        scores = read_json(out / "stages/seed-1/round-1/heldout.json")["content"]["matched"]
        assert [len(row) for row in scores["rationales"]] == [4] * 4
        assert {name: scores[name] for name in found} == found

    def test_a_run_goes_on_that_scored_matched_entropy_in_a_stage_of_its_own(
        self, run_of_pairs: tuple[Path, dict[str, Any]], pairs: SimulationSettings, emoji: Path, tmp_path: Path
    ) -> None:
        """Whether that stage of a version was done or not."""
        out = tmp_path / "run"
        shutil.copytree(run_of_pairs[0], out)
        for name, done in (("base/heldout", True), ("seed-1/round-1/heldout", True), ("seed-1/random/heldout", False)):
            path = out / "stages" / f"{name}.json"
            stored = read_json(path)
            apart = {"seconds": 1.0, "content": stored["content"].pop("matched")}
            write_json(path, stored)
            write_json(path.with_suffix("") / "matched.json", apart) if done else (
                path.with_suffix("") / "matched.json"
            ).unlink()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("illume.scenes.emoji.find_emoji", lambda: emoji)
            assert simulate(pairs, out, display=quiet()) == run_of_pairs[1]
        assert [path.parent.parent.name for path in out.rglob("anew.json")] == ["random"]

    def test_what_is_made_for_english_is_left_out(self, run_of_pairs: tuple[Path, dict[str, Any]]) -> None:
        out, result = run_of_pairs
        assert "field" not in result
        assert "left out" not in result
        assert "COCO" not in (out / "table.md").read_text()

    def test_groups_are_those_of_the_values(self) -> None:
        base = TestReport().scores([0.2] * 4, [0.0, 1.0, 0.0, 1.0], [True] * 4)
        found = report(base, {1: TestReport().seed(last=0.7)}, groups={"de": [0, 2], "en": [1, 3]}, read=prompt_values)
        means = {group: one["against base"]["round 2"]["truth"]["mean"] for group, one in found["groups"].items()}
        assert means == pytest.approx({"de": 0.7, "en": -0.3})
        assert found["shown"]["de: sampled truth above base"]["holds"]
        assert not found["shown"]["en: sampled truth above base"]["holds"]

    def test_prompts_without_groups_are_reported_as_a_whole(self, run: tuple[Path, dict[str, Any]]) -> None:
        assert "groups" not in run[1]

    def test_heldout_prompts_share_no_scene_with_the_others(
        self, pairs: SimulationSettings, emoji: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("illume.scenes.emoji.find_emoji", lambda: emoji)
        same = replace(pairs, heldout_seed=3, heldout_scenes=14)
        data = load_data(same, tmp_path, examples=read_examples(same), say=lambda _: None)
        assert len(data.heldout) == 2, "the first 12 are the prompts themselves"

    def test_the_command(self, pairs: SimulationSettings, tmp_path: Path) -> None:
        words = ["--out", str(tmp_path), "--task", "pairs", "--prompts", *pairs.prompts]
        found = read_settings(parser().parse_args(words))
        assert (found.task, found.critic, found.heldout_scenes) == ("pairs", "truth", 0)
        assert (found.candidates.max_new_tokens, found.tuning.evaluation.max_new_tokens) == (80, 80)
        bundled = read_settings(parser().parse_args(["--out", str(tmp_path), "--task", "pairs"]))
        assert bundled.prompts == (str(STARTER / "pairs" / "prompts.jsonl"),)
        plain = read_settings(parser().parse_args(["--out", str(tmp_path), "--heldout-scenes", "2000"]))
        assert replace(plain, tuning=SimulationSettings().tuning) == SimulationSettings()

    def test_prompts_of_another_task_are_refused(self, settings: SimulationSettings) -> None:
        with pytest.raises(SimulationError, match="train-0 is no prompt of the task pairs"):
            read_examples(replace(settings, task="pairs"))
        with pytest.raises(SimulationError, match="task: birds is none of scenes, pairs"):
            replace(settings, task="birds")


class TestReport:
    def scores(self, rouge: list[float], truth: list[float], correct: list[bool]) -> dict[str, Any]:
        part = {"rouge_l": rouge, "faithful": truth, "means": {}}
        return {"gold": {"sampled": part, "greedy": part}, "answers": {"correct": correct}}

    def seed(self, *, last: float) -> dict[str, Any]:
        rows = [
            {"round": number, "judged_in_all": 5 * number, "accepted_rationales": 4 * number, "with_fitting": 0.5,
             "scores": self.scores([value] * 4, [value] * 4, [True] * 4)}
            for number, value in ((1, 0.4), (2, last))
        ]  # fmt: skip
        supervised = {"references": 40, "scores": self.scores([0.8] * 4, [0.8] * 4, [True] * 4)}
        return {"rounds": rows, "supervised-all": supervised}

    def test_what_is_shown(self) -> None:
        base = self.scores([0.2, 0.3, 0.2, 0.3], [0.25] * 4, [True] * 4)
        found = report(base, {1: self.seed(last=0.78), 2: self.seed(last=0.76)}, read=prompt_values)
        assert {claim: one["holds"] for claim, one in found["shown"].items()} == {
            "last round better than base in each seed": True,
            "rounds rise": True,
            "at least 95% of tuning on all references": True,
            "sampled truth at least doubles": True,
            "answer accuracy falls by at most 2 points": True,
        }
        worse = report(base, {1: self.seed(last=0.78), 2: self.seed(last=0.2)}, read=prompt_values)["shown"]
        assert not worse["last round better than base in each seed"]["holds"]
        assert not worse["at least 95% of tuning on all references"]["holds"]
        assert not report(base, {1: self.seed(last=0.2)}, read=prompt_values)["shown"]["rounds rise"]["holds"]

    def test_a_baseline_that_learnt_nothing(self) -> None:
        base, seed = self.scores([0.0] * 4, [0.25] * 4, [True] * 4), self.seed(last=0.7)
        seed["supervised-all"]["scores"] = base
        found = report(base, {1: seed}, read=prompt_values)
        assert found["shown"]["at least 95% of tuning on all references"] == {"holds": True}
        assert "tuning on all references: yes\n" in table(found)

    def test_how_much_was_judged(self) -> None:
        base = self.scores([0.2] * 4, [0.25] * 4, [True] * 4)
        few, many = (
            report(base, {1: self.seed(last=0.7)}, n_train=count, read=prompt_values)["shown"] for count in (40, 39)
        )
        claim = "at most 25% of the train prompts judged"
        assert few[claim] == {"holds": True, "share": 0.25}
        assert not many[claim]["holds"]

    def test_table_and_figure(self) -> None:
        found = report(self.scores([0.2] * 4, [0.25] * 4, [True] * 4), {1: self.seed(last=0.7)}, read=prompt_values)
        text = table(found)
        assert "| round 2 | 0.700 [0.700, 0.700] | 0.700 [0.700, 0.700] |" in text
        assert "10 sets judged, 8 picks kept" in text
        assert "40 sentences written" in text
        drawing = ET.fromstring(figure(found))  # noqa: S314 (our own text)
        words = "".join(drawing.itertext())
        assert "supervised, all references" in words
        assert "nan" not in words
        assert figure(found) == figure(found)


class TestField:
    EXAMPLES = (
        Example("a", ("a.png",), "q", "yes", ("a dog runs on the sand", "a dog runs")),
        Example("b", ("b.png",), "q", "yes", ("it snows in the night",)),
        Example("c", ("c.png",), "q", "yes"),
    )

    def scores(self, texts: list[str], correct: list[bool]) -> dict[str, Any]:
        part = score_rationales(self.EXAMPLES, [[text] for text in texts], correct=correct)
        return {"answers": {"correct": correct}, "own": {"greedy": part, "sampled": part}}

    def test_measures_of_all_and_of_those_with_a_right_answer(self) -> None:
        one = self.scores(["a dog runs", "it rains in the night", "x"], [True, False, True])
        other = self.scores(["a cat runs", "it snows in the night", "y"], [True, True, False])
        found = field_report(self.EXAMPLES, {"base": [one], "last round": [one, other], "supervised-all": [{}]})
        assert set(found) == {"base", "last round"}
        whole, right = (found["last round"]["greedy"][choice] for choice in ("unfiltered", "filtered"))
        assert (whole["prompts"], right["prompts"]) == (3, 2)
        each = [caption_rouge_l(text, self.EXAMPLES[0].references) for text in ("a dog runs", "a cat runs")]
        other_each = caption_rouge_l("it rains in the night", self.EXAMPLES[1].references)
        assert whole["rouge_l"]["mean"] == pytest.approx(((sum(each) / 2) + (1 + other_each) / 2) / 2)
        assert right["rouge_l"]["mean"] == pytest.approx((sum(each) / 2 + 1) / 2)
        expected = bleu(["a dog runs"], [self.EXAMPLES[0].references])
        assert [one["mean"] for one in found["base"]["greedy"]["filtered"]["bleu"]] == pytest.approx(expected)
        assert whole["truth"] is None
        text = field_table(found)
        assert "| last round | T = 0.7, filtered | 2 |" in text
        assert "| truth |" not in text
        assert field_table({}) == ""


class TestDisplay:
    def test_a_line_a_stage_with_the_rest_of_the_time(self) -> None:
        written: list[str] = []
        display = Display(written.append, live=False)
        display.plan({"tuning": 3, "scoring": 1})
        display.end("one", "tuning", 60, fresh=True)
        assert written == ["[1/4] one: 60 s, about 3 min left\n"]
        display.end("two", "tuning", 60, fresh=False)
        assert len(written) == 1
        display.skip("scoring")
        display.end("three", "tuning", 60, fresh=True, note="a note")
        assert written[-1] == "[3/3] three: 60 s, a note\n"

    def test_live_it_shows_how_far_the_stage_is(self) -> None:
        written: list[str] = []
        display = Display(written.append, live=True)
        display.plan({"tuning": 1})
        display.begin("one", "tuning")
        assert written[-1].endswith("[0/1] one: 0%")


class TestCommand:
    def test_own_prompts_choose_the_critic_and_their_test_split(
        self, settings: SimulationSettings, tmp_path: Path
    ) -> None:
        options = parser().parse_args(
            ["--out", str(tmp_path), "--prompts", *settings.prompts, "--controls", "none", "--guard", "3"]
        )
        found = read_settings(options)
        assert (found.critic, found.heldout_scenes, found.controls) == ("rouge", 0, ())
        assert found.tuning.guard_per_rationale == 3
        assert found.tuning.gradient_checkpointing is False
        words = ["--out", str(tmp_path), "--micro-batch", "2", "--gradient-checkpointing", "--dtype", "bfloat16"]
        words += ["--attn-implementation", "eager", "--quantization", "8bit"]
        tuning = read_settings(parser().parse_args(words)).tuning
        assert (tuning.micro_batch_size, tuning.gradient_checkpointing, tuning.dtype) == (2, True, "bfloat16")
        assert (tuning.attn_implementation, tuning.quantization) == ("eager", "8bit")
        again = read_settings(parser().parse_args(["--out", str(tmp_path), "--heldout-seed", "7", "--first-seed", "4"]))
        assert (again.heldout_seed, again.run_seeds) == (7, (4, 5, 6))

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--mistakes", "2"], "mistakes"),
            (["--controls", "dreams"], "dreams"),
            (["--prompts-per-round", "3", "--picks-per-round", "3"], "not both"),
            (["--critic", "truth"], "no scene"),
            (["--model", "/nowhere/model"], "/nowhere/model"),
            (["--heldout-seed", "4"], "--heldout-seed has no effect"),
            (["--images", "coco"], "--images is for VQA-X files"),
            (["--critic", "truth", "--threshold", "0.5"], "--threshold belongs to the rouge critic"),
            (["--template", "what?"], "template: "),
            (["--device", "abacus"], "unknown device abacus"),
            (["--device", "cuda:99"], "there is no device cuda:99 here"),
        ],
    )
    def test_what_cannot_be_meant_is_one_sentence(
        self,
        settings: SimulationSettings,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        words: list[str],
        message: str,
    ) -> None:
        arguments = ["--out", str(tmp_path / "run"), "--model", settings.model, "--prompts", *settings.prompts, *words]
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1 + error.count("METEOR is not computed")
        assert not (tmp_path / "run" / "settings.json").exists(), "what was wrong must not stand in the way"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--rounds", "0"], "--rounds: must be at least 1, not 0"),
            (["--seeds", "-1"], "--seeds: must be at least 1, not -1"),
            (["--jobs", "-2"], "--jobs: must not be negative: -2"),
            (["--learning-rate", "nan"], "--learning-rate: must be above 0, not nan"),
            (["--epochs", "few"], "--epochs: invalid number value: 'few'"),
        ],
    )
    def test_numbers_that_cannot_be_meant(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["--out", str(tmp_path / "run"), *words])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err

    def test_the_folder(self, settings: SimulationSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["--model", settings.model, "--prompts", *settings.prompts, "--no-meteor"]
        (tmp_path / "thesis.tex").write_text("")
        for out, message in ((tmp_path, "holds other things (thesis.tex)"), (tmp_path / "thesis.tex", "is a file")):
            assert main(["--out", str(out), *words]) == 1
            assert message in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_run_goes_on_with_its_threads_and_from_any_folder(
        self, settings: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prompts = Path(settings.prompts[0])
        monkeypatch.chdir(prompts.parent)
        words = ["--out", str(tmp_path / "run"), "--model", settings.model, "--prompts"]
        first = read_settings(parser().parse_args([*words, prompts.name, "--threads", "3"]))
        store_settings(first, tmp_path / "run", inputs={})
        monkeypatch.chdir(tmp_path)
        assert read_settings(parser().parse_args([*words, str(prompts), "--jobs", "1"])) == first

    def test_meteor_that_fails_and_ctrl_c_say_how_to_go_on(
        self,
        settings: SimulationSettings,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        java = tmp_path / "java"
        java.write_text("#!/bin/sh\necho no memory >&2; exit 1\n")
        java.chmod(0o755)
        monkeypatch.setattr("illume.evaluation.meteor.find_java", lambda: str(java))
        words = ["--out", str(tmp_path / "run"), "--model", settings.model, "--prompts", *settings.prompts]
        words += ["--threshold", "1", "--rounds", "1", "--seeds", "1", "--baselines", "none", "--controls", "none"]
        words += ["--jobs", "1", "--threads", "1"]
        assert main(words) == 1
        assert "no memory; the same command tries again, --no-meteor leaves METEOR out" in capsys.readouterr().err

        def press(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr("illume.simulation.command.run_seed", press)
            assert main([*words, "--no-meteor"]) == 130
        assert "stopped; the same command goes on from here" in capsys.readouterr().err
        assert main([*words, "--no-meteor"]) == 0
        said = capsys.readouterr()
        assert "As the field reports them" in said.out
        assert "METEOR was not computed" in said.out
        assert f"written to {tmp_path / 'run'}: table.md" in said.err
