"""Measures of structured answers. They read fields, never parts of a text, and an invalid answer is always wrong.

A rating counts as positive or negative (`positive` of its field). Each measure has a bootstrap interval in which images
are drawn, with all prompts about them: the variants of a policy share an image, and are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import krippendorff
import numpy as np

from illume.evaluation.metrics import Counts, Interval, bootstrap_sums
from illume.fields.definitions import AnswerFields

Measures = dict[str, Interval | None]


@dataclass(frozen=True, slots=True)
class FieldCase:
    """What a version answered to one prompt, None if that was invalid, and the gold values, of which some may be known.

    `base` is the id of the prompt whose policy was changed to make this one, and `change` says how.
    """

    id: str
    image: str
    gold: Mapping[str, str | None]
    answer: Mapping[str, str | None] | None
    base: str | None = None
    change: str = ""


COLUMNS = (
    "n",
    "invalid",
    "rated",  # cases with a gold rating
    "exact",  # of these, those with exactly this rating
    "positive",  # gold ratings
    "true_positive",
    "negative",
    "true_negative",
    "categorised",  # cases with a gold category whose rating is right
    "right_category",
    "flips",  # pairs of a prompt and its variant, between which the gold rating turns positive or negative
    "followed",  # of these, those where both ratings are right
    "others",  # the other pairs
    "kept",  # of these, those where the rating stays positive or negative
)
"""What is counted of each image."""


def _balanced(c: Mapping[str, Counts]) -> Counts:
    return (c["true_positive"] / c["positive"] + c["true_negative"] / c["negative"]) / 2


def _f1(c: Mapping[str, Counts]) -> Counts:
    wrong = c["positive"] - c["true_positive"] + c["negative"] - c["true_negative"]
    return 2 * c["true_positive"] / (2 * c["true_positive"] + wrong)


MEASURES: dict[str, Callable[[Mapping[str, Counts]], Counts]] = {
    "balanced_accuracy": _balanced,
    "recall": lambda c: c["true_positive"] / c["positive"],
    "specificity": lambda c: c["true_negative"] / c["negative"],
    "f1": _f1,
    "rating_accuracy": lambda c: c["exact"] / c["rated"],
    "category_accuracy": lambda c: c["right_category"] / c["categorised"],
    "invalid_share": lambda c: c["invalid"] / c["n"],
    "policy_exception_recall": lambda c: c["followed"] / c["flips"],
    "policy_exception_specificity": lambda c: c["kept"] / c["others"],
}
"""Each measure from the summed counts of `COLUMNS`.

