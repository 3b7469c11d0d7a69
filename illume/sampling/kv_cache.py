"""KV caches of the decoding batch: their interface, and the one that works with every model.

`illume.sampling.shared_prefix` has the other one, which stores a prompt once for all of its rows.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

KeysAndValues = list[tuple[torch.Tensor, torch.Tensor]]
"""The keys and values of one prompt: a pair for each layer, each tensor (heads, tokens, head_dim)."""

_MIN_SHIFT = 16
"""Unused columns that are worth moving the contents of the cache when rows are added."""


@dataclass(eq=False)
class Prefix:
    """An encoded prompt that rows continue. A cache that stores the keys and values itself empties `layers`."""

    key: int
    layers: KeysAndValues
    length: int  # in tokens
    first_position: torch.Tensor  # (dimensions,) position id of the first generated token


class DecodingCache(Protocol):
    """What the batch scheduler needs of a KV cache. Sizes are in cached tokens; rows are numbered from 0 without gaps.

    `n_rows` arguments are the number of rows in use; in `free_tokens` and `reserve_rows`, that may still be needed.
    """

    @property
    def n_rows(self) -> int:
        """The number of rows that are allocated."""

    def cost(self, length: int, n_completions: int) -> int:
        """Tokens that a prompt of `length` tokens with `n_completions` completions takes."""

    def free_tokens(self, n_rows: int, *, new: Sequence[Prefix] = (), without: Container[int] = ()) -> int:
        """Tokens that are left for further prompts, if `new` ones came and those whose keys are in `without` went."""

    def reserve_rows(self, prefixes: Sequence[Prefix], *, n_rows: int, wanted: int, later: int) -> int:
        """Allocates rows as needed, and returns how many may be added now.

        `wanted` rows continue one of `prefixes`; `later` more will come from prompts that are not encoded yet.
        """

    def add_rows(self, n_rows: int, prefixes: Sequence[Prefix]) -> None:
        """Adds a row for each of `prefixes`, after the first `n_rows` rows."""

    def forward(self, model: Any, last_tokens: torch.Tensor) -> torch.Tensor:
        """Feeds `last_tokens` (rows, 1) to the model. Returns the next logits (rows, vocabulary)."""

    def copy_rows(self, source: Sequence[int], to: Sequence[int]) -> None:
        """Copies the rows `source`, which may repeat, over the rows `to`; rows behind those in use are added in order.

        No row is in both.
        """

    def release_prefix(self, key: int) -> None:
        """Tells the cache that no further row will continue this prefix."""


class CopiedPrefixLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of `CopiedPrefixCache`: preallocated keys and values, each (rows, heads, columns, head_dim).

    The first `cursor` columns are in use.
    """

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, n_rows: int, n_columns: int) -> None:
        """Allocates buffers shaped after `keys` and `values` of a prompt, each (heads, tokens, head_dim)."""
        super().__init__()
        # Zeros, not uninitialised memory: attention multiplies masked values by zero, and zero times NaN is NaN.
        self.keys = keys.new_zeros((n_rows, keys.shape[0], n_columns, keys.shape[2]))
        self.values = values.new_zeros((n_rows, values.shape[0], n_columns, values.shape[2]))
        self.is_initialized = True
        self.cursor = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Does nothing: the buffers are allocated at construction."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends keys and values (rows, heads, tokens, head_dim); returns all that are cached."""
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


