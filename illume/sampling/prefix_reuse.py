"""Where an answer prompt is the beginning of the rationale prompt, one pass over the longer one serves both."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from illume.model.prompting import render_answer_prompt, render_rationale_prompt
from illume.model.vlm import Vlm, bare_model, encode, forward_inputs, wrap_prompt
from illume.records import Example

_TOLERANCE = 1e-3
"""Of logits: what padding and batching may change, far below what another text would."""


def lead_tails(vlm: Vlm, examples: Sequence[Example], *, template: str) -> list[int] | None:
    """How many tokens of each rationale prompt (with the gold answer) stand behind the answer prompt it begins with.

    None where that is not so for every example, as with a chat template that closes the turn in between, and where the
    model reads its prompt in both directions, so that what comes later changes what came before.
    """
    tails = []
    for example in examples:
        lead, whole = (wrap_prompt(vlm, text, len(example.images)) for text in _prompts(example, template))
        before, both = (vlm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (lead, whole))
        if len(both) <= len(before) or both[: len(before)] != before:
            return None
        tails.append(len(both) - len(before))
    if vlm._reads_forward is None and examples:
        vlm._reads_forward = all(
            _same_logits(vlm, example, tail, template) for example, tail in list(zip(examples, tails, strict=True))[:2]
        )
    return tails if vlm._reads_forward else None


def _prompts(example: Example, template: str) -> tuple[str, str]:
    answer_prompt = render_answer_prompt(example.question, template=template)
    return answer_prompt, render_rationale_prompt(example.question, example.answer or "", template=template)


@torch.inference_mode()
def _same_logits(vlm: Vlm, example: Example, tail: int, template: str) -> bool:
    """Whether the model says the same behind the answer prompt alone and at its end inside the longer one."""
    said = []
    for text, place in zip(_prompts(example, template), (-1, -1 - tail), strict=True):
        ready = forward_inputs(vlm, encode(vlm, [text], [example.images]))
        output = bare_model(vlm)(**ready, use_cache=False, logits_to_keep=-place, return_dict=True)
        said.append(output.logits[0, place].float())
    return bool((said[0] - said[1]).abs().max() <= _TOLERANCE * max(1.0, float(said[0].abs().max())))
