"""What a round's result says, in the words of versions and pages."""

from __future__ import annotations

from typing import Any

import pytest

from worker.round_folder import changes, summary


def scores(*, shift: float, heldout: list[float] | None = None) -> dict[str, Any]:
    values = [0.2 + shift, 0.4 + shift, None]
    style = {
        "rouge_l": values,
        "cider": [None, None, None],
        "faithful": [1.0, 0.0, 1.0],
        "means": {"bleu": [0.4, 0.3, 0.2, 0.1], "distinct_2": 0.5},
    }
    found: dict[str, Any] = {
        "gold": {"greedy": style, "sampled": style},
        "own": {"greedy": style, "sampled": style},
        "answers": {"correct": [True, False, None]},
    }
    if heldout:
        found["heldout"] = {"prompts": [str(n) for n in range(len(heldout))], "mean_logprob": heldout}
    return found


class TestSummary:
    def test_means_over_what_could_be_scored(self) -> None:
        found = summary(scores(shift=0.0), metric="rouge_l")
        assert found["score"] == pytest.approx(0.3)
        assert found["means"]["answer_accuracy"] == 0.5
        assert found["means"]["own_greedy_faithful"] == pytest.approx(2 / 3)
        assert (found["means"]["sampled_bleu_4"], found["means"]["greedy_distinct_2"]) == (0.1, 0.5)
        assert "sampled_cider" not in found["means"]

    def test_meteor_where_it_was_computed(self) -> None:
        assert "sampled_meteor" not in summary(scores(shift=0.0), metric="rouge_l")["means"]
        both = [scores(shift=0.0), scores(shift=0.0)]
        for one, value in zip(both, (0.25, 0.5), strict=True):
            one["gold"]["sampled"] = one["gold"]["sampled"] | {"meteor": [value, value, None]}
        assert summary(both[1], metric="rouge_l")["means"]["sampled_meteor"] == 0.5
        assert changes(both[1], both[0], metric="rouge_l", seed=1)["sampled_meteor"]["mean"] == 0.25

    def test_the_score_is_the_primary_metrics(self) -> None:
        assert summary(scores(shift=0.0, heldout=[-1.0, -2.0]), metric="heldout")["score"] == -1.5

    def test_without_val_prompts_there_is_none(self) -> None:
        assert summary({"gold": {}, "answers": {"correct": []}}, metric="rouge_l") == {"score": None, "means": {}}


class TestChanges:
    def test_are_paired_by_prompt(self) -> None:
        found = changes(scores(shift=0.1), scores(shift=0.0), metric="rouge_l", seed=1)
        assert found["score"] == found["sampled_rouge_l"]
        assert found["score"]["mean"] == pytest.approx(0.1)
        assert (found["score"]["low"], found["score"]["high"]) == (None, None)  # two prompts tell nothing
        assert found["score"]["n"] == 2
        assert found["answer_accuracy"]["mean"] == 0.0

    def test_nothing_to_pair_is_no_change(self) -> None:
        assert changes({"gold": {}}, {"gold": {}}, metric="heldout", seed=1) == {"score": None}