class CopiedPrefixCache:
    """A KV cache in which each row has a copy of its prompt's keys and values. It works with every model.

    All rows write to the same column, at the cursor. A prompt's copy ends at the cursor when its row is added, so a row
    that joins late has unused columns before its prompt. The attention mask (rows, columns) hides them.
    """

    def __init__(self, device: torch.device, *, max_new_tokens: int, token_budget: int) -> None:
        self.max_new_tokens, self.token_budget = max_new_tokens, token_budget
        self.layers: list[CopiedPrefixLayer] = []
        self.mask = torch.zeros((0, 0), dtype=torch.long, device=device)  # (rows, columns)
        self.positions = torch.zeros((0, 1), dtype=torch.long, device=device)  # (rows, dimensions)
        self.lengths: list[int] = []  # tokens in each row

    @property
    def n_rows(self) -> int:
        return int(self.mask.shape[0])

    @property
    def n_columns(self) -> int:
        """Tokens that a row has room for."""
        return int(self.mask.shape[1])

    @property
    def cursor(self) -> int:
        """The number of columns in use."""
        return self.layers[0].cursor if self.layers else 0

    def cost(self, length: int, n_completions: int) -> int:
        # The keys and values of the prompt itself stay in memory beside the rows' copies.
        return n_completions * self._columns_for(length) + length

    def free_tokens(self, n_rows: int, *, new: Sequence[Prefix] = (), without: Container[int] = ()) -> int:  # noqa: ARG002 - prompts are in the rows
        if not self.layers:
            return self.token_budget
        return int((1 - n_rows / self.n_rows) * self.token_budget)

    def _columns_for(self, length: int) -> int:
        """Columns for a prompt of `length` tokens, with spare ones so that the contents are rarely moved."""
        return length + self.max_new_tokens + max(8, self.max_new_tokens // 2)

    def reserve_rows(self, prefixes: Sequence[Prefix], *, n_rows: int, wanted: int, later: int) -> int:
        longest = max(prefix.length for prefix in prefixes)
        if not n_rows and self.n_columns < longest + self.max_new_tokens:
            prompt_tokens_per_row = longest * len(prefixes) / wanted
            limit = max(1, int(self.token_budget / (self._columns_for(longest) + prompt_tokens_per_row)))
            self._allocate(prefixes[0], min(limit, wanted + later), self._columns_for(longest))
        return self.n_rows - n_rows if self.n_columns >= longest + self.max_new_tokens else 0

    def _allocate(self, like: Prefix, n_rows: int, n_columns: int) -> None:
        """Replaces the buffers by new, empty ones."""
        self.layers = [CopiedPrefixLayer(keys, values, n_rows, n_columns) for keys, values in like.layers]
        self.mask = self.mask.new_zeros((n_rows, n_columns))
        self.positions = self.positions.new_zeros((n_rows, like.first_position.shape[0]))
        self.lengths = [0] * n_rows

    def add_rows(self, n_rows: int, prefixes: Sequence[Prefix]) -> None:
        self._set_cursor(max(prefix.length for prefix in prefixes), n_rows)
        first = n_rows
        for _, group in groupby(prefixes, key=lambda prefix: prefix.key):
            same = list(group)
            self._copy_prefix(slice(first, first + len(same)), same[0])
            first += len(same)

    def _copy_prefix(self, rows: slice, prefix: Prefix) -> None:
        """Copies the prompt's keys and values into each of `rows`, so that they end at the cursor."""
        columns = slice(self.cursor - prefix.length, self.cursor)
        for layer, (keys, values) in zip(self.layers, prefix.layers, strict=True):
            layer.keys[rows, :, columns] = keys
            layer.values[rows, :, columns] = values
        self.mask[rows] = 0
        self.mask[rows, columns] = 1
        self.positions[rows] = prefix.first_position
        self.lengths[rows] = [prefix.length] * (rows.stop - rows.start)

    def _set_cursor(self, min_cursor: int, n_rows: int) -> None:
        """Moves the contents so that the cursor is at least `min_cursor`, and leaves few unused columns.

        Nothing is moved when that would free less than `_MIN_SHIFT` columns and there are columns left.
        """
        target = max([min_cursor, *self.lengths[:n_rows]])
        full = self.cursor >= self.n_columns
        if not n_rows or self.cursor < target or self.cursor - target >= _MIN_SHIFT or full:
            self._shift(target - self.cursor, n_rows)

    def _shift(self, by: int, n_rows: int) -> None:
        """Moves the contents of the first `n_rows` rows, and the cursor, by this number of columns."""
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

    def forward(self, model: Any, last_tokens: torch.Tensor) -> torch.Tensor:
        n = last_tokens.shape[0]
        if self.cursor >= self.n_columns:
            self._set_cursor(0, n)
        self.mask[:n, self.cursor] = 1
        output = model(
            input_ids=last_tokens,
            attention_mask=self.mask[:n, : self.cursor + 1],
            position_ids=to_position_ids(self.positions[:n]),
            past_key_values=Cache(layers=list(self.layers)),
            use_cache=True,
            return_dict=True,
        )
        self.positions[:n] += 1
        self.lengths[:n] = [length + 1 for length in self.lengths[:n]]
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def copy_rows(self, source: Sequence[int], to: Sequence[int]) -> None:
        to_rows, source_rows = (torch.tensor(rows, device=self.mask.device) for rows in (to, source))
        for layer in self.layers:
            layer.keys[to_rows, :, : layer.cursor] = layer.keys[source_rows, :, : layer.cursor]
            layer.values[to_rows, :, : layer.cursor] = layer.values[source_rows, :, : layer.cursor]
        self.mask[to_rows] = self.mask[source_rows]
        self.positions[to_rows] = self.positions[source_rows]
        for from_row, to_row in zip(source, to, strict=True):
            self.lengths[to_row] = self.lengths[from_row]

    def release_prefix(self, key: int) -> None:
        """Does nothing: the prompt's own keys and values are freed with its `Prefix`."""


def to_position_ids(positions: torch.Tensor) -> torch.Tensor:
    """Turns positions (rows, dimensions) into the position ids that a model expects.

    (rows, 1) for one dimension; (dimensions, rows, 1) for several, as in models with multimodal rotary embeddings.
    """
    return positions if positions.shape[1] == 1 else positions.T[:, :, None]
