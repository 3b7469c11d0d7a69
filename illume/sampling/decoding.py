"""Many draws from many prompts, decoded together.

A prompt and its images are encoded once; each draw is a row with its own temperature, filters and random numbers that
starts from a copy of the prompt's keys and values. Rows that end leave at once and waiting rows take their place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch

from illume.model.merged_weights import fold_adapter
from illume.model.vision_cache import EncodedPrompts
from illume.model.vlm import Vlm, bare_model
from illume.sampling.pool import Pool
from illume.sampling.sampler import DecodePrompt as DecodePrompt
from illume.sampling.sampler import Draw as Draw
from illume.sampling.sampler import Written as Written
from illume.sampling.shared_prefix import CannotShare, can_share

NextDraws = Callable[[int, list[Written]], Sequence[Draw]]
"""Called with a prompt's index and what its last draws wrote, in order; returns further draws, or none.

For what was written behind a prompt without its tail the index is `~index`, which is negative.
"""


def decode_prompts(
    vlm: Vlm,
    prompts: Sequence[DecodePrompt],
    *,
    max_new_tokens: int,
    token_budget: int,
    next_draws: NextDraws,
    progress: Callable[[int, int], None] | None = None,
    memory: EncodedPrompts | None = None,
) -> None:
    """Decodes every draw of every prompt, and whatever `next_draws` asks for, within `token_budget` cached tokens.

    `memory` keeps the encoded prompts for the next time the same ones are asked.

    What a prompt's draws write does not depend on the other prompts, but for the rounding of the model's arithmetic.
    When memory runs out the batch is halved, and draws under way start again; with one row left the error is raised.
    """
    order = sorted(range(len(prompts)), key=lambda index: _rough_length(prompts[index]), reverse=True)
    waiting = deque((index, prompts[index].draws) for index in order)
    model, budget, done = bare_model(vlm), token_budget, 0
    if vlm._shares_prompts is None:
        vlm._shares_prompts = can_share(model)
    was_training = model.training
    model.eval()
    folded = fold_adapter(vlm)
    try:
        while waiting:
            pool = Pool(vlm, prompts, max_new_tokens, budget, memory, share=vlm._shares_prompts)
            try:
                while waiting or pool.groups:
                    pool.admit(waiting)
                    for index, written in pool.step():
                        if not pool.continue_group(index, next_draws(index, written)) and index >= 0:
                            done += 1
                            if progress is not None:
                                progress(done, len(prompts))
            except CannotShare:
                vlm._shares_prompts = False
                waiting.extendleft(reversed(pool.unfinished()))
            except RuntimeError as error:
                if not is_out_of_memory(error) or not pool.can_shrink:
                    raise
                waiting.extendleft(reversed(pool.unfinished()))
                budget, memory = max(1, budget // 2), None  # what is remembered comes in batches of one size
            del pool
            if vlm.device.type == "cuda" and waiting:
                torch.cuda.empty_cache()
    finally:
        folded.undo()
        model.train(was_training)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory: the GPU's own error, or the allocator's message on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _rough_length(prompt: DecodePrompt) -> tuple[int, int]:
    return len(prompt.images), len(prompt.text)