* `balanced_accuracy`: the mean of recall and specificity, the primary metric.
* `recall` and `specificity`: of the images whose gold rating is positive, or negative, the share that is rated so.
* `f1`: of the positive ratings. An invalid answer counts as the wrong side.
* `rating_accuracy`: the share of exactly right ratings, of interest where there are more than two.
* `category_accuracy`: the share of right categories where the rating is exactly right.
* `invalid_share`: the share of answers that are invalid.
* `policy_exception_recall`: where a changed policy turns the gold rating, the share of pairs with both ratings right.
* `policy_exception_specificity`: where a changed policy does not, the share of pairs whose rating does not turn.
"""


def field_measures(
    cases: Sequence[FieldCase],
    fields: AnswerFields,
    *,
    seed: int,
    among: Sequence[FieldCase] = (),
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Measures:
    """All measures with their intervals, whose `n` is the number of images; None where nothing is counted.

    `among` has the cases that variants are compared with, where `cases` lack them. A measure that reads ratings or
    categories is None without such a field. Raises ValueError without cases.
    """
    if not cases:
        raise ValueError("there are no answers to measure")
    counts = count_by_image(cases, fields, among=among)
    return compare_counts([counts], seed=seed, confidence=confidence, resamples=resamples)


def compare_counts(
    runs: Sequence[Counts],
    against: Sequence[Counts] = (),
    *,
    seed: int,
    measures: Mapping[str, Callable[[Mapping[str, Counts]], Counts]] = MEASURES,
    columns: Sequence[str] = COLUMNS,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Measures:
    """Measures as means over `runs`, minus those over `against` if there are any, with their intervals.

    Each run is (images, columns), of the same images in the same order. Images are drawn for all runs at once, so that
    a difference is paired. A measure that is not defined in a run is None.
    """

    def measure(sums: Counts) -> Counts:
        by_name = {name: sums[:, index] for index, name in enumerate(columns)}
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.stack([compute(by_name) for compute in measures.values()], axis=1)

    def statistic(sums: Counts) -> Counts:
        values = [measure(run) for run in np.split(sums, len(runs) + len(against), axis=1)]
        means: Counts = np.mean(values[: len(runs)], axis=0)
        return means - np.mean(values[len(runs) :], axis=0) if against else means

    stacked = np.hstack([np.asarray(run, dtype=np.float64) for run in (*runs, *against)])
    intervals = bootstrap_sums(stacked, statistic, seed=seed, confidence=confidence, resamples=resamples)
    return dict(zip(measures, intervals, strict=True))


def measures_by_change(cases: Sequence[FieldCase], fields: AnswerFields, *, seed: int) -> dict[str, Measures]:
    """The measures of the cases of each policy variant; those of the unchanged policies are under an empty name."""
    changes = dict.fromkeys(one.change for one in cases)
    return {
        change: field_measures([one for one in cases if one.change == change], fields, seed=seed, among=cases)
        for change in changes
    }


def count_by_image(cases: Sequence[FieldCase], fields: AnswerFields, *, among: Sequence[FieldCase] = ()) -> Counts:
    """The counts of `COLUMNS` of each image, in the order of the first case of each: (images, columns).

    `among` is as in `field_measures`.
    """
    rows = {image: index for index, image in enumerate(dict.fromkeys(one.image for one in cases))}
    counts = np.zeros((len(rows), len(COLUMNS)))
    by_id = {one.id: one for one in (*among, *cases)}
    for case in cases:
        found = _count_case(case, fields) | _count_pair(case, by_id, fields)
        for name, value in found.items():
            counts[rows[case.image], COLUMNS.index(name)] += value
    return counts


def _count_case(case: FieldCase, fields: AnswerFields) -> dict[str, bool]:
    found = {"n": True, "invalid": case.answer is None}
    rating, category = fields.with_role("rating"), fields.with_role("category")
    gold, answered = fields.is_positive(case.gold), fields.is_positive(case.answer or {})
    exact = True
    if rating is not None and gold is not None:
        exact = case.answer is not None and case.answer.get(rating.name) == case.gold[rating.name]
        side = ("positive", "true_positive") if gold else ("negative", "true_negative")
        found |= {"rated": True, "exact": exact, side[0]: True, side[1]: answered == gold}
    if category is not None and case.gold.get(category.name) is not None and case.answer is not None and exact:
        right = case.answer.get(category.name) == case.gold[category.name]
        found |= {"categorised": True, "right_category": right}
    return found


def _count_pair(case: FieldCase, by_id: Mapping[str, FieldCase], fields: AnswerFields) -> dict[str, bool]:
    base = None if case.base is None else by_id.get(case.base)
    if base is None:
        return {}
    gold = fields.is_positive(base.gold), fields.is_positive(case.gold)
    answered = fields.is_positive(base.answer or {}), fields.is_positive(case.answer or {})
    if None in gold:
        return {}
    if gold[0] != gold[1]:
        return {"flips": True, "followed": answered == gold}
    return {"others": True, "kept": None not in answered and answered[0] == answered[1]}


def balanced_by_image(cases: Sequence[FieldCase], fields: AnswerFields) -> list[float]:
    """What each image contributes to the balanced accuracy: the mean of all contributions is the balanced accuracy.

    So two versions can be compared image by image. Empty if no gold rating is positive, or none is negative.
    """
    counts = count_by_image(cases, fields)
    positive, true_positive, negative, true_negative = (
        counts[:, COLUMNS.index(name)] for name in ("positive", "true_positive", "negative", "true_negative")
    )
    if not positive.sum() or not negative.sum():
        return []
    shares = true_positive / positive.sum() + true_negative / negative.sum()
    contributions: list[float] = (shares * len(counts) / 2).tolist()
    return contributions


def field_alpha(units: Sequence[Sequence[str]], values: Sequence[str], *, ordinal: bool = False) -> float | None:
    """Krippendorff's alpha of the values that critics gave to a field, a list for each prompt.

    `values` are all possible ones; for ordinal alpha they are in order. None if no prompt was judged twice, or if all
    judged ones have the same value. Raises ValueError for an unknown value.
    """
    columns = {value: index for index, value in enumerate(values)}
    table = np.zeros((len(units), len(columns)), dtype=int)
    for row, given in zip(table, units, strict=True):
        for value in given:
            if value not in columns:
                raise ValueError(f"{value!r} is no value of the field")
            row[columns[value]] += 1
    shared = table[table.sum(axis=1) > 1]
    if not len(shared) or (shared.sum(axis=0) > 0).sum() < 2:
        return None
    return float(krippendorff.alpha(value_counts=shared, level_of_measurement="ordinal" if ordinal else "nominal"))
