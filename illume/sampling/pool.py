"""The rows that decode together: which prompts come in, which rows take a place, which are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers.cache_utils import DynamicCache

from illume.model.vision_cache import Encoded, EncodedPrompts, remembered_features
from illume.model.vlm import Vlm, bare_model, encode, forward_inputs, stop_ids
from illume.sampling.kv_cache import Prefix, RowCache, SlotCache
from illume.sampling.sampler import DecodePrompt, Draw, Written, draw_tokens, uniforms
from illume.sampling.shared_prefix import SharedCache

_ADMIT_SHARE = 0.25
"""New prompts are encoded once this share of the budget is free: encoding a few at a time wastes the batch."""

_REMEMBERED_BATCH = 16
"""Prompts encoded together where they are kept for the next version."""

_ENCODED_BATCH = 32
"""Prompts encoded together at most: more are not encoded faster, and take more memory while they are."""


@dataclass
class Group:
    """A prompt under way: its keys and values, and what its present draws wrote so far."""

    prefix: Prefix
    logits: torch.Tensor
    draws: tuple[Draw, ...] = ()
    written: list[Written | None] = field(default_factory=list)


@dataclass
class Row:
    """One draw under way. `uniforms` are its random numbers, one a token."""

    group: Group
    number: int
    draw: Draw
    uniforms: list[float]
    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0


class Pool:
    """Rows that decode together, over a cache of bounded size."""

    def __init__(
        self,
        vlm: Vlm,
        prompts: Sequence[DecodePrompt],
        max_new_tokens: int,
        token_budget: int,
        memory: EncodedPrompts | None,
        *,
        share: bool,
    ) -> None:
        self.vlm, self.prompts, self.memory = vlm, prompts, memory
        self.model = bare_model(vlm)
        self.max_new_tokens, self.token_budget = max_new_tokens, token_budget
        self.stops = frozenset(stop_ids(vlm))
        self.groups: dict[int, Group] = {}
        self.pending: deque[Row] = deque()
        self.rows: list[Row] = []
        sizes = {"max_new_tokens": max_new_tokens, "token_budget": token_budget}
        self.cache: RowCache = SharedCache(self.model, vlm.device, **sizes) if share else SlotCache(vlm.device, **sizes)
        self.longest = 0  # tokens of the longest prompt so far
        self.can_shrink = False

    def unfinished(self) -> list[tuple[int, tuple[Draw, ...]]]:
        """Every prompt whose present draws were not handed out, with those draws; all, where the tailless text is."""
        left = {index: group.draws for index, group in self.groups.items() if index >= 0}
        for index in self.groups:
            if index < 0:
                left.setdefault(~index, self.prompts[~index].draws)
        return list(left.items())

    # Prompts come in.

    @torch.inference_mode()
    def admit(self, waiting: deque[tuple[int, tuple[Draw, ...]]]) -> None:
        """Places pending rows, then encodes waiting prompts while there is room for their draws."""
        self._place_pending()
        if not waiting or self.pending:
            return
        room = self.cache.room(len(self.rows))
        if self.rows and room < self.token_budget * _ADMIT_SHARE:
            return
        self.longest = self.longest or self._length(waiting[0][0])
        # What is to be found again must come in the same batches, whatever place there is.
        most = _ENCODED_BATCH if self.memory is None else _REMEMBERED_BATCH
        chosen: list[tuple[int, tuple[Draw, ...]]] = []
        while waiting and len(chosen) < most:
            room -= self.cache.cost(self.longest, self._n_rows(*waiting[0]))
            if chosen and not self.memory and room < 0:
                break
            chosen.append(waiting.popleft())
        self.can_shrink = len(chosen) > 1 or bool(self.groups)
        try:
            self._encode(chosen)
        except RuntimeError:
            waiting.extendleft(reversed(chosen))
            raise
        self._place_pending(later=sum(self._n_rows(index, draws) for index, draws in waiting))

    def _n_rows(self, index: int, draws: Sequence[Draw]) -> int:
        return len(draws) + bool(self.prompts[index].tail)

    def _length(self, index: int) -> int:
        prompt = self.prompts[index]
        return int(encode(self.vlm, [prompt.text], [prompt.images])["input_ids"].shape[1])

    def _encode(self, chosen: Sequence[tuple[int, tuple[Draw, ...]]]) -> None:
        """One forward pass over the prompts, whose keys and values are then shared by all their draws."""
        prompts = [self.prompts[index] for index, _ in chosen]
        texts, images = [prompt.text for prompt in prompts], [prompt.images for prompt in prompts]
        encoded = Encoded({}) if self.memory is None else self.memory.get(self.vlm, texts, images)
        inputs = encoded.inputs = encoded.inputs or encode(self.vlm, texts, images)
        ready = forward_inputs(self.vlm, inputs)
        cache = DynamicCache()
        ready |= {"past_key_values": cache, "use_cache": True, "return_dict": True}
        ready["logits_to_keep"] = 1 + max(prompt.tail for prompt in prompts)
        if self.memory is None:
            output = self.model(**ready)
        else:
            with remembered_features(self.vlm, encoded):
                output = self.model(**ready)
            self.memory.keep(self.vlm, texts, images, encoded)
        width, positions = inputs["input_ids"].shape[1], ready["position_ids"] + 1
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        self.longest = max(self.longest, *lengths)
        for row, ((index, draws), length) in enumerate(zip(chosen, lengths, strict=True)):
            tail = self.prompts[index].tail
            for key, end, wanted in ((index, 0, draws), (~index, tail, (Draw(),)))[: 1 + bool(tail)]:
                places = slice(width - length, width - end)
                layers = [(layer.keys[row, :, places], layer.values[row, :, places]) for layer in cache.layers]
                first = positions[..., row, -1 - end].reshape(-1)
                prefix = Prefix(key, layers, length - end, first)
                self.groups[key] = Group(prefix, output.logits[row, -1 - end].float())
                self._queue(self.groups[key], wanted)

    def _queue(self, group: Group, draws: Sequence[Draw]) -> None:
        group.draws, group.written = tuple(draws), [None] * len(draws)
        for number, draw in enumerate(draws):
            self.pending.append(Row(group, number, draw, uniforms(draw, self.max_new_tokens)))

    def continue_group(self, index: int, draws: Sequence[Draw]) -> bool:
        """Queues further draws of a prompt; without any the prompt is dropped, and False returned."""
        if not draws:
            del self.groups[index]
            self.cache.release(index)
            return False
        self._queue(self.groups[index], draws)
        return True

    # Rows come in.

    def _place_pending(self, later: int = 0) -> None:
        """Lets pending rows join where there is room, and draws their first tokens from their prompts' last logits."""
        while self.pending:
            prefixes = list({row.group.prefix: None for row in self.pending})
            self.can_shrink = len(self.rows) + len(self.pending) > 1
            free = self.cache.make_room(prefixes, n_rows=len(self.rows), wanted=len(self.pending), later=later)
            if free <= 0:
                return
            joining = [self.pending.popleft() for _ in range(min(free, len(self.pending)))]
            self.cache.join(len(self.rows), [row.group.prefix for row in joining])
            self.rows.extend(joining)
            self._record(joining, torch.stack([row.group.logits for row in joining]))

    # Rows go on, and out.

    @torch.inference_mode()
    def step(self) -> list[tuple[int, list[Written]]]:
        """One more token for every row; returns the prompts whose draws are all written."""
        if self.rows:
            self.can_shrink = len(self.rows) > 1
            last = torch.tensor([[row.ids[-1]] for row in self.rows], device=self.vlm.device)
            self._record(self.rows, self.cache.step(self.model, last))
        whole = [group for group in self.groups.values() if None not in group.written]
        return [(group.prefix.key, [text for text in group.written if text is not None]) for group in whole]

    def _record(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        """Draws a token for each of `rows`, and takes out those that end with it."""
        tokens, logprobs = draw_tokens(logits, [row.draw for row in rows], [row.uniforms[len(row.ids)] for row in rows])
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row.ids.append(token)
            row.logprob += logprob
            if token in self.stops or len(row.ids) >= self.max_new_tokens:
                row.group.written[row.number] = Written(tuple(row.ids), row.logprob)
        self._drop_ended()

    def _drop_ended(self) -> None:
        """Rows from the end take the places of rows that ended."""
        alive = [slot for slot, row in enumerate(self.rows) if row.group.written[row.number] is None]
        n = len(alive)
        if n == len(self.rows):
            return
        holes = sorted(set(range(n)) - set(alive))
        movers = [slot for slot in alive if slot >= n]
        if holes:
            self.cache.copy_rows(movers, holes)
            for hole, mover in zip(holes, movers, strict=True):
                self.rows[hole] = self.rows[mover]
        del self.rows[n:]
