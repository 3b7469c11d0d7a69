"""Scores given continuations of prompts, in batches: how likely a model finds their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from illume.model.prompting import PromptText, count_characters, count_pictures
from illume.model.vlm import IGNORED, ImageLike, Vlm, append_continuations, bare_model, encode
from illume.sampling.decoding import is_out_of_memory

T = TypeVar("T")
Reduce = Callable[[torch.Tensor, torch.Tensor], Sequence[T]]
"""Makes one value for each row of logits (rows, n, vocabulary), which predict labels (rows, n).

The labels are IGNORED where a row has no token that counts.
"""


@dataclass(frozen=True, slots=True)
class Continuation:
    """A prompt with its images, and the tokens that are to follow it.

    `counts` says of each token whether its likelihood counts; all do where it is None.
    """

    prompt: PromptText
    images: tuple[ImageLike, ...]
    token_ids: tuple[int, ...]
    counts: tuple[bool, ...] | None = None


def score_continuations(
    vlm: Vlm,
    rows: Sequence[Continuation],
    reduce: Reduce[T],
    *,
    token_budget: int,
    check: Callable[[], None] = lambda: None,
) -> list[T]:
    """The value that `reduce` makes of each of `rows`, in their order.

    Rows of a like length share a forward pass of at most `token_budget` tokens; its size is halved when memory runs
    out, unless several processes share the model: the others would wait for this one. `check` is called before each
    pass; it may raise to stop.
    """

    def estimate(index: int) -> tuple[int, int]:
        row = rows[index]
        n_pictures = count_pictures(row.prompt, len(row.images))
        return n_pictures, count_characters(row.prompt) + 4 * len(row.token_ids)

    order = sorted(range(len(rows)), key=estimate)
    values: dict[int, T] = {}
    model = bare_model(vlm)
    was_training = model.training
    model.eval()
    try:
        size, start = 1, 0  # the first batch of one tells how wide the rows are
        limit = len(rows)
        while start < len(order):
            check()
            batch = order[start : start + size]
            try:
                found, width = _score_batch(vlm, [rows[index] for index in batch], reduce)
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(batch) == 1 or vlm.agree is not None:
                    raise
                size = limit = len(batch) // 2
                continue
            values |= zip(batch, found, strict=True)
            start += len(batch)
            size = max(1, min(limit, token_budget // width))
    finally:
        model.train(was_training)
    return [values[index] for index in range(len(rows))]


@torch.inference_mode()
def _score_batch(vlm: Vlm, rows: Sequence[Continuation], reduce: Reduce[T]) -> tuple[Sequence[T], int]:
    """The values of the rows, and the width of the batch in tokens."""
    inputs = encode(vlm, [row.prompt for row in rows], [row.images for row in rows])
    ready, labels = append_continuations(vlm, inputs, [row.token_ids for row in rows])
    keep = max(len(row.token_ids) for row in rows) + 1
    ready |= {"use_cache": False, "logits_to_keep": keep, "return_dict": True}
    logits = bare_model(vlm)(**ready).logits
    labels = labels[:, -keep + 1 :].clone()
    for row, columns in zip(rows, labels, strict=True):
        if row.counts is not None:
            columns[: len(row.counts)][~torch.tensor(row.counts, device=columns.device)] = IGNORED
    return reduce(logits[:, -keep:-1].float(), labels), int(ready["input_ids"].shape[1])


def mean_logprobs_of_rows(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """The mean natural-log probability of each row's tokens."""
    mask = labels != IGNORED
    chosen = logits.gather(2, labels.clamp(min=0)[..., None])[..., 0] - logits.logsumexp(dim=-1)
    means: list[float] = ((chosen * mask).sum(dim=1) / mask.sum(dim=1)).tolist()
    return means
