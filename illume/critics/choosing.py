"""Which of a prompt's sampled candidates are shown, by a machine critic's scores: the best, the lowest, some between.

People judge more that fits than without a choice, and the critic goes on learning what does not: nobody is shown only
what it finds best. Some sets are left as they were sampled, so that what the choice does can be measured. No torch.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

from illume.records import stable_seed

UNSELECTED_SHARE = 0.1
"""The share of candidate sets that are left as they were sampled."""

LEAST_SHOWN = 2
"""So many candidates a set shows at least where they are chosen: one alone would be the best, or not worth a choice."""

Temperatures = Sequence[tuple[float, int]]


def stays_unselected(*key: object) -> bool:
    """Whether the candidate set named by `key` is left as it was sampled: one in ten, drawn by the key alone."""
    return random.Random(stable_seed("unselected", *key)).random() < UNSELECTED_SHARE


def choose_spread(scores: Sequence[float], k: int, *, seed: int) -> tuple[int, ...]:
    """The places of `k` candidates from the best to the lowest, evenly by rank, in random order.

    The best and the lowest are among them, and the one in the middle where `k` is odd. The seed decides between equal
    scores. Where there are no more than `k` candidates, all are chosen. Raises ValueError for a score that is no finite
    number, and for a `k` below 2, which would leave only the best.
    """
    if k < LEAST_SHOWN:
        raise ValueError(f"k: at least {LEAST_SHOWN} candidates are shown, not {k}")
    if not all(map(math.isfinite, scores)):
        raise ValueError("scores: each has to be a finite number")
    draw = random.Random(stable_seed("spread", seed))
    places = list(range(len(scores)))
    draw.shuffle(places)
    ranked = sorted(places, key=lambda place: -scores[place])
    if len(ranked) > k:
        last, steps = len(ranked) - 1, k - 1
        ranked = [ranked[(2 * step * last + steps) // (2 * steps)] for step in range(k)]
    draw.shuffle(ranked)
    return tuple(ranked)


def more_temperatures(temperatures: Temperatures, n: int) -> tuple[tuple[float, int], ...]:
    """The same samples first, and then more at the same temperatures in turn, `n` in all.

    Greedy is left out of those: it would write the same again. So where everything is greedy, nothing is added.
    """
    found = [(float(temperature), count) for temperature, count in temperatures]
    rest = n - count_samples(temperatures)
    for temperature, count in itertools.cycle([one for one in found if one[0] > 0]):
        if rest <= 0:
            break
        found.append((temperature, min(count, rest)))
        rest -= count
    return tuple(found)


def count_samples(temperatures: Temperatures) -> int:
    """How many samples there are at all temperatures together."""
    return sum(count for _temperature, count in temperatures)
