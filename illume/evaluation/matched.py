"""Measures that sharpening a distribution does not raise: samples of all versions are compared at the same entropy.

A version that only became surer of itself writes more of its likeliest texts, and these are true more often than
others, although it knows nothing new. So every version is sampled at a temperature of its own.

Let q_T(v | x, y) be the distribution of the next token v that a version samples from at temperature T, after the prompt
x and the tokens y: its logits divided by T, cut to the most likely share of the vocabulary, normalised. Its mean token
entropy at T is

    H(T) = mean of  - sum over v of q_T(v | x, y) log q_T(v | x, y)

in nats, over all tokens of texts that are themselves sampled at T, behind the gold answer of each val prompt x. The
matched temperature T' of a version is the one at which H(T') equals the base model's H at its usual temperature, 0.7.

With `SAMPLES` texts of each held-out prompt, sampled at T':

    truth at matched entropy   = the share of texts that are true of what is shown
    distinct true rationales   = the number of different texts (after normalisation) that are true, of `SAMPLES`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from illume.evaluation.evaluation import TOKEN_BUDGET, Scores, count_kept, mean, sampled_params
from illume.evaluation.tasks import faithful
from illume.model.prompting import PromptText, rationale_prompt
from illume.model.vision_cache import EncodedPromptCache
from illume.model.vlm import Vlm
from illume.records import Example
from illume.sampling.decoding import Completion, DecodeRequest, decode_prompts
from illume.sampling.sampler import SamplingParams
from illume.settings import EvaluationSettings
from illume.texts import normalise_rationale

SAMPLES = 4
"""Rationales that are sampled of each prompt."""

GRID = tuple(float(one) for one in np.geomspace(0.05, 5.0, 47))
"""Temperatures at which entropies are computed; between them they are interpolated."""

_TRIES = 4
_CLOSE = 0.02
"""The relative difference of entropies that is close enough; after `_TRIES` the closest temperature is used."""


@dataclass(frozen=True, slots=True)
class Matched:
    """A temperature, and the mean token entropy there in nats."""

    temperature: float
    entropy: float


def match_temperature(
    vlm: Vlm,
    examples: Sequence[Example],
    settings: EvaluationSettings,
    *,
    template: str,
    entropy: float | None = None,
    prompt_cache: EncodedPromptCache | None = None,
) -> Matched:
    """The temperature at which the model in `vlm` has this mean token entropy on `examples`, of which there is one.

    Without `entropy`, what the model has at `settings.temperature`. Where no temperature of `GRID` has it, the closest.
    Each try samples a rationale of each example behind its gold answer, with the seeds of
    `illume.evaluation.evaluation.evaluate`; entropies are those of the logits that its tokens are chosen from.
    `prompt_cache` is as in `decode_prompts`. Raises ValueError for an example without a gold answer.
    """
    kept, temperature, found = count_kept(vlm, settings), settings.temperature, list[Matched]()
    sums, counts = np.zeros((len(examples), len(GRID))), np.zeros(len(examples))  # of entropies and tokens, by example

    def params(example: Example) -> tuple[SamplingParams, ...]:
        return sampled_params(vlm, example, replace(settings, temperature=temperature, samples=1))

    def keep(index: int, completions: list[Completion]) -> Sequence[SamplingParams]:
        [text] = completions
        if text.measured is not None:
            sums[index], counts[index] = text.measured.double().numpy(), len(text.token_ids)
        return ()

    def try_again() -> Mapping[int, Sequence[SamplingParams]]:
        nonlocal temperature
        curve = sums.sum(axis=0) / counts.sum()
        found.append(Matched(temperature, float(np.interp(temperature, GRID, curve))))
        if entropy is None or abs(found[-1].entropy - entropy) <= _CLOSE * entropy or len(found) == _TRIES:
            return {}
        temperature = float(np.interp(entropy, curve, GRID))
        return {index: params(example) for index, example in enumerate(examples)}

    decode_prompts(
        vlm,
        [DecodeRequest(_prompt(example, template), example.images, params(example)) for example in examples],
        max_new_tokens=settings.max_new_tokens,
        token_budget=TOKEN_BUDGET,
        on_completions=keep,
        prompt_cache=prompt_cache,
        measure=lambda logits: token_entropies(logits, kept).T,
        on_idle=try_again,
    )
    return min(found, key=lambda one: abs(one.entropy - (entropy or 0.0)))


def _prompt(example: Example, template: str) -> PromptText:
    if example.answer is None:
        raise ValueError(f"{example.id} has no gold answer")
    return rationale_prompt(example, example.answer, template=template)


def score_matched(examples: Sequence[Example], texts: Sequence[Sequence[str]]) -> Scores:
    """What is true of the `SAMPLES` rationales of each example that were sampled at the matched temperature.

    The result has `rationales`, `faithful` (the share of true ones) and `distinct_true` (how many different ones are
    true), both None for an example whose truth cannot be computed.
    """
    truths = [[faithful(text, example) for text in row] for row, example in zip(texts, examples, strict=True)]
    return {
        "rationales": [list(row) for row in texts],
        "faithful": [mean(row) for row in truths],
        "distinct_true": [_count_distinct_true(row, true) for row, true in zip(texts, truths, strict=True)],
    }


def _count_distinct_true(texts: Sequence[str], truths: Sequence[bool | None]) -> float | None:
    if None in truths:
        return None
    return float(len({normalise_rationale(text) for text, true in zip(texts, truths, strict=True) if true}))


def token_entropies(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """The entropy in nats of each place's next token at each temperature of `GRID`: (..., vocabulary) -> (grid, ...).

    Only the `top_k` most likely tokens are sampled.
    """
    top = logits.float().topk(min(top_k, logits.shape[-1]), dim=-1).values
    found = []
    for temperature in GRID:
        logs = (top / temperature).log_softmax(dim=-1)
        found.append(-(logs.exp() * logs).sum(dim=-1))
    return torch.stack(found)
