"""A cache that holds each prompt once for all rows that go on from it, and the attention that reads it.

A row attends to its prompt, together with all other rows of it, and to its own tokens; the two are put together by
their sums of exponentials, which is the same as one attention over both. Works with every model whose text layers call
transformers' attention interface and attend fully or over a sliding window; others get `illume.sampling.kv_cache`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from illume.sampling.kv_cache import Prefix, positions_of

_NAME = "illume_shared_prompts"

_GROWTH = 16
"""Places that all rows get when one of them has no more."""

_IGNORED_INPUTS = frozenset({"position_ids", "cache_position", "input_ids"})
"""Tensors that models hand to attention functions for kernels of other kinds."""


class CannotShare(RuntimeError):
    """The model's attention is of a kind that this cache does not know."""


def can_share(model: Any) -> bool:
    """Whether prompts can be shared, as far as the model's declarations say."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    return bool(
        getattr(type(decoder), "_supports_attention_backend", False)
        and kinds <= {"full_attention", "sliding_attention"}
        and not getattr(config, "attention_chunk_size", None)
    )


class SharedLayer(CacheLayerMixin):  # type: ignore[misc]
    """Of one layer: the prompts' keys and values (prompts, heads, tokens, width) and the rows' own."""

    is_sliding = False

    def __init__(self, cache: SharedCache, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.cache = cache
        self.prompt_keys, self.prompt_values = keys.new_zeros(0), values.new_zeros(0)
        self.keys, self.values = (one.new_zeros((0, one.shape[0], 0, one.shape[2])) for one in (keys, values))
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is left to make."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        plan = self.cache.plan
        self.keys[plan.rows, :, plan.places] = key_states[:, :, 0]
        self.values[plan.rows, :, plan.places] = value_states[:, :, 0]
        n, end = len(plan.rows), plan.n_places
        self.cache.updated = (self, self.keys[:n, :, :end])
        return self.cache.updated[1], self.values[:n, :, :end]

    def arrange(self, kept: Sequence[int], new: Sequence[tuple[torch.Tensor, torch.Tensor]], longest: int) -> None:
        """The prompts' keys and values anew: the `kept` ones, then the `new`, with places for `longest` tokens."""
        for name, place in (("prompt_keys", 0), ("prompt_values", 1)):
            old, added = getattr(self, name), [pair[place] for pair in new]
            like = added[0] if added else old[0]
            buffer = like.new_empty((len(kept) + len(new), like.shape[0], longest, like.shape[2]))
            if kept:
                _fill(buffer[: len(kept)], old[list(kept)])
            for slot, one in enumerate(added, start=len(kept)):
                _fill(buffer[slot], one)
            setattr(self, name, buffer)

    def resize(self, n_rows: int, n_places: int) -> None:
        """Room for so many rows and tokens of each; what fits stays."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            if old.shape[0] != n_rows or old.shape[2] != n_places:
                buffer = old.new_empty((n_rows, old.shape[1], n_places, old.shape[3]))
                rows = min(n_rows, old.shape[0])
                _fill(buffer[:rows], old[:rows])
                buffer[rows:].zero_()
                setattr(self, name, buffer)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return int(self.prompt_keys.shape[2]) + self.cache.plan.n_places

    def get_max_length(self) -> int:
        return -1


def _fill(buffer: torch.Tensor, tokens: torch.Tensor) -> None:
    """Puts `tokens` (..., tokens, width) at the beginning of `buffer`, as many as fit, and zeros behind them.

    Not whatever the memory held: a masked place still meets its value, and nothing times NaN is NaN.
    """
    n = min(buffer.shape[-2], tokens.shape[-2])
    buffer[..., :n, :] = tokens[..., :n, :]
    buffer[..., n:, :].zero_()


@dataclass
class Plan:
    """Where the rows of one step stand. `seats` numbers the rows in (prompts, rows of a prompt at most)."""

    rows: torch.Tensor  # (rows,), 0, 1, 2 ...
    seats: torch.Tensor  # (rows,)
    n_prompts: int
    n_seats: int  # of a prompt
    lengths: torch.Tensor  # (prompts,) tokens of each prompt
    slots: torch.Tensor  # (rows,) the prompt of each row
    places: torch.Tensor  # (rows,) tokens each row has written
    n_places: int  # tokens of the longest row, with the present one
    masks: dict[int | None, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def masks_of(self, window: int | None, repeats: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What to add to the scores: over the prompts, (prompts, 1, seats or 1, tokens), and over a row's own tokens.

        The latter is (rows, 1, 1, tokens). `repeats` heads of the query share a head of the keys.
        """
        if window not in self.masks:
            lowest = torch.finfo(torch.float32).min
            tokens = torch.arange(int(self.lengths.max()), device=self.rows.device)
            own = torch.arange(self.n_places, device=self.rows.device)
            hidden = tokens >= self.lengths[:, None]
            ahead = own > self.places[:, None]
            if window is not None:
                ahead |= self.places[:, None] - own >= window
                far = (self.lengths[self.slots] + self.places)[:, None] - tokens >= window
                seated = far.new_zeros((self.n_prompts * self.n_seats, len(tokens)))
                seated[self.seats] = far
                seated = seated.view(self.n_prompts, self.n_seats, -1) | hidden[:, None]
                hidden_by_seat = seated.repeat_interleave(repeats, dim=1)
            else:
                hidden_by_seat = hidden[:, None]
            self.masks[window] = (hidden_by_seat[:, None] * lowest, ahead[:, None, None] * lowest)
        return self.masks[window]


