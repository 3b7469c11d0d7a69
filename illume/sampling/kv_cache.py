"""Keys and values of rows that decode together: what every cache does, and the one that suits any model.

`illume.sampling.shared_prefix` has the other one, which holds a prompt once for all of its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

KeysAndValues = list[tuple[torch.Tensor, torch.Tensor]]
"""Of one prompt, a pair for each layer: (heads, tokens, width) each."""

_SHIFT_GAIN = 16
"""Unused places worth moving the cache for when rows join."""


@dataclass(eq=False)
class Prefix:
    """An encoded prompt: what its rows go on from. A cache that keeps the keys and values itself empties `layers`."""

    key: int
    layers: KeysAndValues
    length: int
    first_position: torch.Tensor


class RowCache(Protocol):
    """What the pool asks of a cache. Sizes are in cached tokens; rows are numbered from 0 without holes."""

    @property
    def n_rows(self) -> int:
        """Rows there is room for."""

    def cost(self, length: int, n_draws: int) -> int:
        """What a prompt of `length` tokens with so many draws takes."""

    def room(self, n_rows: int) -> int:
        """What is left for new prompts beside so many rows."""

    def make_room(self, prefixes: Sequence[Prefix], *, n_rows: int, wanted: int, later: int) -> int:
        """How many rows may join the `n_rows` there are, once room was made: `wanted` of `prefixes`, others `later`."""

    def join(self, n_rows: int, prefixes: Sequence[Prefix]) -> None:
        """Rows, each of the prefix given, join the `n_rows` there are."""

    def step(self, model: Any, last: torch.Tensor) -> torch.Tensor:
        """The logits (rows, vocabulary) behind the `last` token (rows, 1) of every row."""

    def copy_rows(self, source: Sequence[int], to: Sequence[int]) -> None:
        """Rows `source` take the places of rows `to`."""

    def release(self, key: int) -> None:
        """No row will go on from this prefix any more."""


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of all rows in buffers made once, (rows, heads, places, width); `cursor` places are in use."""

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, n_rows: int, n_places: int) -> None:
        super().__init__()
        # Zeros, not whatever the memory held: a masked place still meets its value, and nothing times NaN is NaN.
        self.keys = keys.new_zeros((n_rows, keys.shape[0], n_places, keys.shape[2]))
        self.values = values.new_zeros((n_rows, values.shape[0], n_places, values.shape[2]))
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


