"""Measures of structured answers agree with a table computed by hand, with scikit-learn and with krippendorff."""

from __future__ import annotations

import random
from typing import Any

import krippendorff
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from illume.evaluation.field_metrics import (
    MEASURES,
    FieldCase,
    balanced_by_image,
    field_alpha,
    field_measures,
    measures_by_change,
)
from illume.fields.definitions import AnswerFields
from tests.illume.fields.examples import CATEGORIES, FIELDS

NONE = "NA: None applying"
U = ("Unsafe", CATEGORIES[0])
V = ("Unsafe", CATEGORIES[1])
S = ("Safe", NONE)


def case(
    name: str,
    image: str,
    gold: tuple[str, str],
    answer: tuple[str, str] | None,
    base: str | None = None,
    change: str = "",
) -> FieldCase:
    def values(pair: tuple[str, str]) -> dict[str, str | None]:
        return dict(zip(("rating", "category"), pair, strict=True))

    return FieldCase(name, image, values(gold), None if answer is None else values(answer), base, change)


# By hand: 6 are Unsafe, of which a, b, f and h are rated so; 5 are Safe, of which d and g are. Invalid ones are wrong.
CASES = [
    case("a", "1", U, U),
    case("b", "1", U, V, "a", "own_strict"),  # stays; the category is wrong
    case("c", "1", S, U, "a", "own_allowed"),  # should flip and does not
    case("d", "2", S, S),
    case("e", "2", S, None, "d", "others_allowed"),  # invalid, so it does not stay
    case("f", "3", U, U),
    case("g", "3", S, S, "f", "own_allowed"),  # flips as it should
    case("h", "4", V, V),
    case("i", "4", U, S, "h", "own_strict"),  # flips where it must not
    case("j", "5", U, None),
    case("k", "6", S, V, "elsewhere", "own_allowed"),  # the other one of the pair is missing
]
BY_HAND = {
    "balanced_accuracy": (4 / 6 + 2 / 5) / 2,
    "recall": 4 / 6,
    "specificity": 2 / 5,
    "f1": 2 * 4 / (2 * 4 + 2 + 3),
    "rating_accuracy": 6 / 11,
    "category_accuracy": 5 / 6,
    "invalid_share": 2 / 11,
    "policy_exception_recall": 1 / 2,
    "policy_exception_specificity": 1 / 3,
}


