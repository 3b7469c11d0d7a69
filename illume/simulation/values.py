"""What versions scored, by prompt or by image: means over seeds, intervals, paired differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from illume.evaluation.field_metrics import COLUMNS, compare_counts
from illume.evaluation.field_metrics import MEASURES as FIELD_MEASURES
from illume.evaluation.metrics import Counts, bootstrap_interval, paired_bootstrap

Scores = Mapping[str, Any]
Column = list[float | None]

MEASURES: dict[str, Callable[[Scores], Column]] = {
    "rouge_l": lambda scores: scores["gold"]["sampled"]["rouge_l"],
    "truth": lambda scores: scores["gold"]["sampled"]["faithful"],
    "chrf": lambda scores: scores["gold"]["sampled"].get("chrf", []),
    "meteor": lambda scores: scores["gold"]["sampled"].get("meteor", []),
    "rouge_l_greedy": lambda scores: scores["gold"]["greedy"]["rouge_l"],
    "truth_greedy": lambda scores: scores["gold"]["greedy"]["faithful"],
    "chrf_greedy": lambda scores: scores["gold"]["greedy"].get("chrf", []),
    "meteor_greedy": lambda scores: scores["gold"]["greedy"].get("meteor", []),
    "truth_matched": lambda scores: scores.get("matched", {}).get("faithful", []),
    "distinct_true": lambda scores: scores.get("matched", {}).get("distinct_true", []),
    "accuracy": lambda scores: [None if one is None else float(one) for one in scores["answers"]["correct"]],
}
"""Per-prompt values of sampled (T = 0.7) and greedy rationales after the gold answer, and of the own answer.

`truth_matched` and `distinct_true` are defined in `illume.evaluation.matched`.
"""


@dataclass(frozen=True, slots=True)
class PromptValues:
    """The values of each measure by prompt. Measures without a value for every prompt are left out."""

    columns: Mapping[str, Sequence[float]]

    def intervals(self) -> dict[str, Any]:
        """Mean and 95 % bootstrap interval of each measure."""
        return {name: asdict(bootstrap_interval(one, seed=0)) for name, one in self.columns.items()}

    def minus(self, other: PromptValues) -> dict[str, Any]:
        """Paired 95 % interval of the difference to another version in each measure that both have."""
        pairs = {name: (one, other.columns[name]) for name, one in self.columns.items() if name in other.columns}
        return {name: asdict(paired_bootstrap(new, old, seed=0)) for name, (new, old) in pairs.items()}

    def only(self, names: Sequence[str]) -> PromptValues:
        """The values of these measures, as far as there are any."""
        return PromptValues({name: column for name, column in self.columns.items() if name in names})

    def at(self, places: Sequence[int]) -> PromptValues:
        """The values of the prompts at these places."""
        return PromptValues({name: [column[place] for place in places] for name, column in self.columns.items()})


def prompt_values(scores: Scores) -> PromptValues:
    """The values of a version whose answers are texts."""
    found = {name: get(scores) for name, get in MEASURES.items()}
    return PromptValues(
        {
            name: [float(value) for value in values if value is not None]
            for name, values in found.items()
            if values and None not in values
        }
    )


# Structured answers

_SUMS = ("prompts", "rationales", "truth", "truth_greedy", "rouge_l", "sampled", "invalid_sampled")
COUNTED = (*COLUMNS, *_SUMS)
"""What is counted of each image."""

ANSWER_MEASURES: dict[str, Callable[[Mapping[str, Counts]], Counts]] = {
    **{
        name: FIELD_MEASURES[name]
        for name in (
            "balanced_accuracy",
            "recall",
            "specificity",
            "category_accuracy",
            "policy_exception_recall",
            "policy_exception_specificity",
            "invalid_share",
        )
    },
    "invalid_sampled": lambda c: c["invalid_sampled"] / c["sampled"],
    "truth": lambda c: c["truth"] / c["rationales"],
    "truth_greedy": lambda c: c["truth_greedy"] / c["rationales"],
    "rouge_l": lambda c: c["rouge_l"] / c["prompts"],
}
"""The measures of structured answers: of the fields of greedy ones, and of the rationales of all.

`truth` and `truth_greedy` are shares of rationales that are true and explain the gold values, sampled (T = 0.7) and
greedy; that of an invalid answer is not.
"""


@dataclass(frozen=True, slots=True)
class AnswerValues:
    """What is counted of each image in structured answers: for each seed (images, columns)."""

    runs: tuple[Counts, ...]

    def intervals(self) -> dict[str, Any]:
        """Mean and 95 % bootstrap interval of each measure; images are drawn with all their prompts."""
        return self._compare(())

    def minus(self, other: AnswerValues) -> dict[str, Any]:
        """Paired 95 % interval of the difference to another version in each measure."""
        return self._compare(other.runs)

    def only(self, names: Sequence[str]) -> AnswerValues:  # noqa: ARG002 - as of prompts
        """The same: all measures come from the same counts."""
        return self

    def at(self, places: Sequence[int]) -> AnswerValues:
        """The values of the images at these places."""
        return AnswerValues(tuple(run[list(places)] for run in self.runs))

    def _compare(self, against: Sequence[Counts]) -> dict[str, Any]:
        found = compare_counts(self.runs, against, seed=0, measures=ANSWER_MEASURES, columns=COUNTED)
        return {name: asdict(one) for name, one in found.items() if one is not None}


def answer_values(scores: Scores, images: Sequence[tuple[str, ...]]) -> AnswerValues:
    """The values of a version whose answers are structured. `images` are those of each prompt."""
    greedy, sampled = scores["fields"]["greedy"], scores["fields"]["sampled"]
    rows = {image: place for place, image in enumerate(dict.fromkeys(images))}
    sums = np.zeros((len(rows), len(_SUMS)))
    for place, image in enumerate(images):
        truth = sampled["rationales"]["faithful"][place], greedy["rationales"]["faithful"][place]
        rouge_l, invalid = sampled["rationales"]["rouge_l"][place], sampled["invalid"][place]
        sums[rows[image]] += [
            rouge_l is not None,
            None not in truth,
            *(one or 0.0 for one in (*truth, rouge_l)),
            len(invalid),
            sum(one is not None for one in invalid),
        ]
    return AnswerValues((np.hstack([np.asarray(greedy["counts"], dtype=np.float64), sums]),))


Values = TypeVar("Values", PromptValues, AnswerValues)
"""The values of a version, or of several seeds' versions as one."""


def average_over_seeds(versions: Sequence[Values]) -> Values:
    """The mean over the versions of all seeds, which were scored on the same prompts."""
    first = versions[0]
    if isinstance(first, AnswerValues):
        return AnswerValues(tuple(run for one in versions for run in one.runs))
    return PromptValues(
        {
            name: [sum(column) / len(column) for column in zip(*(one.columns[name] for one in versions), strict=True)]
            for name in first.columns
            if all(name in one.columns for one in versions)
        }
    )