class SharedCache:
    """Rows that share what their prompts left; a row's own tokens are all that it holds."""

    def __init__(self, model: Any, device: torch.device, *, max_new_tokens: int, token_budget: int) -> None:
        self.max_new_tokens, self.token_budget = max_new_tokens, token_budget
        self.configs = list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())
        self.device = device
        self.layers: list[SharedLayer] = []
        self.prefixes: list[Prefix] = []  # by slot
        self.slots: dict[int, int] = {}  # of the prompts that rows may still go on from
        self.owners: list[int] = []  # the prompt of each row
        self.written: list[int] = []  # tokens of each row that were fed to the model
        self.positions = torch.zeros((0, 1), dtype=torch.long, device=device)
        self.plan: Plan
        self.updated: tuple[SharedLayer, torch.Tensor] | None = None
        self.n_read = 0  # layers whose attention read from here in the present step

    @property
    def n_rows(self) -> int:
        return int(self.positions.shape[0])

    @property
    def _longest(self) -> int:
        return max((self.prefixes[slot].length for slot in self.slots.values()), default=0)

    def cost(self, length: int, n_draws: int) -> int:
        return n_draws * self.max_new_tokens + length

    def room(self, n_rows: int) -> int:
        return self.token_budget - len(self.slots) * self._longest - n_rows * self.max_new_tokens

    def make_room(self, prefixes: Sequence[Prefix], *, n_rows: int, wanted: int, later: int) -> int:  # noqa: ARG002 - later rows get room when they come
        new = [prefix for prefix in prefixes if prefix.key not in self.slots]
        if new:
            longest = max(self._longest, *(prefix.length for prefix in new))
            left = self.token_budget - (len(self.slots) + len(new)) * longest
            most = max(1, n_rows, left // self.max_new_tokens)
            self._arrange(new, min(n_rows + wanted, most))
        return self.n_rows - n_rows

    def _arrange(self, new: Sequence[Prefix], n_rows: int) -> None:
        """Buffers without the prompts that were released, with the `new` ones, and with room for `n_rows` rows."""
        if not self.layers:
            self.layers = [SharedLayer(self, keys, values) for keys, values in new[0].layers]
            self.positions = self.positions.new_zeros((0, new[0].first_position.shape[0]))
        kept = sorted(self.slots.values())
        self.prefixes = [self.prefixes[slot] for slot in kept] + list(new)
        self.slots = {prefix.key: slot for slot, prefix in enumerate(self.prefixes)}
        n_places = max(self.layers[0].keys.shape[2], min(self.max_new_tokens, _GROWTH))
        for layer in self.layers:
            layer.arrange(kept, [prefix.layers.pop(0) for prefix in new], self._longest)
            layer.resize(n_rows, n_places)
        positions = self.positions.new_zeros((n_rows, self.positions.shape[1]))
        alive = min(n_rows, len(self.positions))
        positions[:alive] = self.positions[:alive]
        self.positions = positions

    def join(self, n_rows: int, prefixes: Sequence[Prefix]) -> None:
        self.owners[n_rows:] = [prefix.key for prefix in prefixes]
        self.written[n_rows:] = [0] * len(prefixes)
        self.positions[n_rows : len(self.owners)] = torch.stack([prefix.first_position for prefix in prefixes])

    def step(self, model: Any, last: torch.Tensor) -> torch.Tensor:
        n = last.shape[0]
        del self.owners[n:], self.written[n:]
        self.plan = self._plan()
        if self.plan.n_places > self.layers[0].keys.shape[2]:
            for layer in self.layers:
                layer.resize(self.n_rows, min(self.max_new_tokens, self.plan.n_places + _GROWTH))
        self.n_read = 0
        with _reading(self):
            output = model(
                input_ids=last,
                position_ids=positions_of(self.positions[:n]),
                past_key_values=Cache(layers=list(self.layers)),
                use_cache=True,
                return_dict=True,
            )
        if self.n_read != len(self.layers):
            raise CannotShare(f"{self.n_read} of {len(self.layers)} layers call transformers' attention interface")
        self.positions[:n] += 1
        self.written = [count + 1 for count in self.written]
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _plan(self) -> Plan:
        seated = [0] * len(self.prefixes)
        seats: list[tuple[int, int]] = []
        for key in self.owners:
            slot = self.slots[key]
            seats.append((slot, seated[slot]))
            seated[slot] += 1
        n_seats, n_places = max(seated), max(self.written) + 1
        numbers = (
            [slot for slot, _ in seats],
            [slot * n_seats + seat for slot, seat in seats],
            self.written,
            range(len(seats)),
        )
        slots, flat, places, rows = torch.tensor([list(one) for one in numbers], device=self.device)
        lengths = torch.tensor([prefix.length for prefix in self.prefixes], device=self.device)
        return Plan(rows, flat, len(self.prefixes), n_seats, lengths, slots, places, n_places)

    def copy_rows(self, source: Sequence[int], to: Sequence[int]) -> None:
        into, out_of = (torch.tensor(slots, device=self.device) for slots in (to, source))
        end = max(self.written[row] for row in source)
        for layer in self.layers:
            for buffer in (layer.keys, layer.values):
                buffer[into, :, :end] = buffer[out_of, :, :end]
        self.positions[into] = self.positions[out_of]
        for one, other in zip(source, to, strict=True):
            self.owners[other], self.written[other] = self.owners[one], self.written[one]

    def release(self, key: int) -> None:
        self.slots.pop(key, None)
        if self.slots and 2 * len(self.slots) <= len(self.prefixes):
            self._arrange((), self.n_rows)


_READ: ContextVar[SharedCache] = ContextVar("illume_shared_cache")


@contextmanager
def _reading(cache: SharedCache) -> Iterator[None]:
    """Within it the model's attention reads from `cache`."""
    kept = [(config, config._attn_implementation) for config in cache.configs]
    token = _READ.set(cache)
    try:
        for config in cache.configs:
            config._attn_implementation = _NAME
        yield
    finally:
        for config, implementation in kept:  # outer ones first, as these write into those within
            config._attn_implementation = implementation
        _READ.reset(token)


def attend_shared(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - always None: transformers makes no mask for this attention
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one query a row, (rows, heads, 1, width), over its prompt and its own tokens."""
    cache = _READ.get()
    unknown = {name for name, other in others.items() if isinstance(other, torch.Tensor)} - _IGNORED_INPUTS
    if cache.updated is None or cache.updated[1] is not key or unknown or query.shape[2] != 1:
        raise CannotShare(f"attention of {type(module).__name__} with {sorted(unknown)}")
    cache.n_read += 1
    layer, plan = cache.updated[0], cache.plan
    n, heads, width = len(plan.rows), key.shape[1], query.shape[3]
    repeats = query.shape[1] // heads
    scaling = width**-0.5 if scaling is None else scaling
    hidden, ahead = plan.masks_of(sliding_window, repeats)
    rows = query.reshape(n, heads, repeats, width)
    own, own_sum = _attend(rows, key, value, ahead, scaling, softcap)

    seats = rows.new_zeros((plan.n_prompts * plan.n_seats, heads, repeats, width))
    seats[plan.seats] = rows
    seats = seats.view(plan.n_prompts, plan.n_seats, heads, repeats, width).transpose(1, 2)
    seats = seats.reshape(plan.n_prompts, heads, plan.n_seats * repeats, width)
    seen, seen_sum = (
        one.view(plan.n_prompts, heads, plan.n_seats, repeats, -1).transpose(1, 2).flatten(0, 1)[plan.seats]
        for one in _attend(seats, layer.prompt_keys, layer.prompt_values, hidden, scaling, softcap)
    )
    output = torch.lerp(own, seen, (seen_sum - own_sum).sigmoid())
    return output.reshape(n, 1, query.shape[1], -1).to(query.dtype), None


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in single precision, and the logarithms of the sums of the exponentials it divided by."""
    scores = (query @ keys.transpose(-1, -2)).float() * scaling
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores += mask
    top = scores.amax(dim=-1, keepdim=True)
    weights = (scores - top).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    return (weights.to(values.dtype) @ values).float() / total, top + total.log()


AttentionInterface.register(_NAME, attend_shared)