class TestMeasures:
    def test_by_hand(self) -> None:
        found = field_measures(CASES, FIELDS, seed=1)
        assert {name: one and one.mean for name, one in found.items()} == pytest.approx(BY_HAND)
        assert set(BY_HAND) == set(MEASURES)
        for one in found.values():
            assert one is not None
            assert one.low <= one.mean <= one.high
            assert one.n == 6

    @pytest.mark.parametrize("seed", range(3))
    def test_by_scikit_learn(self, seed: int) -> None:
        rng = random.Random(seed)
        cases = []
        for number in range(120):
            answer = None if rng.random() < 0.1 else rng.choice([U, V, S])
            cases.append(case(str(number), str(number // 3), rng.choice([U, V, S]), answer))
        gold = [one.gold["rating"] for one in cases]
        wrong = {"Unsafe": "Safe", "Safe": "Unsafe"}
        said = [one.answer["rating"] if one.answer else wrong[str(one.gold["rating"])] for one in cases]
        right = [one for one, a, b in zip(cases, gold, said, strict=True) if a == b and one.answer is not None]
        expected = {
            "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(gold, said),
            "recall": sklearn_metrics.recall_score(gold, said, pos_label="Unsafe"),
            "specificity": sklearn_metrics.recall_score(gold, said, pos_label="Safe"),
            "f1": sklearn_metrics.f1_score(gold, said, pos_label="Unsafe"),
            "rating_accuracy": sklearn_metrics.accuracy_score(gold, said),
            "category_accuracy": sklearn_metrics.accuracy_score(
                [one.gold["category"] for one in right], [one.answer["category"] for one in right if one.answer]
            ),
        }
        found = field_measures(cases, FIELDS, seed=0, resamples=10)
        assert {name: getattr(found[name], "mean", None) for name in expected} == pytest.approx(expected)
        assert found["policy_exception_recall"] is None
        assert sum(balanced_by_image(cases, FIELDS)) / 40 == pytest.approx(expected["balanced_accuracy"])

    def test_images_are_drawn_with_all_their_prompts(self) -> None:
        """Of ten images that are all right or all wrong, more prompts of each make no narrower interval."""
        once = [case(str(n), str(n), U, U if n % 2 else S) for n in range(10)]
        often = [FieldCase(f"{one.id}-{n}", one.image, one.gold, one.answer) for one in once for n in range(20)]
        narrow = [FieldCase(one.id, one.id, one.gold, one.answer) for one in often]
        few, many, apart = (field_measures(cases, FIELDS, seed=3)["recall"] for cases in (once, often, narrow))
        assert few == many
        assert few is not None
        assert apart is not None
        assert apart.high - apart.low < (few.high - few.low) / 2

    def test_interval_against_resampling_case_by_case(self) -> None:
        found = field_measures(CASES, FIELDS, seed=5, resamples=4000)["recall"]
        assert found is not None
        rng, drawn = random.Random(8), []
        images = sorted({one.image for one in CASES})
        for _ in range(4000):
            chosen = [one for image in rng.choices(images, k=6) for one in CASES if one.image == image]
            unsafe = [one for one in chosen if one.gold["rating"] == "Unsafe"]
            if unsafe:
                drawn.append(np.mean([bool(one.answer and one.answer["rating"] == "Unsafe") for one in unsafe]))
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.07)

    def test_some_gold_values_are_not_known(self) -> None:
        known = [case("a", "1", U, U), FieldCase("b", "2", {"rating": "Unsafe"}, {"rating": "Unsafe", "category": "x"})]
        known.append(FieldCase("c", "3", {}, {"rating": "Safe", "category": NONE}))
        found = field_measures(known, FIELDS, seed=0)
        means = {name: one and one.mean for name, one in found.items()}
        assert means["recall"] == means["category_accuracy"] == 1
        assert means["specificity"] is means["balanced_accuracy"] is means["policy_exception_recall"] is None
        assert means["invalid_share"] == 0
        assert balanced_by_image(known, FIELDS) == []

    def test_without_rating_and_category(self) -> None:
        cases = [FieldCase("a", "1", {}, {"rationale": "so"}), FieldCase("b", "2", {}, None)]
        found = field_measures(cases, AnswerFields((FIELDS.rationale,)), seed=0)
        assert {name for name, one in found.items() if one is not None} == {"invalid_share"}

    def test_by_change(self) -> None:
        found = measures_by_change(CASES, FIELDS, seed=0)
        shares = {change: one["rating_accuracy"] and one["rating_accuracy"].mean for change, one in found.items()}
        assert shares == pytest.approx({"": 4 / 5, "own_strict": 1 / 2, "own_allowed": 1 / 3, "others_allowed": 0})
        flips = {change: one["policy_exception_recall"] for change, one in found.items()}
        assert {change: one and (one.mean, one.n) for change, one in flips.items()} == {
            "": None,
            "own_strict": None,
            "own_allowed": (1 / 2, 3),
            "others_allowed": None,
        }
        stays = {change: one["policy_exception_specificity"] for change, one in found.items()}
        kept = {"": None, "own_strict": 1 / 2, "own_allowed": None, "others_allowed": 0.0}
        assert {change: one and one.mean for change, one in stays.items()} == kept

    def test_no_cases(self) -> None:
        with pytest.raises(ValueError, match="no answers"):
            field_measures([], FIELDS, seed=0)


class TestAlpha:
    LEVELS = ("none", "mild", "strong", "severe")
    UNITS: tuple[list[str], ...] = (
        ["none", "none"],
        ["mild", "strong", "mild"],
        ["severe"],
        ["severe", "strong"],
        [],
        ["none", "severe"],
    )

    @pytest.mark.parametrize("level", ["nominal", "ordinal"])
    def test_as_the_library(self, level: Any) -> None:
        """Against the library's other entry, with a row for each critic."""
        rows = [
            [self.LEVELS.index(unit[critic]) if critic < len(unit) else np.nan for unit in self.UNITS]
            for critic in range(3)
        ]
        expected = krippendorff.alpha(reliability_data=rows, value_domain=range(4), level_of_measurement=level)
        assert field_alpha(self.UNITS, self.LEVELS, ordinal=level == "ordinal") == pytest.approx(expected)

    def test_far_apart_weighs_more_in_order(self) -> None:
        near = [["none", "mild"], ["severe", "severe"], ["none", "none"], ["strong", "strong"]]
        far = [["none", "severe"], *near[1:]]
        assert (field_alpha(near, self.LEVELS, ordinal=True) or 0) > (field_alpha(far, self.LEVELS, ordinal=True) or 0)

    def test_nothing_to_say(self) -> None:
        assert field_alpha([["none"], ["mild"]], self.LEVELS) is None
        assert field_alpha([["none", "none"], ["mild"]], self.LEVELS) is None
        with pytest.raises(ValueError, match="'odd' is no value"):
            field_alpha([["odd"]], self.LEVELS)
