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
    rows: Sequence[int] | None = None,
    allowed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples tokens from `logits` (rows, vocabulary): one for each of `params`, from its row in `rows`.

    Without `rows`, each row has one. Returns the tokens (params,) and their natural-log probabilities (params,) under
    the unfiltered distribution at temperature 1. `uniforms` holds a number in [0, 1) for each token: it is the first
    one where the cumulative filtered probability exceeds the number. Only tokens that are `allowed` (rows, vocabulary)
    can be sampled: the others are removed before the filters. What tokens of a row have in common is computed once.
    """
    logits, device = logits.float(), logits.device
    places = torch.tensor(range(len(params)) if rows is None else rows, device=device)
    offered = logits if allowed is None else logits.masked_fill(~allowed, -math.inf)
    tokens = offered.argmax(dim=-1)[places]
    sampled = [number for number, one in enumerate(params) if one.temperature > 0]
    if sampled:
        kinds: dict[tuple[int, float, int, float], int] = {}  # distributions to sample from
        chosen_from = []
        for number in sampled:
            one, row = params[number], number if rows is None else rows[number]
            chosen_from.append(kinds.setdefault((row, one.temperature, one.top_k, one.top_p), len(kinds)))
        of_kinds = [SamplingParams(temperature, top_k, top_p) for _, temperature, top_k, top_p in kinds]
        filtered = filter_logits(offered, of_kinds, rows=[row for row, *_ in kinds])
        cumulative = filtered.softmax(dim=-1).cumsum(dim=-1)[torch.tensor(chosen_from, device=device)]
        total = cumulative[:, -1:]
        target = torch.tensor([uniforms[number] for number in sampled], device=device)[:, None] * total
        # Rounding must not move the target beyond the last token that passed the filters.
        target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
        found = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
        tokens[torch.tensor(sampled, device=device)] = found
    return tokens, logits[places, tokens] - logits.logsumexp(dim=-1)[places]


def filter_logits(
    logits: torch.Tensor, params: Sequence[SamplingParams], *, rows: Sequence[int] | None = None
) -> torch.Tensor:
    """Divides the logits of each of `params` by its temperature (> 0), then applies top-k, then top-p.

    The logits are those of its row in `rows` of `logits` (rows, vocabulary); without `rows`, each row has one. Returns
    (params, vocabulary); logits of tokens that a filter removes become minus infinity.
    """
    vocabulary, device = logits.shape[-1], logits.device
    places = torch.tensor(range(len(params)) if rows is None else rows, device=device)
    ks = [min(one.top_k, vocabulary) if one.top_k > 0 else vocabulary for one in params]
    temperatures = torch.tensor([one.temperature for one in params], device=device)[:, None]
    scaled = logits[places] / temperatures
    if min(ks) < vocabulary:
        same_k = min(ks) == max(ks)
        top = logits.topk(max(ks), dim=-1, sorted=not same_k).values  # the same tokens at any temperature
        if same_k:
            least = top.amin(dim=-1, keepdim=True)[places]
        else:
            least = top[places].gather(1, torch.tensor(ks, device=device)[:, None] - 1)
        scaled = scaled.masked_fill(scaled < least / temperatures, -math.inf)
    if any(one.top_p < 1 for one in params):
        top_p = torch.tensor([one.top_p for one in params], device=device)[:, None]
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
