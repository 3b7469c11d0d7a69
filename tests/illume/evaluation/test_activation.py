"""The activation rule, case by case."""

from __future__ import annotations

import pytest

from illume.evaluation.activation import Comparison, decide, primary_values
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
        assert "no gold answers" in decision.reason

    def test_without_prompts_it_waits(self) -> None:
        decision = decide(Comparison("ROUGE-L", [], [], None, None))
        assert (decision.activate, decision.outcome, decision.interval) == (False, "too few to tell", None)
        assert "no validation prompts" in decision.reason

    def test_pairs_must_match(self) -> None:
        with pytest.raises(ValueError, match="same prompts"):
            decide(Comparison("ROUGE-L", [1.0], [1.0, 2.0], None, None))


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
