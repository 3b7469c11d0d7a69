"""Scores of rationales by a machine critic, in batches.

Let p(a | v, q, r) be how likely the critic finds the answer a after the pictures v, the question q and the rationale r,
whose words of the answer are masked. With `helpfulness` a rationale scores

    log p(a | v, q, r) - log p(a | v, q)

in nats per token: as `seen` with the prompt's pictures, as `blank` with grey ones. With `verifier` it scores log p(yes)
- log p(no), in nats, after the question whether it is so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from illume.critics.fitting import FittedCritic
from illume.critics.rows import JudgedRationale
from illume.critics.texts import answer_continuation, fits_prompt, helped_prompt, yes_and_no
from illume.model.prompting import answer_prompt
from illume.model.vlm import ImageLike, Vlm, set_adapter
from illume.records import Example
from illume.sampling.scoring import Continuation, mean_logprobs_of_rows, score_continuations
from illume.settings import CriticSettings
from illume.tuning.preferences import blank_images

TOKEN_BUDGET = 16384


@dataclass(frozen=True, slots=True)
class CriticScore:
    """A rationale's score with the prompt's pictures, and with blank ones."""

    seen: float
    blank: float

    def value(self, settings: CriticSettings) -> float:
        """The score to rank by: the higher, the better the rationale fits."""
        return self.blank if settings.kind == "helpfulness" and settings.ranks_blank else self.seen


def score_rationales(
    vlm: Vlm,
    critic: FittedCritic,
    rows: Sequence[tuple[Example, str]],
    *,
    token_budget: int = TOKEN_BUDGET,
    check: Callable[[], None] = lambda: None,
) -> list[CriticScore]:
    """The score of each (example, rationale), by the adapter that has not seen the example; the base is left in `vlm`.

    Examples have the answer that their prompt has.
    """
    scores: dict[int, CriticScore] = {}
    try:
        for adapter in critic.adapters:
            places = [place for place, (example, _) in enumerate(rows) if critic.adapter_for(example.id) == adapter]
            if places:
                set_adapter(vlm, adapter)
                mine = [rows[place] for place in places]
                scores |= zip(places, _score(vlm, mine, critic.settings, token_budget, check), strict=True)
    finally:
        set_adapter(vlm, None)  # also after an error: whoever uses the model next must not write with a critic
    return [scores[place] for place in range(len(rows))]


def score_judged(vlm: Vlm, critic: FittedCritic, judged: Sequence[JudgedRationale]) -> list[CriticScore]:
    """As `score_rationales`, of what people judged."""
    return score_rationales(vlm, critic, [(one.example, one.rationale) for one in judged])


def _score(
    vlm: Vlm,
    rows: Sequence[tuple[Example, str]],
    settings: CriticSettings,
    token_budget: int,
    check: Callable[[], None],
) -> list[CriticScore]:
    rate = _rate_help if settings.kind == "helpfulness" else _rate_fit
    blank = {images: blank_images(images) for images in dict.fromkeys(example.images for example, _ in rows)}
    shown: list[tuple[Example, str, tuple[ImageLike, ...]]] = [(one, text, one.images) for one, text in rows]
    shown += [(one, text, blank[one.images]) for one, text in rows]
    values = rate(vlm, shown, settings.tuning.template, token_budget, check)
    return [CriticScore(*pair) for pair in zip(values[: len(rows)], values[len(rows) :], strict=True)]


def _rate_help(
    vlm: Vlm,
    rows: Sequence[tuple[Example, str, tuple[ImageLike, ...]]],
    template: str,
    token_budget: int,
    check: Callable[[], None],
) -> list[float]:
    """By how much each rationale makes its answer likelier; each prompt without a rationale is read once."""
    wanted: dict[tuple[object, ...], Continuation] = {}
    pairs = []
    for example, rationale, images in rows:
        answer = str(example.answer)
        keys = []
        for prompt in (helped_prompt(example, rationale, template=template), answer_prompt(example, template=template)):
            keys.append((prompt, answer, tuple(map(_identity, images))))
            wanted.setdefault(keys[-1], answer_continuation(vlm, prompt, images, answer))
        pairs.append(keys)
    values = score_continuations(
        vlm, list(wanted.values()), mean_logprobs_of_rows, token_budget=token_budget, check=check
    )
    found = dict(zip(wanted, values, strict=True))
    return [found[helped] - found[alone] for helped, alone in pairs]


def _identity(image: ImageLike) -> object:
    return image if isinstance(image, str) else id(image)


def _rate_fit(
    vlm: Vlm,
    rows: Sequence[tuple[Example, str, tuple[ImageLike, ...]]],
    template: str,
    token_budget: int,
    check: Callable[[], None],
) -> list[float]:
    """The log odds of yes against no."""
    shared, yes, no = yes_and_no(vlm)

    def odds(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:  # noqa: ARG001 - as other reductions
        place = logits[:, len(shared)]
        differences: list[float] = (place[:, yes] - place[:, no]).tolist()
        return differences

    continuations = [
        Continuation(fits_prompt(example, rationale, template=template), images, (*shared, yes))
        for example, rationale, images in rows
    ]
    return score_continuations(vlm, continuations, odds, token_budget=token_budget, check=check)
