"""The activation rule, case by case."""

from __future__ import annotations

import pytest

from illume.evaluation.activation import Comparison, decide


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
        assert decision.reason.startswith("Not clearly better")

    def test_a_loss_waits(self) -> None:
        decision = decide(compare(-0.1))
        assert not decision.activate
        assert "changed by −0.1000 (95 % interval −0.1" in decision.reason
        assert "-" not in decision.reason.replace("ROUGE-L", "")

    def test_no_change_at_all_waits(self) -> None:
        assert not decide(Comparison("ROUGE-L", [0.5] * 9, [0.5] * 9, 0.9, 0.9)).activate

    def test_worse_answers_wait(self) -> None:
        decision = decide(compare(0.1, new_accuracy=0.87))
        assert not decision.activate
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
        assert (decision.activate, decision.interval) == (False, None)
        assert "no validation prompts" in decision.reason

    def test_pairs_must_match(self) -> None:
        with pytest.raises(ValueError, match="same prompts"):
            decide(Comparison("ROUGE-L", [1.0], [1.0, 2.0], None, None))
