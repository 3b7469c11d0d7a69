"""Scoring a model version on val prompts: what is computed, from what, in which order, and reproducibly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from illume.evaluation.activation import compare, primary_values
from illume.evaluation.evaluation import evaluate, mean, n_texts, score_rationales
from illume.model.vlm import Vlm, load_vlm
from illume.records import Example, TrainingRow
from illume.settings import EvaluationSettings
from tests.illume.families import make_llava
from tests.illume.rounds import make_examples

SETTINGS = EvaluationSettings(samples=2, max_new_tokens=5, max_answer_tokens=3)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    return load_vlm(str(make_llava(tmp_path_factory.mktemp("base"))), device="cpu")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return make_examples(tmp_path_factory.mktemp("images"), count=3, split="val")


class TestEvaluate:
    def test_all_parts_are_plain_data_per_prompt(self, vlm: Vlm, examples: list[Example]) -> None:
        rows = [TrainingRow(examples[0], "there is red water")]
        scores = evaluate(vlm, examples, SETTINGS, heldout=rows)
        assert json.loads(json.dumps(scores, allow_nan=False)) == scores
        assert scores["prompts"] == ["val-0", "val-1", "val-2"]
        for source in ("gold", "own"):
            for mode, count in (("greedy", 1), ("sampled", 2)):
                part = scores[source][mode]
                assert [len(texts) for texts in part["rationales"]] == [count] * 3
                assert len(part["rouge_l"]) == len(part["cider"]) == len(part["faithful"]) == 3
                assert part["faithful"] == [None] * 3
        assert scores["answers"]["correct"] == [False] * 3
        assert scores["answers"]["accuracy"] == 0.0
        assert scores["own"]["greedy"]["filtered"]["n"] == 0
        assert scores["heldout"]["mean"] == scores["heldout"]["mean_logprob"][0] < 0

    def test_scores_are_reproducible(self, vlm: Vlm, examples: list[Example]) -> None:
        first, second = (evaluate(vlm, examples, SETTINGS, parts=("gold",)) for _ in range(2))
        assert first == second

    def test_another_seed_changes_samples_but_not_greedy_texts(self, vlm: Vlm, examples: list[Example]) -> None:
        one = evaluate(vlm, examples, SETTINGS, parts=("gold",))["gold"]
        other = evaluate(vlm, examples, replace(SETTINGS, seed=9), parts=("gold",))["gold"]
        assert one["sampled"]["rationales"] != other["sampled"]["rationales"]
        assert one["greedy"] == other["greedy"]

    def test_known_parts_are_not_computed_again(self, vlm: Vlm, examples: list[Example]) -> None:
        new: list[str] = []
        known = {"gold": {"told": True}}
        scores = evaluate(
            vlm, examples, SETTINGS, parts=("answers", "gold"), known=known, on_part=lambda part, _: new.append(part)
        )
        assert new == ["answers"]
        assert scores["gold"] == {"told": True}

    def test_rationales_are_reused_if_the_own_answer_is_the_gold_one(self, vlm: Vlm, examples: list[Example]) -> None:
        own = evaluate(vlm, examples, SETTINGS, parts=("answers",))["answers"]["own"]
        agreeing = [replace(example, answer=answer) for example, answer in zip(examples, own, strict=True)]
        both = evaluate(vlm, agreeing, SETTINGS, parts=("answers", "gold", "own"))
        alone = evaluate(vlm, agreeing, SETTINGS, parts=("answers", "own"))
        assert both["own"] == alone["own"]
        assert both["own"]["sampled"]["rationales"] == both["gold"]["sampled"]["rationales"]
        assert both["answers"]["accuracy"] == 1.0

    def test_without_a_gold_answer_the_own_one_is_used_in_the_prompt(self, vlm: Vlm, examples: list[Example]) -> None:
        nameless = [replace(example, answer=None) for example in examples]
        scores = evaluate(vlm, nameless, SETTINGS, parts=("answers", "gold", "own"))
        assert scores["gold"]["greedy"]["rationales"] == scores["own"]["greedy"]["rationales"]
        assert scores["answers"]["accuracy"] is None
        with pytest.raises(ValueError, match="val-0 has no gold answer"):
            evaluate(vlm, nameless, SETTINGS, parts=("gold",))

    def test_no_prompts(self, vlm: Vlm) -> None:
        scores = evaluate(vlm, [], SETTINGS)
        assert scores["gold"]["sampled"]["means"]["rouge_l"] is None

    def test_progress_counts_every_text(self, vlm: Vlm, examples: list[Example]) -> None:
        ticks: list[int] = []
        evaluate(vlm, examples, SETTINGS, progress=ticks.append)
        assert sum(ticks) == n_texts(examples, SETTINGS) == 3 * 7

    def test_progress_may_raise_to_stop(self, vlm: Vlm, examples: list[Example]) -> None:
        class EnoughError(Exception):
            pass

        def stop(_: int) -> None:
            raise EnoughError

        with pytest.raises(EnoughError):
            evaluate(vlm, examples, SETTINGS, progress=stop)


class TestScores:
    first = Example("a", ("a.png",), "q", "yes", ("the dog runs on sand", "a dog runs"))
    second = Example("b", ("b.png",), "q", "yes", ("it snows in the night",))
    third = Example("c", ("c.png",), "q", "yes")

    def test_samples_of_a_prompt_are_averaged(self) -> None:
        scores = score_rationales([self.first], [["a dog runs", "nothing else"]])
        assert scores["rouge_l"] == [0.5]

    def test_prompts_without_references_have_no_score(self) -> None:
        scores = score_rationales([self.first, self.third], [["a dog runs"], ["x"]])
        assert scores["rouge_l"] == [1.0, None]
        assert scores["cider"][1] is None
        assert scores["means"]["rouge_l"] == 1.0
        assert scores["means"]["n"] == 2

    def test_filtered_means_cover_correct_answers_only(self) -> None:
        scores = score_rationales(
            [self.first, self.second], [["a dog runs"], ["wrong words here"]], correct=[True, False]
        )
        assert scores["filtered"]["rouge_l"] == 1.0
        assert scores["means"]["rouge_l"] == 0.5

    def test_mean_without_values(self) -> None:
        assert mean([None, None]) is None
        assert mean([None, 1.0, 2.0]) == 1.5


class TestCompare:
    def scores(self, values: list[float | None], **changes: Any) -> dict[str, Any]:
        return {
            "prompts": ["a", "b"],
            "settings": {"seed": 0},
            "answers": {"accuracy": 0.5},
            "gold": {"sampled": {"rouge_l": values}},
            "heldout": {"prompts": ["a"], "mean_logprob": [-1.0]},
            **changes,
        }

    def test_pairs_without_a_value_are_left_out(self) -> None:
        comparison = compare(self.scores([0.5, None]), self.scores([0.25, None]), metric="rouge_l")
        assert (comparison.new, comparison.parent) == ([0.5], [0.25])

    def test_other_prompts_are_refused(self) -> None:
        with pytest.raises(ValueError, match="same prompts"):
            compare(self.scores([0.5, 1.0]), self.scores([0.5, 1.0], prompts=["a", "c"]), metric="rouge_l")

    def test_other_settings_are_refused(self) -> None:
        with pytest.raises(ValueError, match="same settings"):
            compare(self.scores([0.5, 1.0]), self.scores([0.5, 1.0], settings={"seed": 1}), metric="rouge_l")

    def test_metrics(self) -> None:
        assert primary_values(self.scores([0.5, None]), "rouge_l") == [0.5, None]
        assert primary_values(self.scores([]), "heldout") == [-1.0]
        with pytest.raises(ValueError, match="unknown primary metric"):
            primary_values(self.scores([]), "beauty")


def test_images_come_from_files(vlm: Vlm, examples: list[Example], tmp_path: Path) -> None:
    missing = replace(examples[0], images=(str(tmp_path / "gone.png"),))
    with pytest.raises(ValueError, match=r"gone\.png"):
        evaluate(vlm, [missing], SETTINGS, parts=("gold",))
