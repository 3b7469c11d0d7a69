"""Keys and values of rows that decode together, over buffers of fixed size.

All rows write at one common cursor, so a row that joins late has unused, masked places before its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

KeysAndValues = list[tuple[torch.Tensor, torch.Tensor]]
"""Of one prompt, a pair for each layer: (heads, tokens, width) each."""


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
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


class RowCache:
    """The buffers of all layers, with each row's mask over their places and the position of its next token."""

    def __init__(self, device: torch.device) -> None:
        self.layers: list[SlotLayer] = []
        self.mask = torch.zeros((0, 0), dtype=torch.long, device=device)
        self.positions = torch.zeros((0, 1), dtype=torch.long, device=device)

    @property
    def n_rows(self) -> int:
        """Rows there is room for."""
        return int(self.mask.shape[0])

    @property
    def n_places(self) -> int:
        """Tokens a row has room for."""
        return int(self.mask.shape[1])

    @property
    def cursor(self) -> int:
        """Places in use."""
        return self.layers[0].cursor if self.layers else 0

    def make(self, like: KeysAndValues, first_position: torch.Tensor, *, n_rows: int, n_places: int) -> None:
        """New buffers, in place of the old ones, for prompts such as the one whose keys and values are `like`."""
        self.layers = [SlotLayer(keys[None], values[None], n_rows, n_places) for keys, values in like]
        self.mask = self.mask.new_zeros((n_rows, n_places))
        self.positions = self.positions.new_zeros((n_rows, first_position.shape[0]))

    def fill(self, rows: slice, prompt: KeysAndValues, first_position: torch.Tensor) -> None:
        """Gives each of `rows` a copy of the prompt's keys and values, which end at the cursor."""
        length = prompt[0][0].shape[1]
        places = slice(self.cursor - length, self.cursor)
        for layer, (keys, values) in zip(self.layers, prompt, strict=True):
            layer.keys[rows, :, places] = keys
            layer.values[rows, :, places] = values
        self.mask[rows] = 0
        self.mask[rows, places] = 1
        self.positions[rows] = first_position

    def move(self, by: int, *, n_rows: int) -> None:
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

    def next_inputs(self, n_rows: int) -> dict[str, Any]:
        """What the model is given besides the last tokens of the first `n_rows` rows, whose next place is now used."""
        self.mask[:n_rows, self.cursor] = 1
        positions = self.positions[:n_rows]
        return {
            "attention_mask": self.mask[:n_rows, : self.cursor + 1],
            "position_ids": positions if positions.shape[1] == 1 else positions.T[:, :, None],
            "past_key_values": Cache(layers=list(self.layers)),
        }

    def advance(self, n_rows: int) -> None:
        """The first `n_rows` rows wrote one token."""
        self.positions[:n_rows] += 1

    def copy_rows(self, source: Sequence[int], to: Sequence[int]) -> None:
        """Rows `source` take the places of rows `to`."""
        into, out_of = (torch.tensor(slots, device=self.mask.device) for slots in (to, source))
        for layer in self.layers:
            layer.keys[into, :, : layer.cursor] = layer.keys[out_of, :, : layer.cursor]
            layer.values[into, :, : layer.cursor] = layer.values[out_of, :, : layer.cursor]
        self.mask[into] = self.mask[out_of]
        self.positions[into] = self.positions[out_of]
