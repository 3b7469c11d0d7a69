"""Which of the sampled candidates are shown: the choice by a machine critic's scores."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from illume.critics.choosing import choose_spread, count_samples, more_temperatures, stays_unselected

SCORES = st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0]), min_size=2, max_size=30)


class TestChooseSpread:
    @settings(max_examples=40)
    @given(scores=SCORES, k=st.integers(2, 12), seed=st.integers(0, 9))
    def test_distinct_ones_from_the_best_to_the_lowest(self, scores: list[float], k: int, seed: int) -> None:
        chosen = choose_spread(scores, k, seed=seed)
        assert len(chosen) == len(set(chosen)) == min(k, len(scores))
        assert set(chosen) <= set(range(len(scores)))
        shown = sorted((scores[place] for place in chosen), reverse=True)
        ranked = sorted(scores, reverse=True)
        assert (shown[0], shown[-1]) == (ranked[0], ranked[-1])
        # Never only the best: what is left out lies between what is shown, nowhere more than one step of the scale.
        steps = (len(scores) - 1) / (len(chosen) - 1)
        assert all(
            abs(ranked.index(one) - step * steps) <= 0.5 + ranked.count(one) - 1 for step, one in enumerate(shown)
        )
        assert choose_spread(scores, k, seed=seed) == chosen

    def test_the_middle_one_of_an_odd_number(self) -> None:
        assert set(choose_spread([5.0, 1.0, 9.0, 3.0, 7.0], 3, seed=1)) == {2, 0, 1}
        assert set(choose_spread([5.0, 1.0, 9.0, 3.0, 7.0], 2, seed=1)) == {2, 1}

    def test_the_order_tells_nothing_and_equal_scores_are_as_good_as_each_other(self) -> None:
        """Each of 2 places has the best one about as often; of 4 equal ones each is chosen about as often."""
        first = Counter(choose_spread([3.0, 2.0, 1.0], 2, seed=seed)[0] for seed in range(400))
        assert set(first) == {0, 2}
        assert 160 <= first[0] <= 240
        equal = Counter(place for seed in range(400) for place in choose_spread([1.0] * 4, 2, seed=seed))
        assert all(160 <= equal[place] <= 240 for place in range(4))

    @pytest.mark.parametrize(
        ("scores", "k", "message"),
        [([1.0, 2.0], 1, "k: at least 2"), ([1.0, float("nan"), 0.0], 2, "finite"), ([1.0, float("inf")], 2, "finite")],
    )
    def test_only_the_best_or_no_score_is_refused(self, scores: list[float], k: int, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            choose_spread(scores, k, seed=1)


class TestUnselected:
    def test_about_one_in_ten_whatever_came_before(self) -> None:
        drawn = [stays_unselected(number) for number in range(5000)]
        assert 430 <= sum(drawn) <= 570
        assert [stays_unselected(number) for number in range(5000)] == drawn
        assert drawn != [stays_unselected("another project", number) for number in range(5000)]
        runs = sum(one != other for one, other in itertools.pairwise(drawn))
        assert 770 <= runs <= 1030  # neighbours are drawn apart from each other


class TestMoreTemperatures:
    def test_the_same_first_and_more_that_are_not_greedy(self) -> None:
        usual = ((0.0, 1), (0.3, 2), (0.7, 2), (1.0, 1))
        more = more_temperatures(usual, 12)
        assert more == (*usual, (0.3, 2), (0.7, 2), (1.0, 1), (0.3, 1))
        assert count_samples(more) == 12
        assert more_temperatures(usual, 6) == more_temperatures(usual, 3) == usual
        assert more_temperatures([(0, 2)], 5) == ((0.0, 2),)
