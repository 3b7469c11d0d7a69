"""The activation rule: whether a new model version replaces its parent without asking an admin."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from illume.evaluation.metrics import Interval, paired_bootstrap
from illume.phrases import Number, Phrase, _, ngettext

METRIC_NAMES = {
    "rouge_l": _("ROUGE-L of samples"),
    "heldout": _("Log-likelihood of held-out explanations"),
    "balanced_accuracy": _("Balanced accuracy"),
}

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

OPENINGS: dict[Outcome, Phrase] = {
    "better": _("Better"),
    "worse": _("Worse"),
    "no clear difference": _("No clear difference"),
}


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
    """The input of the rule: the primary metric and the answer accuracy of both versions, on the same prompts.

    Where the primary metric is about answers, `explanations` is the same of a score of the rationales.
    """

    metric: str  # in words
    new: Sequence[float]  # by prompt, in the same order as `parent`
    parent: Sequence[float]
    new_accuracy: float | None
    parent_accuracy: float | None
    unit: str = "prompts"  # what there is a value of the metric for
    explanations: Comparison | None = None


def decide(
    comparison: Comparison, *, max_answer_drop: float = 0.02, seed: int = 0, confidence: float = 0.95
) -> Decision:
    """Activates the new version if it is better: the paired bootstrap interval of new - parent lies above 0.

    In addition, answer accuracy may fall by at most `max_answer_drop`, a share: 0.02 is 2 points. Where the primary
    metric is about answers, the score of the rationales must not fall instead: neither by more than that, nor by so
    little that the interval lies below 0. Below `FEWEST_PROMPTS` prompts the outcome is "too few to tell". Raises
    ValueError if the two versions were not scored on the same number of prompts.
    """
    if len(comparison.new) != len(comparison.parent):
        raise ValueError(
            f"both versions must be scored on the same prompts: {len(comparison.new)} and {len(comparison.parent)}"
        )
    n = len(comparison.new)
    if not n:
        few = opening("too few to tell", 0)
        reason = (
            _("%(outcome)s: there are no validation prompts.", outcome=few)
            if comparison.explanations is None
            else _(
                "%(outcome)s: there are no validation prompts with positive and negative known ratings.", outcome=few
            )
        )
        return Decision(False, "too few to tell", reason, None)
    interval = paired_bootstrap(comparison.new, comparison.parent, seed=seed, confidence=confidence)
    outcome = outcome_of(interval.low, interval.high, n)
    if outcome == "too few to tell":
        gain = _("%(metric)s changed by %(change)s", metric=comparison.metric, change=_signed(interval.mean))
        return Decision(False, outcome, _("%(outcome)s: %(gain)s.", outcome=opening(outcome, n), gain=gain), None)
    gain = _word_gain(comparison, interval, confidence)
    if outcome != "better":
        return Decision(False, outcome, _("%(outcome)s: %(gain)s.", outcome=opening(outcome, n), gain=gain), interval)
    if comparison.explanations is not None:
        return _check_explanations(comparison.explanations, interval, gain, max_drop=max_answer_drop, seed=seed)
    if comparison.new_accuracy is None or comparison.parent_accuracy is None:
        return Decision(True, outcome, _("Better: %(gain)s; no known answers to check.", gain=gain), interval)
    change = comparison.new_accuracy - comparison.parent_accuracy
    answers = _(
        "answer accuracy %(before)s %% before, %(now)s %% now",
        before=Number(100 * comparison.parent_accuracy, 1),
        now=Number(100 * comparison.new_accuracy, 1),
    )
    if change < -max_answer_drop - 1e-9:  # in floating point 0.90 - 0.88 is a little more than 0.02
        reason = _(
            "No clear difference: better explanations but worse answers: %(gain)s; %(answers)s, at most %(points)s"
            " points may be lost.",
            gain=gain,
            answers=answers,
            points=Number(100 * max_answer_drop, 1),
        )
        return Decision(False, "no clear difference", reason, interval)
    return Decision(True, outcome, _("Better: %(gain)s; %(check)s.", gain=gain, check=answers), interval)


def _word_gain(comparison: Comparison, interval: Interval, confidence: float) -> Phrase:
    values = {
        "metric": comparison.metric,
        "change": _signed(interval.mean),
        "confidence": f"{100 * confidence:.0f}",
        "low": _signed(interval.low),
        "high": _signed(interval.high),
    }
    if comparison.unit == "images":
        return ngettext(
            "%(metric)s changed by %(change)s (%(confidence)s %% interval %(low)s to %(high)s, %(num)s image)",
            "%(metric)s changed by %(change)s (%(confidence)s %% interval %(low)s to %(high)s, %(num)s images)",
            interval.n,
            **values,
        )
    return ngettext(
        "%(metric)s changed by %(change)s (%(confidence)s %% interval %(low)s to %(high)s, %(num)s prompt)",
        "%(metric)s changed by %(change)s (%(confidence)s %% interval %(low)s to %(high)s, %(num)s prompts)",
        interval.n,
        **values,
    )


def _check_explanations(
    explanations: Comparison, gained: Interval, gain: Phrase, *, max_drop: float, seed: int
) -> Decision:
    """The decision on a version whose answers are better: whether its explanations have not become worse."""
    if not explanations.new:
        return Decision(True, "better", _("Better: %(gain)s; no explanations to check.", gain=gain), gained)
    before, now = (sum(values) / len(values) for values in (explanations.parent, explanations.new))
    interval = paired_bootstrap(explanations.new, explanations.parent, seed=seed)
    check = _(
        "%(metric)s %(before)s before, %(now)s now",
        metric=explanations.metric,
        before=_number(before),
        now=_number(now),
    )
    if interval.mean >= -max_drop - 1e-9 and interval.high >= 0:
        return Decision(True, "better", _("Better: %(gain)s; %(check)s.", gain=gain, check=check), gained)
    reason = _(
        "No clear difference: better answers but worse explanations: %(gain)s; %(check)s.", gain=gain, check=check
    )
    return Decision(False, "no clear difference", reason, gained)


def outcome_of(low: float | None, high: float | None, n: int, *, neutral: float = 0.0) -> Outcome:
    """What the interval of a difference over `n` prompts says; `neutral` is the value of no difference."""
    if n < FEWEST_PROMPTS or low is None or high is None:
        return "too few to tell"
    return "better" if low > neutral else "worse" if high < neutral else "no clear difference"


def opening(outcome: Outcome, n: int) -> Phrase:
    """The outcome as the beginning of a sentence; for too few prompts with their number."""
    if outcome == "too few to tell":
        return _("Too few to tell (%(number)s; at least %(fewest)s)", number=n, fewest=FEWEST_PROMPTS)
    return OPENINGS[outcome]


def reword_reason(reason: str, change: Mapping[str, Any] | None) -> str:
    """The reason of an earlier decision, in the words of `decide`; other reasons stay as they are.

    `change` has `low`, `high` and `n` of the difference that was decided on; without it the outcome stays too.
    """
    for earlier, today in EARLIER_WORDS:
        reason = reason.replace(earlier, today)
    if reason.startswith(EARLIER_WITHOUT_PROMPTS):
        few = opening("too few to tell", 0)
        return f"{few}: there are no validation prompts.{reason.removeprefix(EARLIER_WITHOUT_PROMPTS)}"
    found = EARLIER_REASON.fullmatch(reason)
    if found is None or change is None:
        return reason
    n = int(change["n"])
    if n < FEWEST_PROMPTS:
        return f"{opening('too few to tell', n)}: {found['gain']}{found['rest']}"
    if found["words"] == "Not clearly better":
        outcome = outcome_of(change["low"], change["high"], n)
        words = "Worse" if outcome == "worse" else "No clear difference"
        return f"{words}{reason.removeprefix(found['words'])}"
    return reason if found["words"] == "Better" else f"No clear difference: {reason[:1].lower()}{reason[1:]}"


def _signed(value: float) -> Number:
    return Number(value, 4, signed=True)


def _number(value: float) -> Number:
    return Number(value, 4)


def primary_values(scores: Mapping[str, Any], metric: str) -> list[float | None]:
    """The values of the primary metric, from an evaluation of rationales or of structured answers.

    `rouge_l` is ROUGE-L of the rationales sampled after the gold answer, or in structured answers, because critics are
    shown samples; `heldout` is the mean log-likelihood of each prompt's held-out rationales; `balanced_accuracy` is
    what each image contributes to that of the greedy answers. Raises ValueError for another metric.
    """
    if metric == "rouge_l":
        return list(_sampled(scores)["rouge_l"])
    if metric == "balanced_accuracy":
        return list(scores["fields"]["greedy"]["balanced"])
    if metric == "heldout":
        return list(heldout_by_prompt(scores).values())
    raise ValueError(f"unknown primary metric {metric}")


def _sampled(scores: Mapping[str, Any]) -> Mapping[str, Any]:
    """The scores of the sampled rationales."""
    found: Mapping[str, Any] = (
        scores["fields"]["sampled"]["rationales"] if "fields" in scores else scores["gold"]["sampled"]
    )
    return found


def heldout_by_prompt(scores: Mapping[str, Any]) -> dict[str, float]:
    """The mean log-likelihood of the held-out rationales of each prompt, in the order of their first ones."""
    values: dict[str, list[float]] = {}
    for prompt, value in zip(scores["heldout"]["prompts"], scores["heldout"]["mean_logprob"], strict=True):
        values.setdefault(str(prompt), []).append(value)
    return {prompt: sum(row) / len(row) for prompt, row in values.items()}


def compare(new: Mapping[str, Any], parent: Mapping[str, Any], *, metric: str) -> Comparison:
    """Builds the input of the rule from two evaluations of rationales, or of structured answers.

    Raises ValueError if the results are of different prompts or settings.
    """
    for field in ("prompts", "settings"):
        if new[field] != parent[field]:
            raise ValueError(f"the two versions were not scored with the same {field}")
    if metric == "heldout" and new["heldout"]["prompts"] != parent["heldout"]["prompts"]:
        raise ValueError("the two versions were not scored with the same held-out rationales")
    by_image = metric == "balanced_accuracy"
    return replace(
        _compare_values(new, parent, metric),
        new_accuracy=_accuracy(new),
        parent_accuracy=_accuracy(parent),
        unit="images" if by_image else "prompts",
        explanations=_compare_values(new, parent, explanations_metric(new)) if by_image else None,
    )


def _compare_values(new: Mapping[str, Any], parent: Mapping[str, Any], metric: str) -> Comparison:
    pairs = zip(primary_values(new, metric), primary_values(parent, metric), strict=True)
    present = [(a, b) for a, b in pairs if a is not None and b is not None]
    return Comparison(METRIC_NAMES[metric], [a for a, _old in present], [b for _new, b in present], None, None)


def _accuracy(scores: Mapping[str, Any]) -> float | None:
    """The share of right answers, or of exactly right ratings; None without gold ones."""
    if "fields" not in scores:
        accuracy: float | None = scores["answers"]["accuracy"]
        return accuracy
    found = scores["fields"]["greedy"]["measures"].get("rating_accuracy")
    return None if found is None else float(found["mean"])


def explanations_metric(scores: Mapping[str, Any]) -> str:
    """What the rationales of structured answers are scored by: ROUGE-L, or without references their likelihood."""
    referenced = any(value is not None for value in _sampled(scores)["rouge_l"])
    return "rouge_l" if referenced or not scores["heldout"]["prompts"] else "heldout"
