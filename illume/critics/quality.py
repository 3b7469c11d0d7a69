"""How well scores rank what people picked above what they did not, and from which score on a machine may accept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from illume.critics.rows import JudgedRationale
from illume.evaluation.metrics import Interval, bootstrap_sums
from illume.records import stable_seed
from illume.settings import CriticSettings
from illume.texts import words

_RESAMPLES = 2000
_Z = 1.959964  # of a two-sided interval of 95 %


def ranking_quality(
    scores: Sequence[float], judged: Sequence[JudgedRationale], *, seed: int = 0, within_sets: bool = False
) -> Interval | None:
    """P(score of a picked rationale > score of one that was not picked), ties by half; prompts are resampled.

    The pairs are those of all prompts, or with `within_sets` those of the same prompt. None without any.
    """
    prompts = {name: place for place, name in enumerate(dict.fromkeys(one.example.id for one in judged))}
    groups = np.array([prompts[one.example.id] for one in judged], dtype=np.int64)
    picked = np.array([one.picked for one in judged], dtype=bool)
    won, met = _count_wins(np.asarray(scores, dtype=np.float64), picked, groups, len(prompts))
    if within_sets:
        counts = np.stack([won.diagonal(), met.diagonal()], axis=1)
        return bootstrap_sums(counts[counts[:, 1] > 0], _ratio, seed=seed)[0] if counts[:, 1].any() else None
    if not met.any():
        return None
    n = len(prompts)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)
    pairs = np.einsum("rg,gh,rh->r", weights, met, weights, optimize=True)
    values = np.einsum("rg,gh,rh->r", weights, won, weights, optimize=True)[pairs > 0] / pairs[pairs > 0]
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(won.sum() / met.sum()), float(low), float(high), n)


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums[:, 0] / sums[:, 1])[:, None]


def _count_wins(
    scores: NDArray[np.float64], picked: NDArray[np.bool_], groups: NDArray[np.int64], n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wins of the picked ones of a prompt (row) over the others of a prompt (column), and how often they met."""
    won, met = np.zeros((n, n)), np.zeros((n, n))
    others, their = scores[~picked], groups[~picked]
    per_group = np.bincount(their, minlength=n)
    for score, group in zip(scores[picked], groups[picked], strict=True):
        points = (score > others) + 0.5 * (score == others)
        won[group] += np.bincount(their, weights=points, minlength=n)
        met[group] += per_group
    return won, met


def rank_by_length(judged: Sequence[JudgedRationale]) -> list[float]:
    """The control that knows only how many words a rationale has."""
    return [float(len(words(one.rationale))) for one in judged]


def quality_report(
    judged: Sequence[JudgedRationale], scores: Mapping[str, Sequence[float]], *, seed: int = 0
) -> dict[str, Any]:
    """The ranking quality of each named list of scores, and of length and mean log-probability alone, with intervals.

    `scores` are those of `judged`, in order. The mean log-probability is left out where a rationale has none.
    """
    named: dict[str, Sequence[float]] = dict(scores) | {"length": rank_by_length(judged)}
    logprobs = [one.mean_logprob for one in judged if one.mean_logprob is not None]
    if len(logprobs) == len(judged):
        named["mean log-probability"] = logprobs
    return {
        "picked": sum(one.picked for one in judged),
        "turned_down": sum(not one.picked for one in judged),
        "all": {name: _plain(ranking_quality(one, judged, seed=seed)) for name, one in named.items()},
        "within_sets": {
            name: _plain(ranking_quality(one, judged, seed=seed, within_sets=True)) for name, one in named.items()
        },
    }


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else asdict(interval)


# Accepting by machine


@dataclass(frozen=True, slots=True)
class Threshold:
    """From which score on a machine accepts; None: nothing, and `reason` says why; `too_few`: for lack of verdicts.

    `chosen` is the precision on the part of the verdicts that it was chosen on, `shown` that on the other one.
    """

    score: float | None
    chosen: Interval | None
    shown: Interval | None
    reason: str = ""
    too_few: bool = False

    def holds(self, precision: float) -> bool:
        """Whether it is that right also on the verdicts that it was not chosen on."""
        return self.shown is not None and self.shown.mean >= precision


def choose_threshold(
    scores: Sequence[float], judged: Sequence[JudgedRationale], settings: CriticSettings, *, seed: int = 0
) -> Threshold:
    """The lowest score from which on the precision's interval lies above `settings.precision`.

    It is chosen on the verdicts on one half of the prompts, and its precision shown on those of the other half. With
    few verdicts nothing passes: of 34 that were all right, the interval begins below 0.9.
    """
    names = sorted({one.example.id for one in judged}, key=lambda name: stable_seed(seed, "threshold", name))
    first = set(names[: (len(names) + 1) // 2])
    parts: tuple[list[tuple[float, bool]], list[tuple[float, bool]]] = ([], [])
    for score, one in zip(scores, judged, strict=True):
        parts[one.example.id not in first].append((score, one.picked))
    least = settings.least_verdicts
    if min(map(len, parts)) < least:
        reason = f"there are {len(judged)} verdicts on candidates; {2 * least} are needed"
        return Threshold(None, None, None, reason, too_few=True)
    passing = [
        (score, precision)
        for score in sorted({score for score, _ in parts[0]})
        if (precision := _precision(parts[0], score)) is not None and precision.low >= settings.precision
    ]
    if not passing:
        return Threshold(None, None, None, f"no score has a precision of {settings.precision:.0%} for sure")
    score, precision = passing[0]
    return Threshold(score, precision, _precision(parts[1], score))


def _precision(part: Sequence[tuple[float, bool]], threshold: float) -> Interval | None:
    """The share of picked ones among those from the threshold on, with Wilson's interval; None without any."""
    passed = [picked for score, picked in part if score >= threshold]
    return wilson_interval(sum(passed), len(passed)) if passed else None


def wilson_interval(right: int, n: int) -> Interval:
    """A share with its interval of 95 % (Wilson 1927), which tells how little a few right ones say."""
    share, spread = right / n, _Z**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n)) / (1 + spread)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), n)


def difference_of_shares(right: tuple[int, int], others: tuple[int, int]) -> Interval:
    """The first share minus the second, each as how many of how many, with an interval of 95 % (Newcombe 1998).

    It is made of both shares' Wilson intervals, and so tells how little a few say. `n` is the smaller group's.
    """
    first, second = wilson_interval(*right), wilson_interval(*others)
    mean = first.mean - second.mean
    low = mean - math.hypot(first.mean - first.low, second.high - second.mean)
    high = mean + math.hypot(first.high - first.mean, second.mean - second.low)
    return Interval(mean, low, high, min(first.n, second.n))
