"""What is drawn from a prompt, and how one token is drawn: temperatures, filters, random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from illume.model.vlm import ImageLike


@dataclass(frozen=True, slots=True)
class Draw:
    """How one text is drawn. Temperature 0 is greedy; `top_k` 0 means the whole vocabulary."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Written:
    """What one draw wrote: its tokens, end token included where it came, and their summed log-probability.

    The log-probability is natural and under the unfiltered distribution at temperature 1.
    """

    ids: tuple[int, ...]
    logprob: float


@dataclass(frozen=True, slots=True)
class DecodePrompt:
    """One prompt with its images and the draws wanted first.

    With `tail` a greedy text is written also behind the prompt without its last `tail` tokens (`prefix_reuse`).
    """

    text: str
    images: tuple[ImageLike, ...]
    draws: tuple[Draw, ...]
    tail: int = 0


def draw_tokens(
    logits: torch.Tensor, draws: Sequence[Draw], uniforms: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row from `logits` (rows, vocabulary): indices and unfiltered log-probabilities, each (rows,).

    `uniforms` holds a number in [0, 1) for each row; the token is where the cumulative filtered probability passes it.
    """
    logits = logits.float()
    tokens = logits.argmax(dim=-1)
    warm = [row for row, draw in enumerate(draws) if draw.temperature > 0]
    if warm:
        where = torch.tensor(warm, device=logits.device)
        kept = filter_logits(logits[where], [draws[row] for row in warm])
        cumulative = kept.softmax(dim=-1).cumsum(dim=-1)
        total = cumulative[:, -1:]
        target = torch.tensor([uniforms[row] for row in warm], device=logits.device)[:, None] * total
        # Rounding must not carry the target past the last token that was kept.
        target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
        tokens[where] = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
    chosen = logits.gather(1, tokens[:, None])[:, 0]
    return tokens, chosen - logits.logsumexp(dim=-1)


def filter_logits(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Logits at each row's temperature (> 0), minus infinity outside its top-k, and then outside its top-p."""
    vocabulary = logits.shape[-1]
    ks = [min(draw.top_k, vocabulary) if draw.top_k > 0 else vocabulary for draw in draws]
    temperatures = torch.tensor([draw.temperature for draw in draws], device=logits.device)
    scaled = logits / temperatures[:, None]
    if min(ks) < vocabulary:
        same = min(ks) == max(ks)
        top = scaled.topk(max(ks), dim=-1, sorted=not same).values
        if same:
            least = top.amin(dim=-1, keepdim=True)
        else:
            least = top.gather(1, torch.tensor(ks, device=logits.device)[:, None] - 1)
        scaled = scaled.masked_fill(scaled < least, -math.inf)
    if any(draw.top_p < 1 for draw in draws):
        top_p = torch.tensor([draw.top_p for draw in draws], device=logits.device)[:, None]
        ordered, order = scaled.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        drop = (before >= top_p) & (top_p < 1)
        drop[:, 0] = False
        scaled = scaled.masked_fill(drop.scatter(1, order, drop), -math.inf)
    return scaled


def uniforms(draw: Draw, count: int) -> list[float]:
    """The draw's own random numbers, the same whatever else is decoded."""
    if draw.temperature <= 0:
        return [0.0] * count
    generator = torch.Generator().manual_seed(draw.seed)
    numbers: list[float] = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    return numbers
