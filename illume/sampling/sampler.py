"""Chooses the next token of each completion from the logits: temperature, top-k, top-p, random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one completion is sampled. Temperature 0 is greedy; `top_k` 0 means the whole vocabulary."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


def sample_tokens(
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    uniforms: Sequence[float],
    *,
    allowed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples one token for each row of `logits` (rows, vocabulary).

    Returns the tokens (rows,) and their natural-log probabilities (rows,) under the unfiltered distribution at
    temperature 1. `uniforms` holds a number in [0, 1) for each row: the token is the first one where the cumulative
    filtered probability exceeds it. Only tokens that are `allowed` (rows, vocabulary) can be sampled: the others are
    removed before the filters.
    """
    logits = logits.float()
    offered = logits if allowed is None else logits.masked_fill(~allowed, -math.inf)
    tokens = offered.argmax(dim=-1)
    sampled = [row for row, one in enumerate(params) if one.temperature > 0]
    if sampled:
        rows = torch.tensor(sampled, device=logits.device)
        filtered = filter_logits(offered[rows], [params[row] for row in sampled])
        cumulative = filtered.softmax(dim=-1).cumsum(dim=-1)
        total = cumulative[:, -1:]
        target = torch.tensor([uniforms[row] for row in sampled], device=logits.device)[:, None] * total
        # Rounding must not move the target beyond the last token that passed the filters.
        target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
        tokens[rows] = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
    chosen = logits.gather(1, tokens[:, None])[:, 0]
    return tokens, chosen - logits.logsumexp(dim=-1)


def filter_logits(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Divides `logits` (rows, vocabulary) by each row's temperature (> 0), then applies top-k, then top-p.

    Logits of tokens that a filter removes become minus infinity.
    """
    vocabulary = logits.shape[-1]
    ks = [min(one.top_k, vocabulary) if one.top_k > 0 else vocabulary for one in params]
    temperatures = torch.tensor([one.temperature for one in params], device=logits.device)
    scaled = logits / temperatures[:, None]
    if min(ks) < vocabulary:
        same_k = min(ks) == max(ks)
        top = scaled.topk(max(ks), dim=-1, sorted=not same_k).values
        if same_k:
            threshold = top.amin(dim=-1, keepdim=True)
        else:
            threshold = top.gather(1, torch.tensor(ks, device=logits.device)[:, None] - 1)
        scaled = scaled.masked_fill(scaled < threshold, -math.inf)
    if any(one.top_p < 1 for one in params):
        top_p = torch.tensor([one.top_p for one in params], device=logits.device)[:, None]
        ordered, order = scaled.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        drop = (before >= top_p) & (top_p < 1)
        drop[:, 0] = False
        scaled = scaled.masked_fill(drop.scatter(1, order, drop), -math.inf)
    return scaled


def draw_uniforms(params: SamplingParams, count: int) -> list[float]:
    """Draws the random numbers of one completion, one for each token, from its own seed.

    They do not depend on what else is decoded. Greedy completions need none and get zeros.
    """
    if params.temperature <= 0:
        return [0.0] * count
    generator = torch.Generator().manual_seed(params.seed)
    numbers: list[float] = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    return numbers
