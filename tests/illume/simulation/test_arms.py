"""Comparisons of arms: what a file may say, what arms share, and what is told of them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from illume.root import ROOT
from illume.settings import PreferenceSettings
from illume.simulation.arms.file import Comparison, read_comparison
from illume.simulation.arms.report import compare_figure, compare_report, compare_table, sets_until
from illume.simulation.command import compare, main
from illume.simulation.jobs import Task, plan_tasks
from illume.simulation.loop.stages import Stages
from illume.simulation.options import parser, read_settings
from illume.simulation.settings import SimulationError, SimulationSettings
from illume.simulation.values import COUNTED, AnswerValues, prompt_values
from illume.tuning.job import read_json
from tests.illume.simulation.test_simulation import SETTINGS, compute_nothing, found_stages, quiet, settings

__all__ = ["settings"]


def write(folder: Path, text: str) -> Path:
    path = folder / "arms.yaml"
    path.write_text(text)
    return path


class TestFile:
    def read(self, folder: Path, text: str, *words: str) -> Comparison:
        path = write(folder, text)
        return read_comparison(path, ["--out", str(folder / "out"), "--heldout-scenes", "9", *words])

    def test_arms_differ_in_what_they_say_and_share_the_rest(self, tmp_path: Path) -> None:
        text = """
            options: {rounds: 5, seeds: 2}
            arms:
              Picks: {controls: [random, shuffled]}
              both kinds:
                objective: picks_and_rejections
                preferences: [beta=1.5, pair_weight=0]
                machine-accepts: true
        """
        found = self.read(tmp_path, text, "--seeds", "1")
        assert (found.common.rounds, found.common.seeds, found.common.baselines) == (5, 1, ("supervised-all",))
        picks, both = found.arms["Picks"], found.arms["both kinds"]
        assert (picks.controls, picks.baselines, both.controls) == (("random", "shuffled"), (), ())
        assert both.tuning.preferences == PreferenceSettings(beta=1.5, pair_weight=0)
        assert (both.machine_accepts, picks.machine_accepts) == (True, False)
        assert replace(picks, controls=(), baselines=("supervised-all",)) == found.common
        assert list(found.by_folder()) == ["arm-picks", "arm-both-kinds"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("arms: [", "arms.yaml is no YAML: "),
            ("options: {}", "arms must name at least one arm"),
            ("arms: {a: {}}\nrounds: 3", "rounds is neither options nor arms"),
            ("arms: {a: {}, A!: {}}", "a and A! are the same but for signs"),
            ("arms: {'?': {}}", "needs Latin letters or digits"),
            ("arms: {a: {objective: }}", "arm a: objective needs a value"),
            ("arms: {a: 3}", "arm a: must hold options"),
            ("arms: {a: {seeds: 9}}", "arm a: seeds is the same in all arms: say it under options"),
            ("arms: {a: {baselines: none}}", "arm a: baselines is the same in all arms"),
            ("arms: {a: {threads: 7}}", "arm a: threads is the same in all arms"),
            ("arms: {a: {critic: helpfulness, mistakes: 0.1}}", "arm a: mistakes: is for verdicts of people"),
            ("arms: {a: {preferences: [gamma=1]}}", "arm a: --preferences has an unknown field: gamma"),
            ("arms: {a: {preferences: [beta=much]}}", "arm a: --preferences: write NAME=NUMBER"),
            ("options: {controls: [random]}\narms: {a: {}}", "controls belong to an arm"),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(SimulationError) as caught:
            self.read(tmp_path, text)
        assert message in str(caught.value)

    def test_unknown_options_name_the_arm(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = write(tmp_path, "arms: {picks: {objectives: x}}")
        assert main(["--out", str(tmp_path / "out"), "--compare", str(tmp_path / "none.yaml")]) == 1
        assert "there is no comparison file" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            main(["--out", str(tmp_path / "out"), "--compare", str(path)])
        assert "arms.yaml, arm picks: error: " in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("name", "n", "judged"), [("comparison", 6, 75), ("ablations", 13, 75), ("choices", 5, 76), ("thirty", 5, 30)]
    )
    @pytest.mark.parametrize("task", ["scenes", "pairs"])
    def test_the_files_in_bench(self, tmp_path: Path, name: str, n: int, judged: int, task: str) -> None:
        words = ["--out", str(tmp_path / "out"), "--task", task]
        found = read_comparison(ROOT / "bench" / f"{name}.yaml", words)
        assert found.common.task == task
        assert len(found.arms) == n
        assert {one.rounds * one.prompts_per_round for one in found.arms.values()} == {judged}
        assert found.common.seeds == 3

    def test_the_file_of_answer_only_examples(self, tmp_path: Path) -> None:
        found = read_comparison(ROOT / "bench" / "answers.yaml", ["--out", str(tmp_path / "out"), "--task", "pairs"])
        chosen = [(one.tuning.spread_guard, one.tuning.guard_per_rationale) for one in found.arms.values()]
        assert chosen == [(False, 10), (True, 10), (False, 1), (False, 0)]

    def test_the_file_of_a_round_s_length(self, tmp_path: Path) -> None:
        found = read_comparison(ROOT / "bench" / "epochs.yaml", ["--out", str(tmp_path / "out")])
        chosen = [(one.tuning.epochs, one.tuning.guard_per_rationale) for one in found.arms.values()]
        assert chosen == [(3, 10), (5, 10), (3, 3), (5, 3)]

    def test_the_file_of_structured_answers(self, tmp_path: Path) -> None:
        found = read_comparison(ROOT / "bench" / "guard.yaml", ["--out", str(tmp_path / "out")])
        assert {one.task for one in found.arms.values()} == {"guard"}
        assert {one.rounds * one.prompts_per_round for one in found.arms.values()} == {76}
        assert found.common.seeds == 3


def scores(value: float) -> dict[str, Any]:
    part = {"rouge_l": [value] * 4, "faithful": [value] * 4}
    matched = {"temperature": 0.8, "entropy": 1.0, "faithful": [value] * 4, "distinct_true": [4 * value] * 4}
    return {"gold": {"sampled": part, "greedy": part}, "answers": {"correct": [True] * 4}, "matched": matched}


def tuned(*accuracies: float) -> dict[str, Any]:
    """What a round reports of its epochs, of which the first is kept."""
    names = ("preference_accuracy", "blank_accuracy")
    epochs = [{"epoch": 1, **dict(zip(names, accuracies, strict=False))}, {"epoch": 2, **dict.fromkeys(names, 1.0)}]
    return {"best_epoch": 1, "epochs": epochs}


def seed(*values: float, machine: bool = False, accuracies: Sequence[float] = ()) -> dict[str, Any]:
    accepted = {"verdicts": 90, "accepted": 4, "right": 3, "reason": "", "score": 1.0}
    counts = {"tuning": tuned(*accuracies)}
    rows = [
        {"round": number, "judged_in_all": 10 * number, "accepted_rationales": number, "scores": scores(value)}
        | counts
        | ({"machine": accepted} if machine else {})
        for number, value in enumerate(values, start=1)
    ]
    return {"rounds": rows, "random": {"scores": scores(0.3)}}


class TestReport:
    def test_sets_until_a_level(self) -> None:
        line = [(0.0, 0.2), (10.0, 0.6), (20.0, 0.4), (30.0, 0.8)]
        assert [sets_until(line, level) for level in (0.1, 0.2, 0.4, 0.6)] == [0.0, 0.0, pytest.approx(5.0), 10.0]
        assert sets_until(line, 0.7) == pytest.approx(27.5)
        assert sets_until(line, 0.81) is None

    def test_shares_of_supervised_tuning_and_paired_differences(self) -> None:
        """Supervised tuning reaches 0.8; 80 % of that lies between the rounds, whose means are 0.4 and 0.73."""
        arms = {"one": [seed(0.4, 0.71), seed(0.4, 0.75)], "other": [seed(0.5, 0.8, machine=True)] * 2}
        found = compare_report(scores(0.2), [scores(0.8)] * 2, arms, read=prompt_values)
        assert found["measures"] == ["truth_greedy", "truth_matched", "distinct_true"]
        until = found["arms"]["one"]["sets until"]["truth_matched"]
        assert until["sets"]["80%"] == pytest.approx(10 + 10 * (0.64 - 0.4) / 0.33)
        assert until["sets"]["95%"] is None
        assert until["best share"] == pytest.approx(0.9125)
        assert found["arms"]["other"]["sets until"]["distinct_true"]["sets"]["100%"] == pytest.approx(20)
        last = found["arms"]["other"]["rounds"][-1]
        assert last["against the first arm"]["truth_greedy"]["mean"] == pytest.approx(0.07)
        assert last["against supervised-all"]["truth_greedy"]["mean"] == pytest.approx(0.0)
        assert "against the first arm" not in found["arms"]["one"]["rounds"][-1]
        assert found["arms"]["one"]["controls"]["random"]["last round against it"]["truth_greedy"][
            "mean"
        ] == pytest.approx(0.43)
        text = compare_table(found)
        assert "| truth, matched entropy | sets until 80% | sets until 90% |" in text
        assert "| one | 17 | 20 | never (91%) | never (91%) | 20 | 0.730 [0.730, 0.730] | -0.070 " in text
        assert "| one: random |" in text
        assert "| one | 10 | 1 | 0.400 | 0.400 | 1.600 |\n| one | 20 | 2 | 0.730 | 0.730 | 2.920 |" in text
        assert "| other | 2 | 90 | 4.0 | 3.0 |  |" in text
        assert "with blank pictures" not in text
        drawing = "".join(ET.fromstring(compare_figure(found)).itertext())  # noqa: S314 (our own text)
        assert "supervised, all references" in drawing
        assert "sets judged" in drawing

    def test_how_often_the_accepted_one_of_a_pair_is_likelier(self) -> None:
        seeds = [seed(0.4, 0.5, accuracies=(0.9, 0.7)), seed(0.4, 0.5, accuracies=(0.8, 0.5))]
        found = compare_report(scores(0.2), [], {"picks": [seed(0.4)], "both": seeds}, read=prompt_values)
        assert found["arms"]["both"]["rounds"][0]["preferences"] == {
            "preference_accuracy": pytest.approx(0.85),
            "blank_accuracy": pytest.approx(0.6),
        }
        assert "preferences" not in found["arms"]["picks"]["rounds"][0]
        assert "| both | 0.850 | 0.600 |" in compare_table(found)

    def test_structured_answers_are_compared_by_ratings_and_rationales(self) -> None:
        def read(_: Any) -> AnswerValues:
            return AnswerValues((np.ones((4, len(COUNTED))),))

        row = seed(0.4)["rounds"][0] | {"scores": {"fields": {}}}
        found = compare_report({"fields": {}}, [{}], {"one": [{"rounds": [row]}]}, read=read)
        assert found["measures"] == ["balanced_accuracy", "policy_exception_recall", "truth", "truth_greedy"]
        assert "| balanced accuracy | sets until 80% |" in compare_table(found)
        assert compare_figure(found)

    def test_without_supervised_tuning_and_without_truth(self) -> None:
        def plain(value: float) -> dict[str, Any]:
            one = scores(value)
            del one["matched"]
            part = one["gold"]["greedy"] | {"faithful": [None] * 4}
            return one | {"gold": {"sampled": part, "greedy": part}}

        row = seed(0.4)["rounds"][0] | {"scores": plain(0.4)}
        found = compare_report(plain(0.2), [], {"one": [{"rounds": [row]}]}, read=prompt_values)
        assert found["measures"] == ["rouge_l_greedy", "rouge_l"]
        assert "sets until" not in found["arms"]["one"]
        assert "until" not in compare_table(found)
        assert compare_figure(found)


def comparison(settings: SimulationSettings) -> Comparison:
    common = replace(settings, controls=(), baselines=("supervised-all",), learning_rates=(5e-3,))
    arm = replace(common, baselines=())
    twice = replace(arm, rounds=2)
    return Comparison(common, {"all": arm, "Longer, twice": replace(twice, controls=("random",)), "again": twice})


@pytest.fixture(scope="module")
def compared(settings: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The result of a comparison that got all but its first arm later."""
    out, whole = tmp_path_factory.mktemp("compared"), comparison(settings)
    compare(Comparison(whole.common, {"all": whole.arms["all"]}), out, display=quiet())
    return out, compare(whole, out, display=quiet())


