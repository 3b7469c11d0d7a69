"""The activation rule: whether a new model version replaces its parent without asking an admin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from illume.evaluation.metrics import Interval, paired_bootstrap

METRIC_NAMES = {"rouge_l": "ROUGE-L of samples", "heldout": "Log-likelihood of held-out rationales"}


class Decision(NamedTuple):
    """Whether to activate the new version, the reason as a sentence for the admin, and the interval of new - parent."""

    activate: bool
    reason: str
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The input of the rule: the primary metric and the answer accuracy of both versions, on the same prompts."""

    metric: str  # in words
    new: Sequence[float]  # by prompt, in the same order as `parent`
    parent: Sequence[float]
    new_accuracy: float | None
    parent_accuracy: float | None


def decide(
    comparison: Comparison, *, max_answer_drop: float = 0.02, seed: int = 0, confidence: float = 0.95
) -> Decision:
    """Activates the new version if the paired bootstrap interval of new - parent lies above 0.

    In addition, answer accuracy may fall by at most `max_answer_drop`, a share: 0.02 is 2 points. Raises ValueError if
    the two versions were not scored on the same number of prompts.
    """
    if len(comparison.new) != len(comparison.parent):
        raise ValueError(
            f"both versions must be scored on the same prompts: {len(comparison.new)} and {len(comparison.parent)}"
        )
    if not comparison.new:
        return Decision(False, "There are no validation prompts to compare the versions on.", None)
    interval = paired_bootstrap(comparison.new, comparison.parent, seed=seed, confidence=confidence)
    mean, low, high = (_signed(one) for one in (interval.mean, interval.low, interval.high))
    gain = (
        f"{comparison.metric} changed by {mean} ({100 * confidence:.0f} % interval {low} to {high}, "
        f"{interval.n} prompts)"
    )
    if interval.low <= 0:
        return Decision(False, f"Not clearly better: {gain}.", interval)
    if comparison.new_accuracy is None or comparison.parent_accuracy is None:
        return Decision(True, f"Better: {gain}; no gold answers to check.", interval)
    change = comparison.new_accuracy - comparison.parent_accuracy
    answers = (
        f"answers right {100 * comparison.parent_accuracy:.1f} % before, {100 * comparison.new_accuracy:.1f} % now"
    )
    if change < -max_answer_drop - 1e-9:  # in floating point 0.90 - 0.88 is a little more than 0.02
        allowed = f"at most {100 * max_answer_drop:.1f} points may be lost"
        return Decision(False, f"Better explanations but worse answers: {gain}; {answers}, {allowed}.", interval)
    return Decision(True, f"Better: {gain}; {answers}.", interval)


def _signed(value: float) -> str:
    """Formats a change with its sign, using the minus sign of Unicode."""
    return f"{value:+.4f}".replace("-", "\u2212")


def primary_values(scores: Mapping[str, Any], metric: str) -> list[float | None]:
    """The values of the primary metric, from a result of `illume.evaluation.evaluation.evaluate`.

    `rouge_l` is ROUGE-L of the rationales sampled after the gold answer, because critics are shown samples; `heldout`
    is the mean log-likelihood of each held-out rationale. Raises ValueError for another metric.
    """
    if metric == "rouge_l":
        return list(scores["gold"]["sampled"]["rouge_l"])
    if metric == "heldout":
        return list(scores["heldout"]["mean_logprob"])
    raise ValueError(f"unknown primary metric {metric}")


def compare(new: Mapping[str, Any], parent: Mapping[str, Any], *, metric: str) -> Comparison:
    """Builds the input of the rule from two results of `illume.evaluation.evaluation.evaluate`.

    Raises ValueError if the results are of different prompts or settings.
    """
    for field in ("prompts", "settings"):
        if new[field] != parent[field]:
            raise ValueError(f"the two versions were not scored with the same {field}")
    pairs = zip(primary_values(new, metric), primary_values(parent, metric), strict=True)
    present = [(a, b) for a, b in pairs if a is not None and b is not None]
    return Comparison(
        metric=METRIC_NAMES[metric],
        new=[a for a, _ in present],
        parent=[b for _, b in present],
        new_accuracy=new["answers"]["accuracy"],
        parent_accuracy=parent["answers"]["accuracy"],
    )
