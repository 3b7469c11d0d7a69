"""What a round's result says, in the words of versions and pages."""

from __future__ import annotations

from typing import Any

import pytest

from app.services.projects import policies
from app.services.rounds.snapshots import RoundPlan
from illume.evaluation.activation import compare, decide
from illume.evaluation.metrics import METRICS_VERSION
from illume.evaluation.structured import score_answers
from illume.fields.answers import answer_json
from illume.fields.definitions import read_answer_fields
from illume.records import Example
from illume.settings import TuningSettings
from tests import factories
from worker.round_folder import changes, settings_hash, summary

SAME: dict[str, Any] = {"settings": {}, "heldout": {"prompts": [], "mean_logprob": []}}


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


def structured(*, right: int, images: int = 30) -> dict[str, Any]:
    """Scores of one answer to each image, half of them unsafe, of which `right` are rated so."""
    fields = read_answer_fields(factories.ANSWER_FIELDS)
    policy = policies.read_policy_in(policies.PolicyIn.model_validate(factories.policy_json()))
    unsafe, safe = ({"rating": "Unsafe", "category": factories.CATEGORIES[0]}, {"rating": "Safe", "category": "NA"})
    golds = [unsafe if number % 2 else safe for number in range(images)]
    examples = [
        Example(id=str(n), images=(f"{n}.png",), question="?", answer=None, policy=policy, fields=gold)
        for n, gold in enumerate(golds)
    ]
    found = iter(range(images))
    texts = [
        [answer_json({**(gold if gold is safe or next(found) < right else safe), "rationale": "a cat"}, fields)]
        for gold in golds
    ]
    scored = score_answers(examples, texts, fields, seed=1)
    return {"prompts": [one.id for one in examples], "fields": {"greedy": scored, "sampled": scored}}


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


class TestStructuredAnswers:
    def test_the_score_is_the_measure_of_the_greedy_answers(self) -> None:
        found = summary(structured(right=6), metric="balanced_accuracy")
        assert found["score"] == found["means"]["greedy_balanced_accuracy"] == pytest.approx((6 / 15 + 1) / 2)
        assert found["means"]["sampled_recall"] == pytest.approx(6 / 15)
        assert found["means"]["greedy_invalid_share"] == 0
        assert "greedy_policy_exception_recall" not in found["means"]  # no policy was changed
        assert found["fields"]["greedy"]["measures"]["recall"]["n"] == 30
        assert found["fields"]["sampled"]["by_change"][""]["recall"]["mean"] == pytest.approx(6 / 15)

    def test_changes_are_paired_by_image(self) -> None:
        new, parent = structured(right=12), structured(right=6)
        found = changes(new, parent, metric="balanced_accuracy", seed=3)
        assert found["score"] == found["greedy_balanced_accuracy"]
        assert found["score"]["mean"] == pytest.approx(0.2)
        decision = decide(compare(new | SAME, parent | SAME, metric="balanced_accuracy"), seed=3)
        assert decision.interval is not None
        assert (found["score"]["low"], found["score"]["high"]) == (decision.interval.low, decision.interval.high)
        assert found["greedy_recall"]["mean"] == pytest.approx(0.4)
        assert found["greedy_specificity"]["mean"] == 0
        assert found["greedy_category_accuracy"]["mean"] == 0

    def test_few_images_have_no_interval(self) -> None:
        found = changes(
            structured(right=2, images=8), structured(right=1, images=8), metric="balanced_accuracy", seed=3
        )
        assert (found["greedy_recall"]["low"], found["greedy_recall"]["n"]) == (None, 8)


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


class TestSettingsHash:
    def test_scores_are_kept_by_the_language_in_which_answers_are_compared(self) -> None:
        earlier, unknown, german, english = (
            settings_hash(RoundPlan(1, "starter", "rouge_l", 1, chosen), TuningSettings())
            for chosen in ({}, {"language": ""}, {"language": "de"}, {"language": "en"})
        )
        assert earlier == unknown
        assert len({earlier, german, english}) == 3

    def test_scores_of_other_metrics_are_not_taken_for_these(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plan = RoundPlan(1, "starter", "rouge_l", 1, {})
        before = settings_hash(plan, TuningSettings())
        monkeypatch.setattr("worker.round_folder.METRICS_VERSION", METRICS_VERSION + 1)
        assert settings_hash(plan, TuningSettings()) != before

    def test_scores_of_a_base_model_in_fewer_bits_are_those_of_another_model(self) -> None:
        plan = RoundPlan(1, "starter", "rouge_l", 1, {})
        every, eight, four = (
            settings_hash(plan, tuning)
            for tuning in (
                TuningSettings(attn_implementation="eager"),
                TuningSettings(quantization="8bit"),
                TuningSettings(quantization="4bit"),
            )
        )
        assert every == settings_hash(plan, TuningSettings())
        assert len({every, eight, four}) == 3
