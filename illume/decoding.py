"""Many draws from many prompts, decoded together.

A prompt and its images are encoded once; each draw is a row with its own temperature, filters and random numbers that
starts from a copy of the prompt's keys and values. Rows that end leave at once and waiting rows take their place. All
rows write at one common cursor, so a row that joins late has unused, masked places before its prompt.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from illume.features import Encoded, EncodedPrompts, remembered_features
from illume.folding import fold_adapter
from illume.vlm import ImageLike, Vlm, bare_model, encode, forward_inputs, stop_ids

_ADMIT_SHARE = 0.25
"""New prompts are encoded once this share of the rows is free: encoding a few at a time wastes the batch."""

_REMEMBERED_BATCH = 16
"""Prompts encoded together where they are kept for the next version."""

_SHIFT_GAIN = 16
"""Unused places worth moving the cache for when rows join."""


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

    With `tail` a greedy text is written also behind the prompt without its last `tail` tokens (`illume.leads`).
    """

    text: str
    images: tuple[ImageLike, ...]
    draws: tuple[Draw, ...]
    tail: int = 0


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
    was_training = model.training
    model.eval()
    folded = fold_adapter(vlm)
    try:
        while waiting:
            pool = _Pool(vlm, prompts, max_new_tokens, budget, memory)
            try:
                while waiting or pool.groups:
                    pool.admit(waiting)
                    for index, written in pool.step():
                        if not pool.continue_group(index, next_draws(index, written)) and index >= 0:
                            done += 1
                            if progress is not None:
                                progress(done, len(prompts))
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


# --- drawing tokens ----------------------------------------------------------------------------------------------


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


