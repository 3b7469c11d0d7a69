"""How unsure a machine critic is of a candidate set: what is worth asking people. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence


def doubt_of(scores: Sequence[float], logprobs: Sequence[float | None]) -> float:
    """From 0 to 1, the more, the less critic and sampler agree on the best candidate.

    Let m be the critic's score of the candidate that the sampler finds likeliest, minus its best score of the others:
    negative where the two disagree, near 0 where the critic's best two are close. The doubt is 1 / (1 + exp(m)).

    `logprobs` are the mean log-probabilities of the same candidates. Where one is unknown nothing tells of the sampler,
    and m is that of the critic's best. A set of one candidate leaves nothing to choose, and is not doubted.
    """
    if len(scores) < 2:
        return 0.0
    known = [one for one in logprobs if one is not None]
    likely: Sequence[float] = known if len(known) == len(scores) else scores
    place = likely.index(max(likely))
    margin = scores[place] - max(one for index, one in enumerate(scores) if index != place)
    return 1 / (1 + math.exp(max(-700.0, min(700.0, margin))))
