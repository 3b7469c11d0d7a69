"""Finds out when one forward pass over the rationale prompt also serves the answer prompt that it starts with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from illume.model.prompting import PromptText, answer_prompt, rationale_prompt
from illume.model.vlm import Vlm, bare_model, encode, forward_inputs, wrap_prompt
from illume.records import Example

_TOLERANCE = 1e-3
"""Relative difference of logits that padding and batching may cause; another prefix changes them far more."""


def count_suffix_tokens(vlm: Vlm, examples: Sequence[Example], *, template: str) -> list[int] | None:
    """Counts the tokens of each rationale prompt (with the gold answer) that follow its answer prompt.

    Returns None unless every answer prompt is a prefix of the rationale prompt in tokens, which a chat template that
    closes the turn in between prevents, and unless the model is causal: with bidirectional attention over the prompt,
    later tokens change the keys and values of earlier ones.
    """
    suffixes = []
    for example in examples:
        wrapped = (wrap_prompt(vlm, prompt, len(example.images)) for prompt in _render_prompts(example, template))
        answer_ids, rationale_ids = (vlm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in wrapped)
        if len(rationale_ids) <= len(answer_ids) or rationale_ids[: len(answer_ids)] != answer_ids:
            return None
        suffixes.append(len(rationale_ids) - len(answer_ids))
    if vlm._is_causal is None and examples:
        checked = list(zip(examples, suffixes, strict=True))[:2]
        vlm._is_causal = all(_has_same_logits(vlm, example, suffix, template) for example, suffix in checked)
    return suffixes if vlm._is_causal else None


def _render_prompts(example: Example, template: str) -> tuple[PromptText, PromptText]:
    """The answer prompt and the rationale prompt."""
    whole = rationale_prompt(example, example.answer or "", template=template)
    return answer_prompt(example, template=template), whole


@torch.inference_mode()
def _has_same_logits(vlm: Vlm, example: Example, suffix: int, template: str) -> bool:
    """Whether the logits after the answer prompt are the same within the rationale prompt."""
    logits = []
    for prompt, index in zip(_render_prompts(example, template), (-1, -1 - suffix), strict=True):
        inputs = forward_inputs(vlm, encode(vlm, [prompt], [example.images]))
        output = bare_model(vlm)(**inputs, use_cache=False, logits_to_keep=-index, return_dict=True)
        logits.append(output.logits[0, index].float())
    return bool((logits[0] - logits[1]).abs().max() <= _TOLERANCE * max(1.0, float(logits[0].abs().max())))