class TestRun:
    def test_what_is_shared_is_computed_once(
        self, compared: tuple[Path, dict[str, Any]], settings: SimulationSettings
    ) -> None:
        out, result = compared
        stages = {str(path.relative_to(out / "stages").with_suffix("")) for path in found_stages(out)}
        heads: Sequence[str] = [name for name in stages if name.endswith("heldout")]
        assert sorted(heads) == sorted(
            [
                *("arm-all/seed-1/round-1/heldout", "arm-longer-twice/seed-1/random/heldout"),
                *(
                    f"arm-{name}/seed-1/round-{number}/heldout"
                    for name in ("again", "longer-twice")
                    for number in (1, 2)
                ),
                *("base/heldout", "seed-1/supervised-all/heldout"),
            ]
        )
        assert result["measures"] == ["rouge_l_greedy", "rouge_l"]
        assert [len(arm["rounds"]) for arm in result["arms"].values()] == [1, 2, 2]
        assert result["arms"]["all"]["settings"]["rounds"] == 1
        assert read_json(out / "result.json")["supervised-all"]["measures"]["rouge_l"]["n"] == 2
        assert "| Longer, twice: random |" in (out / "table.md").read_text()
        assert (out / "figure.svg").exists()

    def test_a_round_that_another_arm_has_run_is_copied(self, compared: tuple[Path, dict[str, Any]]) -> None:
        stages = compared[0] / "stages"
        copied = {
            str(path.relative_to(stages).with_suffix("")): content["copy_of"]
            for path in found_stages(compared[0])
            if "copy_of" in (content := read_json(path))
        }
        mine, longer, other = (f"arm-{name}/seed-1" for name in ("again", "longer-twice", "all"))
        assert copied == {
            # The scores of the first arm, which ends with this round, are of more.
            f"{longer}/round-1/tuning": f"{other}/round-1/tuning",
            f"{mine}/round-1/tuning": f"{other}/round-1/tuning",
            f"{mine}/round-1/heldout": f"{longer}/round-1/heldout",
            # The second round is of equal verdicts again, and has the same parent.
            f"{mine}/round-2/tuning": f"{longer}/round-2/tuning",
            f"{mine}/round-2/heldout": f"{longer}/round-2/heldout",
        }
        files = ("adapter/adapter_model.safetensors", "result.json", "train.jsonl")
        assert all(
            (stages / mine / "round-1" / file).read_bytes() == (stages / other / "round-1" / file).read_bytes()
            for file in files
        )

    def test_what_is_not_of_equal_inputs_is_computed(self, tmp_path: Path) -> None:
        stages, taken = Stages(tmp_path, quiet()), list[str]()

        def run(name: str, inputs: str, value: int) -> int:
            def take(folder: Path) -> None:
                taken.append(folder.name)

            found: int = stages.run_once(name, "scoring", lambda _: value, inputs=lambda: inputs, take=take)
            return found

        assert [run("a/one/x", "same", 1), run("b/one/x", "other", 2), run("b/two/x", "same", 3)] == [1, 2, 3]
        assert taken == []
        assert run("c/one/x", "same", 4) == 1
        assert run("c/one/x", "other", 5) == 1  # it is done
        assert taken == ["one"]
        assert stages.seconds().keys() == {"a/one/x", "b/one/x", "b/two/x", "c/one/x"}

    def test_an_arm_with_other_settings_needs_another_name(
        self, compared: tuple[Path, dict[str, Any]], settings: SimulationSettings
    ) -> None:
        whole = comparison(settings)
        other = Comparison(whole.common, {"all": replace(whole.arms["all"], rounds=3)})
        with pytest.raises(SimulationError, match=r"holds an arm with other settings: rounds was 1, now 3"):
            compare(other, compared[0], display=quiet())

    def test_a_second_start_computes_nothing(
        self,
        compared: tuple[Path, dict[str, Any]],
        settings: SimulationSettings,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        compute_nothing(monkeypatch)
        assert compare(comparison(settings), compared[0], display=quiet()) == compared[1]

    @pytest.mark.slow
    def test_two_processes_find_what_one_does(
        self, compared: tuple[Path, dict[str, Any]], settings: SimulationSettings, tmp_path: Path
    ) -> None:
        assert compare(comparison(settings), tmp_path, display=quiet(), jobs=2) == compared[1]

    def test_each_arm_has_its_own_tasks(self) -> None:
        arms = {"arm-a": replace(SETTINGS, baselines=(), controls=("random",)), "arm-b": replace(SETTINGS, controls=())}
        tasks = plan_tasks(replace(SETTINGS, baselines=("supervised-all",), controls=()), arms)
        loops = [Task("loop", 1, "arm-a"), Task("loop", 1, "arm-b")]
        assert list(tasks)[:4] == [Task("val"), Task("supervised-all", 1), *loops]
        assert tasks[Task("random", 1, "arm-a")] == (Task("loop", 1, "arm-a"),)
        assert tasks[Task("supervised-all", 1)] == (Task("val"),)
        assert Task("loop", 1) not in tasks


def test_preferences_on_the_command_line(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--heldout-scenes", "9", "--preferences", "picture_weight=0"]
    assert read_settings(parser().parse_args(words)).tuning.preferences == PreferenceSettings(picture_weight=0)
