"""The activation rule, case by case."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from illume.evaluation.activation import Comparison, decide, primary_values, reword_reason
from illume.evaluation.activation import compare as compare_scores


def compare(gain: float, *, new_accuracy: float | None = 0.9, parent_accuracy: float | None = 0.9) -> Comparison:
    parent = [0.2 + 0.01 * (number % 7) for number in range(60)]
    new = [value + gain + 0.05 * (number % 5 - 2) for number, value in enumerate(parent)]
    return Comparison("ROUGE-L", new, parent, new_accuracy, parent_accuracy)


class TestDecide:
    def test_clearly_better_is_activated(self) -> None:
        decision = decide(compare(0.1))
        assert decision.activate
        assert decision.reason.startswith("Better: ROUGE-L changed by +0.1000")
        assert decision.interval is not None
        assert 0 < decision.interval.low < 0.1 < decision.interval.high

    def test_a_gain_within_the_noise_waits(self) -> None:
        decision = decide(compare(0.001))
        assert not decision.activate
        assert decision.outcome == "no clear difference"
        assert decision.reason.startswith("No clear difference: ROUGE-L changed by")

    def test_a_loss_waits(self) -> None:
        decision = decide(compare(-0.1))
        assert (decision.activate, decision.outcome) == (False, "worse")
        assert decision.reason.startswith("Worse: ")
        assert "changed by −0.1000 (95 % interval −0.1" in decision.reason
        assert "-" not in decision.reason.replace("ROUGE-L", "")

    def test_no_change_at_all_waits(self) -> None:
        decision = decide(Comparison("ROUGE-L", [0.5] * 40, [0.5] * 40, 0.9, 0.9))
        assert (decision.activate, decision.outcome) == (False, "no clear difference")

    @pytest.mark.parametrize(("n", "outcome"), [(1, "too few to tell"), (29, "too few to tell"), (30, "better")])
    def test_below_thirty_prompts_it_waits_without_an_interval(self, n: int, outcome: str) -> None:
        decision = decide(Comparison("ROUGE-L", [0.9] * n, [0.1] * n, 0.9, 0.9))
        assert (decision.activate, decision.outcome) == (n == 30, outcome)
        assert (decision.interval is None) == (n < 30)
        if n < 30:
            assert decision.reason == f"Too few to tell ({n}; at least 30): ROUGE-L changed by +0.8000."

    def test_worse_answers_wait(self) -> None:
        decision = decide(compare(0.1, new_accuracy=0.87))
        assert (decision.activate, decision.outcome) == (False, "no clear difference")
        assert "better explanations but worse answers" in decision.reason
        assert "90.0 % before, 87.0 % now" in decision.reason

    def test_exactly_the_allowed_drop_is_allowed(self) -> None:
        assert decide(compare(0.1, new_accuracy=0.88, parent_accuracy=0.90)).activate

    def test_the_allowed_drop_is_a_setting(self) -> None:
        assert decide(compare(0.1, new_accuracy=0.80), max_answer_drop=0.1).activate

    def test_without_gold_answers_the_metric_decides(self) -> None:
        decision = decide(compare(0.1, new_accuracy=None, parent_accuracy=None))
        assert decision.activate
        assert "no known answers" in decision.reason

    def test_without_prompts_it_waits(self) -> None:
        decision = decide(Comparison("ROUGE-L", [], [], None, None))
        assert (decision.activate, decision.outcome, decision.interval) == (False, "too few to tell", None)
        assert "no validation prompts" in decision.reason

    def test_pairs_must_match(self) -> None:
        with pytest.raises(ValueError, match="same prompts"):
            decide(Comparison("ROUGE-L", [1.0], [1.0, 2.0], None, None))


class TestRewordReason:
    """Reasons as they were worded before there were four outcomes."""

    GAIN = "ROUGE-L of samples changed by {} (95 % interval {} to {}, {} prompts)"
    FELL = "answer accuracy 90.0 % before, 80.0 % now, at most 2.0 points may be lost."

    @pytest.mark.parametrize(
        ("words", "low", "high", "n", "end", "today"),
        [
            ("Not clearly better", -0.2, -0.1, 40, ".", "Worse: ROUGE-L of samples changed by −0.1000 (95 % interval"),
            ("Not clearly better", -0.2, 0.1, 40, ".", "No clear difference: ROUGE-L of samples changed by −0.1000 ("),
            ("Not clearly better", -0.2, -0.1, 3, ".", "Too few to tell (3; at least 30): ROUGE-L of samples changed"),
            ("Better", 0.1, 0.2, 40, "; no known answers to check.", "Better: ROUGE-L of samples changed by"),
            ("Better", None, None, 29, "; no known answers to check.", "Too few to tell (29; at least 30): ROUGE-L of"),
            (
                "Better explanations but worse answers",
                0.1,
                0.2,
                40,
                f"; {FELL}",
                "No clear difference: better explanations but worse answers: ROUGE-L of samples changed by",
            ),
        ],
    )
    def test_the_stored_figures_decide_on_the_words(
        self, words: str, low: float | None, high: float | None, n: int, end: str, today: str
    ) -> None:
        stored = f"{words}: {self.GAIN.format('−0.1000', '−0.2000', '+0.1000', n)}{end}"
        reworded = reword_reason(stored, {"low": low, "high": high, "n": n})
        assert reworded.startswith(today)
        assert reworded.endswith(end)
        assert ("interval" in reworded) is (n >= 30)
        assert reword_reason(reworded, {"low": low, "high": high, "n": n}) == reworded
        earlier = stored.replace("answer accuracy", "answers right").replace("known answers", "gold answers")
        assert reword_reason(earlier, {"low": low, "high": high, "n": n}) == reworded

    def test_what_follows_stays(self) -> None:
        stored = f"Not clearly better: {self.GAIN.format('+0.1', '−0.1', '+0.2', 5)}. Blind comparison 1: Better (x)."
        today = "Too few to tell (5; at least 30): ROUGE-L of samples changed by +0.1. Blind comparison 1: Better (x)."
        assert reword_reason(stored, {"low": -0.1, "high": 0.2, "n": 5}) == today

    def test_without_figures_or_prompts(self) -> None:
        stored = f"Not clearly better: {self.GAIN.format('+0.1', '−0.1', '+0.2', 5)}."
        assert reword_reason(stored, None) == stored
        assert reword_reason("Chosen by hand.", {"low": 0.0, "high": 1.0, "n": 3}) == "Chosen by hand."
        none = "There are no validation prompts to compare the versions on."
        assert reword_reason(none, None) == decide(Comparison("ROUGE-L", [], [], None, None)).reason

    @pytest.mark.parametrize("gain", [0.1, 0.001, -0.1])
    def test_todays_stay(self, gain: float) -> None:
        decision = decide(compare(gain))
        assert decision.interval is not None
        figures = {"low": decision.interval.low, "high": decision.interval.high, "n": decision.interval.n}
        assert reword_reason(decision.reason, figures) == decision.reason


class TestHeldOut:
    def scores(self, *values: float) -> dict[str, object]:
        prompts = ["a", "b", "a"]
        return {
            "prompts": [],
            "settings": {},
            "answers": {"accuracy": None},
            "heldout": {"prompts": prompts, "mean_logprob": list(values)},
        }

    def test_a_prompt_counts_once_however_many_rationales_it_has(self) -> None:
        assert primary_values(self.scores(-1.0, -4.0, -3.0), "heldout") == [-2.0, -4.0]
        decision = decide(compare_scores(self.scores(0, 0, 0), self.scores(-1, -1, -1), metric="heldout"))
        assert decision.reason.startswith("Too few to tell (2; at least 30)")

    def test_of_other_rationales_cannot_be_compared(self) -> None:
        other = self.scores(0, 0, 0) | {"heldout": {"prompts": ["a", "b", "b"], "mean_logprob": [0, 0, 0]}}
        with pytest.raises(ValueError, match="same held-out rationales"):
            compare_scores(self.scores(0, 0, 0), other, metric="heldout")


class TestStructured:
    """Where answers are structured, the rule compares images, and explanations must not become worse."""

    def compare(self, gain: float, change: float) -> Comparison:
        before = [0.4 + 0.05 * (number % 5) for number in range(60)]
        now = [value + change + 0.02 * (number % 3 - 1) for number, value in enumerate(before)]
        of_explanations = Comparison("ROUGE-L of samples", now, before, None, None)
        return replace(compare(gain), metric="Balanced accuracy", unit="images", explanations=of_explanations)

    def test_better_answers_and_explanations_as_before(self) -> None:
        decision = decide(self.compare(0.1, 0.0))
        assert decision.activate
        assert re.fullmatch(
            r"Better: Balanced accuracy changed by \+0\.1000 \(95 % interval .*, 60 images\); "
            r"ROUGE-L of samples 0\.5000 before, 0\.5000 now\.",
            decision.reason,
        )

    @pytest.mark.parametrize(
        ("change", "activate"),
        [(-0.001, True), (-0.019, False), (-0.021, False)],
        ids=["within chance", "clearly less", "too much less"],
    )
    def test_explanations_must_not_fall(self, change: float, activate: bool) -> None:
        decision = decide(self.compare(0.1, change))
        assert decision.activate == activate
        if not activate:
            assert decision.outcome == "no clear difference"
            assert "better answers but worse explanations" in decision.reason

    def test_more_than_the_allowed_drop_is_too_much_even_within_chance(self) -> None:
        before = [0.0, 1.0] * 30
        now = [1.0, 0.0] * 29 + [0.0, 0.0]
        found = replace(self.compare(0.1, 0.0), explanations=Comparison("ROUGE-L", now, before, None, None))
        assert decide(found, max_answer_drop=0.01).activate is False
        assert decide(found, max_answer_drop=0.02).activate is True

    def test_answers_that_are_no_better_do_not_ask_for_explanations(self) -> None:
        assert decide(self.compare(0.0, 0.5)).reason.startswith("No clear difference: Balanced accuracy changed")

    def test_without_both_sides_it_waits(self) -> None:
        decision = decide(replace(self.compare(0.1, 0.0), new=[], parent=[]))
        assert "there are no validation prompts with positive and negative known ratings" in decision.reason

    @pytest.mark.parametrize(
        ("rouge", "metric"), [([0.5, None], "ROUGE-L of samples"), ([None, None], "Log-likelihood")]
    )
    def test_explanations_are_scored_by_what_there_is(self, rouge: list[float | None], metric: str) -> None:
        def scores(change: float) -> dict[str, Any]:
            style = {
                "balanced": [0.5 + change, 1.0],
                "measures": {"rating_accuracy": {"mean": 0.75 + change}},
                "rationales": {"rouge_l": rouge},
            }
            heldout = {"prompts": ["a"], "mean_logprob": [-1.0 + change]}
            return {
                "prompts": ["a", "b"],
                "settings": {},
                "heldout": heldout,
                "fields": {"greedy": style, "sampled": style},
            }

        found = compare_scores(scores(0.25), scores(0.0), metric="balanced_accuracy")
        assert (found.new, found.parent, found.unit) == ([0.75, 1.0], [0.5, 1.0], "images")
        assert (found.new_accuracy, found.parent_accuracy) == (1.0, 0.75)
        assert found.explanations is not None
        assert found.explanations.metric.startswith(metric)
        assert len(found.explanations.new) == 1
        by_rouge = compare_scores(scores(0.25), scores(0.0), metric="rouge_l")
        assert by_rouge.explanations is None
        assert by_rouge.unit == "prompts"
