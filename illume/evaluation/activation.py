"""The activation rule: whether a new model version replaces its parent without asking an admin."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from illume.evaluation.metrics import Interval, paired_bootstrap

METRIC_NAMES = {"rouge_l": "ROUGE-L of samples", "heldout": "Log-likelihood of held-out explanations"}


FEWEST_PROMPTS = 30
"""Below this many evaluated prompts, a difference says nothing: no interval is shown, and an admin decides."""

EARLIER_REASON = re.compile(
    r"(?P<words>Not clearly better|Better explanations but worse answers|Better): "
    r"(?P<gain>.+? changed by \S+)(?P<interval> \([^()]* interval [^()]*\))(?P<rest>.*)",
    re.DOTALL,
)
"""The reasons of decisions before there were four outcomes; those of better versions are the same today."""
EARLIER_WORDS = (
    ("; answers right ", "; answer accuracy "),
    ("no gold answers to check", "no known answers to check"),
    (" of held-out rationales ", " of held-out explanations "),
)
EARLIER_WITHOUT_PROMPTS = "There are no validation prompts to compare the versions on."

Outcome = Literal["better", "worse", "no clear difference", "too few to tell"]


class Decision(NamedTuple):
    """Whether to activate the new version, the outcome, the reason in a sentence, and the interval of new - parent.

    The interval is None if too few prompts were evaluated.
    """

    activate: bool
    outcome: Outcome
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
    """Activates the new version if it is better: the paired bootstrap interval of new - parent lies above 0.

    In addition, answer accuracy may fall by at most `max_answer_drop`, a share: 0.02 is 2 points. Below
    `FEWEST_PROMPTS` prompts the outcome is "too few to tell". Raises ValueError if the two versions were not scored on
    the same number of prompts.
    """
    if len(comparison.new) != len(comparison.parent):
        raise ValueError(
            f"both versions must be scored on the same prompts: {len(comparison.new)} and {len(comparison.parent)}"
        )
    n = len(comparison.new)
    if not n:
        few = capitalise(outcome_words("too few to tell", 0))
        return Decision(False, "too few to tell", f"{few}: there are no validation prompts.", None)
    interval = paired_bootstrap(comparison.new, comparison.parent, seed=seed, confidence=confidence)
    outcome = outcome_of(interval.low, interval.high, n)
    gain = f"{comparison.metric} changed by {_signed(interval.mean)}"
    if outcome == "too few to tell":
        return Decision(False, outcome, f"{capitalise(outcome_words(outcome, n))}: {gain}.", None)
    low, high = _signed(interval.low), _signed(interval.high)
    gain += f" ({100 * confidence:.0f} % interval {low} to {high}, {interval.n} prompts)"
    if outcome != "better":
        return Decision(False, outcome, f"{capitalise(outcome)}: {gain}.", interval)
    if comparison.new_accuracy is None or comparison.parent_accuracy is None:
        return Decision(True, outcome, f"Better: {gain}; no known answers to check.", interval)
    change = comparison.new_accuracy - comparison.parent_accuracy
    answers = (
        f"answer accuracy {100 * comparison.parent_accuracy:.1f} % before, {100 * comparison.new_accuracy:.1f} % now"
    )
    if change < -max_answer_drop - 1e-9:  # in floating point 0.90 - 0.88 is a little more than 0.02
        allowed = f"at most {100 * max_answer_drop:.1f} points may be lost"
        reason = f"No clear difference: better explanations but worse answers: {gain}; {answers}, {allowed}."
        return Decision(False, "no clear difference", reason, interval)
    return Decision(True, outcome, f"Better: {gain}; {answers}.", interval)


def outcome_of(low: float | None, high: float | None, n: int, *, neutral: float = 0.0) -> Outcome:
    """What the interval of a difference over `n` prompts says; `neutral` is the value of no difference."""
    if n < FEWEST_PROMPTS or low is None or high is None:
        return "too few to tell"
    return "better" if low > neutral else "worse" if high < neutral else "no clear difference"


def outcome_words(outcome: Outcome, n: int) -> str:
    """The outcome as everybody words it; for too few prompts with their number."""
    return f"{outcome} ({n}; at least {FEWEST_PROMPTS})" if outcome == "too few to tell" else outcome


def capitalise(words: str) -> str:
    """`words` as the beginning of a sentence."""
    return words[:1].upper() + words[1:]


def reword_reason(reason: str, change: Mapping[str, Any] | None) -> str:
    """The reason of an earlier decision, in the words of `decide`; other reasons stay as they are.

    `change` has `low`, `high` and `n` of the difference that was decided on; without it the outcome stays too.
    """
    for earlier, today in EARLIER_WORDS:
        reason = reason.replace(earlier, today)
    if reason.startswith(EARLIER_WITHOUT_PROMPTS):
        few = capitalise(outcome_words("too few to tell", 0))
        return f"{few}: there are no validation prompts.{reason.removeprefix(EARLIER_WITHOUT_PROMPTS)}"
    found = EARLIER_REASON.fullmatch(reason)
    if found is None or change is None:
        return reason
    n = int(change["n"])
    if n < FEWEST_PROMPTS:
        return f"{capitalise(outcome_words('too few to tell', n))}: {found['gain']}{found['rest']}"
    if found["words"] == "Not clearly better":
        outcome = outcome_of(change["low"], change["high"], n)
        words = "Worse" if outcome == "worse" else "No clear difference"
        return f"{words}{reason.removeprefix(found['words'])}"
    return reason if found["words"] == "Better" else f"No clear difference: {reason[:1].lower()}{reason[1:]}"


def _signed(value: float) -> str:
    """Formats a change with its sign, using the minus sign of Unicode."""
    return f"{value:+.4f}".replace("-", "\u2212")


def primary_values(scores: Mapping[str, Any], metric: str) -> list[float | None]:
    """The values of the primary metric, from a result of `illume.evaluation.evaluation.evaluate`.

    `rouge_l` is ROUGE-L of the rationales sampled after the gold answer, because critics are shown samples; `heldout`
    is the mean log-likelihood of each prompt's held-out rationales. Raises ValueError for another metric.
    """
    if metric == "rouge_l":
        return list(scores["gold"]["sampled"]["rouge_l"])
    if metric == "heldout":
        return list(heldout_by_prompt(scores).values())
    raise ValueError(f"unknown primary metric {metric}")


def heldout_by_prompt(scores: Mapping[str, Any]) -> dict[str, float]:
    """The mean log-likelihood of the held-out rationales of each prompt, in the order of their first ones."""
    values: dict[str, list[float]] = {}
    for prompt, value in zip(scores["heldout"]["prompts"], scores["heldout"]["mean_logprob"], strict=True):
        values.setdefault(str(prompt), []).append(value)
    return {prompt: sum(row) / len(row) for prompt, row in values.items()}


def compare(new: Mapping[str, Any], parent: Mapping[str, Any], *, metric: str) -> Comparison:
    """Builds the input of the rule from two results of `illume.evaluation.evaluation.evaluate`.

    Raises ValueError if the results are of different prompts or settings.
    """
    for field in ("prompts", "settings"):
        if new[field] != parent[field]:
            raise ValueError(f"the two versions were not scored with the same {field}")
    if metric == "heldout" and new["heldout"]["prompts"] != parent["heldout"]["prompts"]:
        raise ValueError("the two versions were not scored with the same held-out rationales")
    pairs = zip(primary_values(new, metric), primary_values(parent, metric), strict=True)
    present = [(a, b) for a, b in pairs if a is not None and b is not None]
    return Comparison(
        metric=METRIC_NAMES[metric],
        new=[a for a, _ in present],
        parent=[b for _, b in present],
        new_accuracy=new["answers"]["accuracy"],
        parent_accuracy=parent["answers"]["accuracy"],
    )