# --- the cache ---------------------------------------------------------------------------------------------------


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of all rows in buffers made once, (rows, heads, places, width); `cursor` places are in use."""

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, n_rows: int, n_places: int) -> None:
        super().__init__()
        # Zeros, not whatever the memory held: a masked place still meets its value, and nothing times NaN is NaN.
        self.keys = keys.new_zeros((n_rows, keys.shape[1], n_places, keys.shape[3]))
        self.values = values.new_zeros((n_rows, values.shape[1], n_places, values.shape[3]))
        self.is_initialized = True
        self.cursor = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is left to make."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, end = key_states.shape[0], self.cursor + key_states.shape[2]
        self.keys[:rows, :, self.cursor : end] = key_states
        self.values[:rows, :, self.cursor : end] = value_states
        self.cursor = end
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cursor + query_length, 0

    def get_seq_length(self) -> int:
        return self.cursor

    def get_max_length(self) -> int:
        return -1


# --- the pool of rows --------------------------------------------------------------------------------------------


@dataclass
class _Group:
    """A prompt under way: its keys and values, and what its present draws wrote so far."""

    index: int
    layers: list[tuple[torch.Tensor, torch.Tensor]]
    logits: torch.Tensor
    first_position: torch.Tensor
    draws: tuple[Draw, ...] = ()
    written: list[Written | None] = field(default_factory=list)

    @property
    def length(self) -> int:
        return int(self.layers[0][0].shape[1])


@dataclass
class _Row:
    """One draw under way. `uniforms` are its random numbers, one a token."""

    group: _Group
    number: int
    draw: Draw
    uniforms: list[float]
    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0


class _Pool:
    """Rows that decode together, over a cache of fixed size."""

    def __init__(
        self,
        vlm: Vlm,
        prompts: Sequence[DecodePrompt],
        max_new_tokens: int,
        token_budget: int,
        memory: EncodedPrompts | None,
    ) -> None:
        self.vlm, self.prompts, self.memory = vlm, prompts, memory
        self.model = bare_model(vlm)
        self.max_new_tokens, self.token_budget = max_new_tokens, token_budget
        self.stops = frozenset(stop_ids(vlm))
        self.groups: dict[int, _Group] = {}
        self.pending: deque[_Row] = deque()
        self.rows: list[_Row] = []
        self.layers: list[_SlotLayer] = []
        self.mask = torch.zeros((0, 0), dtype=torch.long, device=vlm.device)
        self.positions = torch.zeros((0, 1), dtype=torch.long, device=vlm.device)
        self.can_shrink = False

    @property
    def cursor(self) -> int:
        """Places of the cache in use."""
        return self.layers[0].cursor if self.layers else 0

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
        capacity = self.mask.shape[0] or self._first_capacity(waiting[0])
        free = capacity - len(self.rows)
        if self.rows and free < capacity * _ADMIT_SHARE:
            return
        # What is to be found again must come in the same batches, whatever place there is.
        most = len(waiting) if self.memory is None else _REMEMBERED_BATCH
        chosen: list[tuple[int, tuple[Draw, ...]]] = []
        while waiting and len(chosen) < most and (not chosen or self.memory or self._n_rows(*waiting[0]) <= free):
            free -= self._n_rows(*waiting[0])
            chosen.append(waiting.popleft())
        self.can_shrink = len(chosen) > 1 or bool(self.groups)
        try:
            self._encode(chosen)
        except RuntimeError:
            waiting.extendleft(reversed(chosen))
            raise
        self._place_pending(wanted=sum(self._n_rows(index, draws) for index, draws in waiting))

    def _n_rows(self, index: int, draws: Sequence[Draw]) -> int:
        return len(draws) + bool(self.prompts[index].tail)

    def _first_capacity(self, first: tuple[int, tuple[Draw, ...]]) -> int:
        prompt = self.prompts[first[0]]
        length = encode(self.vlm, [prompt.text], [prompt.images])["input_ids"].shape[1]
        return self._capacity(length, len(first[1]))

    def _capacity(self, length: int, n_draws: int) -> int:
        """How many rows of prompts of `length` tokens, each shared by `n_draws` rows, the budget holds; at least 1."""
        return max(1, int(self.token_budget / (self._places(length) + length / max(1, n_draws))))

    def _places(self, length: int) -> int:
        """Places a row needs, with some to spare so that the cache is seldom moved."""
        return length + self.max_new_tokens + max(8, self.max_new_tokens // 2)

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
        for row, ((index, draws), length) in enumerate(zip(chosen, lengths, strict=True)):
            tail = self.prompts[index].tail
            for key, end, wanted in ((index, 0, draws), (~index, tail, (Draw(),)))[: 1 + bool(tail)]:
                places = slice(width - length, width - end)
                layers = [(layer.keys[row, :, places], layer.values[row, :, places]) for layer in cache.layers]
                first = positions[..., row, -1 - end].reshape(-1)
                self.groups[key] = _Group(key, layers, output.logits[row, -1 - end].float(), first)
                self._queue(self.groups[key], wanted)

    def _queue(self, group: _Group, draws: Sequence[Draw]) -> None:
        group.draws, group.written = tuple(draws), [None] * len(draws)
        for number, draw in enumerate(draws):
            self.pending.append(_Row(group, number, draw, _uniforms(draw, self.max_new_tokens)))

    def continue_group(self, index: int, draws: Sequence[Draw]) -> bool:
        """Queues further draws of a prompt; without any the prompt is dropped, and False returned."""
        if not draws:
            del self.groups[index]
            return False
        self._queue(self.groups[index], draws)
        return True

    # Rows come in.

    def _place_pending(self, wanted: int = 0) -> None:
        """Moves pending rows to free places, and draws their first tokens from their prompts' last logits."""
        while self.pending:
            longest = max(row.group.length for row in self.pending)
            if not self.rows and self.mask.shape[1] < longest + self.max_new_tokens:
                n_draws = len(self.pending[0].group.draws)
                capacity = self._capacity(longest, n_draws)
                self._make_buffers(min(capacity, len(self.pending) + wanted), self._places(longest))
            free = self.mask.shape[0] - len(self.rows)
            if free <= 0 or self.mask.shape[1] < longest + self.max_new_tokens:
                return
            joining = [self.pending.popleft() for _ in range(min(free, len(self.pending)))]
            self._set_cursor(max(row.group.length for row in joining))
            for _, together in groupby(joining, key=lambda row: row.group.index):
                self._fill_slots(list(together))
            first = torch.stack([row.group.logits for row in joining])
            self._record(joining, first)

    def _make_buffers(self, n_rows: int, n_places: int) -> None:
        self.can_shrink = n_rows > 1
        sample = self.pending[0].group
        self.layers = [_SlotLayer(keys[None], values[None], n_rows, n_places) for keys, values in sample.layers]
        self.mask = self.mask.new_zeros((n_rows, n_places))
        self.positions = self.positions.new_zeros((n_rows, sample.first_position.shape[0]))

    def _fill_slots(self, rows: Sequence[_Row]) -> None:
        """Gives `rows`, all of one prompt, the next free places, with a copy of the prompt's keys and values each."""
        group, first, end = rows[0].group, len(self.rows), self.cursor
        slots, places = slice(first, first + len(rows)), slice(end - group.length, end)
        for layer, (keys, values) in zip(self.layers, group.layers, strict=True):
            layer.keys[slots, :, places] = keys
            layer.values[slots, :, places] = values
        self.mask[slots] = 0
        self.mask[slots, places] = 1
        self.positions[slots] = group.first_position
        self.rows.extend(rows)

    def _set_cursor(self, needed: int) -> None:
        """Moves what the rows hold so that the cursor is at least `needed`, and not much more than any row needs."""
        used = max((row.group.length + len(row.ids) - 1 for row in self.rows), default=0)
        target = max(used, needed)
        if not self.rows:
            self._move(target - self.cursor, copy=False)
        elif self.cursor < target or self.cursor - target >= _SHIFT_GAIN or self.cursor >= self.mask.shape[1]:
            self._move(target - self.cursor)

    def _move(self, by: int, *, copy: bool = True) -> None:
        n, old, new = len(self.rows), self.cursor, self.cursor + by
        kept = min(old, new)
        for layer in self.layers:
            if copy:
                for buffer in (layer.keys, layer.values):
                    buffer[:n, :, new - kept : new] = buffer[:n, :, old - kept : old].clone()
            layer.cursor = new
        if copy:
            mask = self.mask[:n, old - kept : old].clone()
            self.mask[:n] = 0
            self.mask[:n, new - kept : new] = mask

    # Rows go on, and out.

    @torch.inference_mode()
    def step(self) -> list[tuple[int, list[Written]]]:
        """One more token for every row; returns the prompts whose draws are all written."""
        if self.rows:
            self.can_shrink = len(self.rows) > 1
            if self.cursor >= self.mask.shape[1]:
                self._set_cursor(0)
            n = len(self.rows)
            self.mask[:n, self.cursor] = 1
            last = torch.tensor([[row.ids[-1]] for row in self.rows], device=self.vlm.device)
            positions = self.positions[:n]
            output = self.model(
                input_ids=last,
                attention_mask=self.mask[:n, : self.cursor + 1],
                position_ids=positions if positions.shape[1] == 1 else positions.T[:, :, None],
                past_key_values=Cache(layers=list(self.layers)),
                use_cache=True,
                return_dict=True,
            )
            self.positions[:n] += 1
            self._record(self.rows, output.logits[:, -1])
        whole = [group for group in self.groups.values() if None not in group.written]
        return [(group.index, [text for text in group.written if text is not None]) for group in whole]

    def _record(self, rows: Sequence[_Row], logits: torch.Tensor) -> None:
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
            to, source = (torch.tensor(slots, device=self.vlm.device) for slots in (holes, movers))
            for layer in self.layers:
                layer.keys[to, :, : layer.cursor] = layer.keys[source, :, : layer.cursor]
                layer.values[to, :, : layer.cursor] = layer.values[source, :, : layer.cursor]
            self.mask[to] = self.mask[source]
            self.positions[to] = self.positions[source]
            for hole, mover in zip(holes, movers, strict=True):
                self.rows[hole] = self.rows[mover]
        del self.rows[n:]


def _uniforms(draw: Draw, count: int) -> list[float]:
    """The draw's own random numbers, the same whatever else is decoded."""
    if draw.temperature <= 0:
        return [0.0] * count
    generator = torch.Generator().manual_seed(draw.seed)
    numbers: list[float] = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    return numbers
