"""Ranking quality by hand and by scikit-learn, and from which score on a machine may accept."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from sklearn.metrics import roc_auc_score

from illume.critics.quality import (
    choose_threshold,
    difference_of_shares,
    quality_report,
    ranking_quality,
    wilson_interval,
)
from illume.critics.rows import JudgedRationale
from illume.records import Example
from illume.settings import CriticSettings


def judge(*labels: tuple[str, bool], logprob: float | None = None) -> list[JudgedRationale]:
    """Rationales of one word more each."""
    return [
        JudgedRationale(Example(name, (f"{name}.png",), "what?", "red"), "so " * (place + 1), picked, logprob)
        for place, (name, picked) in enumerate(labels)
    ]


class TestRankingQuality:
    def test_by_hand(self) -> None:
        """Of 2 * 2 pairs one is right, one a tie; within the set `a` that is one pair, and in `b` the tie."""
        judged = judge(("a", True), ("a", False), ("b", True), ("b", False))
        found = ranking_quality([3.0, 2.0, 1.0, 1.0], judged)
        assert found is not None
        assert found.mean == (1 + 1 + 0 + 0.5) / 4
        within = ranking_quality([3.0, 2.0, 1.0, 1.0], judged, within_sets=True)
        assert within is not None
        assert (within.mean, within.n) == (0.75, 2)

    def test_it_is_the_area_under_the_curve(self) -> None:
        chance = random.Random(1)
        labels = [(f"p{number % 25}", chance.random() < 0.4) for number in range(120)]
        scores = [chance.gauss(0.8 if picked else 0.0, 1.0) for _, picked in labels]
        found = ranking_quality(scores, judge(*labels))
        assert found is not None
        assert found.mean == pytest.approx(roc_auc_score([picked for _, picked in labels], scores))
        assert 0.5 < found.low < found.mean < found.high < 1
        assert found.n == 25

    @pytest.mark.parametrize("within_sets", [False, True])
    def test_without_a_pair_it_says_nothing(self, within_sets: bool) -> None:
        assert ranking_quality([1.0, 2.0], judge(("a", True), ("b", True)), within_sets=within_sets) is None
        apart = ranking_quality([1.0, 2.0], judge(("a", True), ("b", False)), within_sets=True)
        assert apart is None

    def test_controls_that_need_no_critic(self) -> None:
        """Longer ones were turned down, so that length alone is wrong about every pair."""
        labels = [("a", True), ("a", False), ("b", False)]
        report = quality_report(judge(*labels, logprob=-1.0), {"critic": [1.0, 0.0, 0.0]})
        assert (report["picked"], report["turned_down"]) == (1, 2)
        assert {name: one["mean"] for name, one in report["all"].items()} == {
            "critic": 1.0,
            "length": 0.0,
            "mean log-probability": 0.5,
        }
        assert report["within_sets"]["length"]["n"] == 1
        assert "mean log-probability" not in quality_report(judge(*labels), {})["all"]


class TestThreshold:
    SETTINGS = CriticSettings(least_verdicts=40)

    def test_wilson_by_hand(self) -> None:
        found = wilson_interval(35, 35)
        assert (found.mean, found.n, found.high) == (1.0, 35, 1.0)
        assert found.low == pytest.approx(35 / (35 + 1.959964**2))
        half = wilson_interval(50, 100)
        assert (half.low, half.high) == pytest.approx((0.40383, 0.59617), abs=1e-5)

    def test_newcombe_as_published(self) -> None:
        """The examples of Newcombe (1998), method 10."""
        found = difference_of_shares((56, 70), (48, 80))
        assert (found.mean, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
        assert found.n == 70
        few = difference_of_shares((9, 10), (3, 10))
        assert (few.low, few.high) == pytest.approx((0.1705, 0.8090), abs=1e-4)

    def test_few_verdicts_are_refused(self) -> None:
        found = choose_threshold([1.0] * 60, judge(*((f"p{n}", True) for n in range(60))), self.SETTINGS)
        assert found.score is None
        assert found.reason == "there are 60 verdicts on candidates; 80 are needed"

    def test_the_lowest_score_that_is_precise_for_sure_shown_on_the_other_part(self) -> None:
        """All above 1 were picked, half of those at 0, and none of those below."""
        judged = judge(*((f"p{n}", n % 4 < 2 or n % 8 == 2) for n in range(400)))
        scores = [2.0 if n % 4 < 2 else 0.0 if n % 4 == 2 else -1.0 for n in range(400)]
        found = choose_threshold(scores, judged, self.SETTINGS)
        assert found.score == 2.0
        assert found.chosen is not None
        assert found.shown is not None
        assert (found.chosen.mean, found.shown.mean) == (1.0, 1.0)
        assert found.chosen.n + found.shown.n == 200

    def test_chance_passes_nothing(self) -> None:
        judged = judge(*((f"p{n}", n % 2 == 0) for n in range(400)))
        found = choose_threshold([float(n % 7) for n in range(400)], judged, self.SETTINGS)
        assert found.score is None
        assert found.reason == "no score has a precision of 90% for sure"


def test_no_torch_is_needed(tmp_path: Path) -> None:
    """The server ranks and chooses thresholds, and never loads torch."""
    import subprocess
    import sys

    code = "import sys, illume.critics.quality, illume.critics.masking; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=60).returncode == 0