class SlotCache:
    """Each row has a copy of its prompt's keys and values, whose places the model's own attention mask names.

    All rows write at one common cursor, so a row that joins late has unused, masked places before its prompt.
    """

    def __init__(self, device: torch.device, *, max_new_tokens: int, token_budget: int) -> None:
        self.max_new_tokens, self.token_budget = max_new_tokens, token_budget
        self.layers: list[SlotLayer] = []
        self.mask = torch.zeros((0, 0), dtype=torch.long, device=device)
        self.positions = torch.zeros((0, 1), dtype=torch.long, device=device)
        self.lengths: list[int] = []  # of what each row holds

    @property
    def n_rows(self) -> int:
        return int(self.mask.shape[0])

    @property
    def n_places(self) -> int:
        """Tokens a row has room for."""
        return int(self.mask.shape[1])

    @property
    def cursor(self) -> int:
        """Places in use."""
        return self.layers[0].cursor if self.layers else 0

    # The prompt's own keys and values are kept beside the rows' copies: its share is counted too.

    def cost(self, length: int, n_draws: int) -> int:
        return n_draws * self._places(length) + length

    def room(self, n_rows: int) -> int:
        if not self.layers:
            return self.token_budget
        return int((1 - n_rows / self.n_rows) * self.token_budget)

    def _places(self, length: int) -> int:
        """Places a row needs, with some to spare so that the cache is seldom moved."""
        return length + self.max_new_tokens + max(8, self.max_new_tokens // 2)

    def make_room(self, prefixes: Sequence[Prefix], *, n_rows: int, wanted: int, later: int) -> int:
        longest = max(prefix.length for prefix in prefixes)
        if not n_rows and self.n_places < longest + self.max_new_tokens:
            share = longest * len(prefixes) / wanted
            most = max(1, int(self.token_budget / (self._places(longest) + share)))
            self._make(prefixes[0], min(most, wanted + later), self._places(longest))
        return self.n_rows - n_rows if self.n_places >= longest + self.max_new_tokens else 0

    def _make(self, like: Prefix, n_rows: int, n_places: int) -> None:
        """New buffers, in place of the old ones."""
        self.layers = [SlotLayer(keys, values, n_rows, n_places) for keys, values in like.layers]
        self.mask = self.mask.new_zeros((n_rows, n_places))
        self.positions = self.positions.new_zeros((n_rows, like.first_position.shape[0]))
        self.lengths = [0] * n_rows

    def join(self, n_rows: int, prefixes: Sequence[Prefix]) -> None:
        self._set_cursor(max(prefix.length for prefix in prefixes), n_rows)
        first = n_rows
        for _, same in groupby(prefixes, key=lambda prefix: prefix.key):
            together = list(same)
            self._fill(slice(first, first + len(together)), together[0])
            first += len(together)

    def _fill(self, rows: slice, prefix: Prefix) -> None:
        """Gives each of `rows` a copy of the prompt's keys and values, which end at the cursor."""
        places = slice(self.cursor - prefix.length, self.cursor)
        for layer, (keys, values) in zip(self.layers, prefix.layers, strict=True):
            layer.keys[rows, :, places] = keys
            layer.values[rows, :, places] = values
        self.mask[rows] = 0
        self.mask[rows, places] = 1
        self.positions[rows] = prefix.first_position
        self.lengths[rows] = [prefix.length] * (rows.stop - rows.start)

    def _set_cursor(self, needed: int, n_rows: int) -> None:
        """Moves what the rows hold so that the cursor is at least `needed`, and not much more than any row needs."""
        target = max([needed, *self.lengths[:n_rows]])
        full = self.cursor >= self.n_places
        if not n_rows or self.cursor < target or self.cursor - target >= _SHIFT_GAIN or full:
            self._move(target - self.cursor, n_rows)

    def _move(self, by: int, n_rows: int) -> None:
        """Moves what the first `n_rows` rows hold, and the cursor, by so many places."""
        n, old, new = n_rows, self.cursor, self.cursor + by
        kept = min(old, new)
        for layer in self.layers:
            if n:
                for buffer in (layer.keys, layer.values):
                    buffer[:n, :, new - kept : new] = buffer[:n, :, old - kept : old].clone()
            layer.cursor = new
        if n:
            mask = self.mask[:n, old - kept : old].clone()
            self.mask[:n] = 0
            self.mask[:n, new - kept : new] = mask

    def step(self, model: Any, last: torch.Tensor) -> torch.Tensor:
        n = last.shape[0]
        if self.cursor >= self.n_places:
            self._set_cursor(0, n)
        self.mask[:n, self.cursor] = 1
        output = model(
            input_ids=last,
            attention_mask=self.mask[:n, : self.cursor + 1],
            position_ids=positions_of(self.positions[:n]),
            past_key_values=Cache(layers=list(self.layers)),
            use_cache=True,
            return_dict=True,
        )
        self.positions[:n] += 1
        self.lengths[:n] = [length + 1 for length in self.lengths[:n]]
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def copy_rows(self, source: Sequence[int], to: Sequence[int]) -> None:
        into, out_of = (torch.tensor(slots, device=self.mask.device) for slots in (to, source))
        for layer in self.layers:
            layer.keys[into, :, : layer.cursor] = layer.keys[out_of, :, : layer.cursor]
            layer.values[into, :, : layer.cursor] = layer.values[out_of, :, : layer.cursor]
        self.mask[into] = self.mask[out_of]
        self.positions[into] = self.positions[out_of]
        for one, other in zip(source, to, strict=True):
            self.lengths[other] = self.lengths[one]

    def release(self, key: int) -> None:
        """The prompt's own keys and values go with its `Prefix`."""


def positions_of(positions: torch.Tensor) -> torch.Tensor:
    """Position ids as a model takes them, of (rows, dimensions): (rows, 1), or (dimensions, rows, 1) where several."""
    return positions if positions.shape[1] == 1 else positions.T[:, :, None]
