"""A KV cache that stores each prompt once for all rows that continue it, and the attention that reads it.

For a query of one token, attention over prompt and own tokens is split in two: all rows of a prompt attend to the
shared prompt together, and each row attends to its own tokens. The two results are combined by the log-sum-exp of their
scores, which is exact. This works with every model whose text layers call transformers' attention interface, with full
or sliding-window attention. Other models use `illume.sampling.kv_cache.CopiedPrefixCache`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from illume.sampling.kv_cache import Prefix, to_position_ids

ATTENTION_NAME = "illume_shared_prefix"
"""The name under which `attend_with_shared_prefix` is registered with transformers."""

_GROWTH = 16
"""Columns that are added to all rows when one of them is full."""

_WORTH_REBUILDING = 1.25
"""By how much the number of rows must grow for the prompts to be copied, if none of them is new."""

_IGNORED_INPUTS = frozenset({"position_ids", "cache_position", "input_ids"})
"""Tensors that models pass to every attention function, but that only other implementations need."""


class UnsupportedAttentionError(RuntimeError):
    """The model's attention cannot be computed over a shared prefix."""


def supports_shared_prefixes(model: Any) -> bool:
    """Whether the model's declarations allow shared prefixes. A model may still turn out not to support them."""
    config = model.config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or ())
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    return bool(
        getattr(type(decoder), "_supports_attention_backend", False)
        and layer_types <= {"full_attention", "sliding_attention"}
        and not getattr(config, "attention_chunk_size", None)
    )


# The cache


class SharedPrefixLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of `SharedPrefixCache`.

    `prompt_keys` and `prompt_values` are (prompts, heads, tokens, head_dim). `keys` and `values` are those of the rows'
    own tokens, (rows, heads, columns, head_dim).
    """

    is_sliding = False

    def __init__(self, cache: SharedPrefixCache, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.cache = cache
        self.prompt_keys, self.prompt_values = keys.new_zeros(0), values.new_zeros(0)
        self.keys, self.values = (one.new_zeros((0, one.shape[0], 0, one.shape[2])) for one in (keys, values))
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Does nothing: the cache allocates the buffers."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends keys and values (rows, heads, 1, head_dim); returns those of the rows' own tokens."""
        layout = self.cache.layout
        self.keys[layout.rows, :, layout.row_lengths] = key_states[:, :, 0]
        self.values[layout.rows, :, layout.row_lengths] = value_states[:, :, 0]
        n, end = len(layout.rows), layout.n_columns
        self.cache.last_update = (self, self.keys[:n, :, :end])
        return self.cache.last_update[1], self.values[:n, :, :end]

    def set_prompts(self, kept: Sequence[int], new: Sequence[tuple[torch.Tensor, torch.Tensor]], longest: int) -> None:
        """Rebuilds the prompts' keys and values from the `kept` prompts and the `new` ones, (heads, tokens, head_dim).

        The new buffers have room for `longest` tokens of each prompt.
        """
        for name, which in (("prompt_keys", 0), ("prompt_values", 1)):
            old, added = getattr(self, name), [pair[which] for pair in new]
            like = added[0] if added else old[0]
            buffer = like.new_empty((len(kept) + len(new), like.shape[0], longest, like.shape[2]))
            if kept:
                _copy_and_zero(buffer[: len(kept)], old[list(kept)])
            for prompt, one in enumerate(added, start=len(kept)):
                _copy_and_zero(buffer[prompt], one)
            setattr(self, name, buffer)

    def resize(self, n_rows: int, n_columns: int) -> None:
        """Reallocates the rows' own keys and values; the contents that fit are kept."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            if old.shape[0] != n_rows or old.shape[2] != n_columns:
                buffer = old.new_empty((n_rows, old.shape[1], n_columns, old.shape[3]))
                rows = min(n_rows, old.shape[0])
                _copy_and_zero(buffer[:rows], old[:rows])
                buffer[rows:].zero_()
                setattr(self, name, buffer)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return int(self.prompt_keys.shape[2]) + self.cache.layout.n_columns

    def get_max_length(self) -> int:
        return -1


def _copy_and_zero(buffer: torch.Tensor, tokens: torch.Tensor) -> None:
    """Copies as many `tokens` (..., tokens, head_dim) into `buffer` as fit, and fills the rest with zeros.

    Uninitialised memory would not do: attention multiplies masked values by zero, and zero times NaN is NaN.
    """
    n = min(buffer.shape[-2], tokens.shape[-2])
    buffer[..., :n, :] = tokens[..., :n, :]
    buffer[..., n:, :].zero_()


@dataclass
class StepLayout:
    """Where the rows of one decoding step are.

    To attend to the prompts, rows are arranged in a grid (prompts, rows per prompt); cells without a row are unused.
    """

    rows: torch.Tensor  # (rows,) 0, 1, 2 ...
    grid_cells: torch.Tensor  # (rows,) the cell of each row in the flattened grid
    n_prompts: int
    n_per_prompt: int  # the largest number of rows of a prompt
    prompt_lengths: torch.Tensor  # (prompts,) tokens
    row_prompts: torch.Tensor  # (rows,) the prompt of each row
    row_lengths: torch.Tensor  # (rows,) own tokens that are already cached
    n_columns: int  # own tokens of the longest row, with the present one
    masks: dict[int | None, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # by sliding window

    def get_masks(self, window: int | None, n_repeats: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The masks to add to the attention scores, over the prompts and over the rows' own tokens.

        Shapes: (prompts, 1, queries or 1, tokens), where each row has `n_repeats` queries, and (rows, 1, 1, columns).
        `n_repeats` is the number of query heads that share a key head.
        """
        if window not in self.masks:
            lowest = torch.finfo(torch.float32).min
            tokens = torch.arange(int(self.prompt_lengths.max()), device=self.rows.device)
            columns = torch.arange(self.n_columns, device=self.rows.device)
            padding = tokens >= self.prompt_lengths[:, None]
            own_hidden = columns > self.row_lengths[:, None]
            if window is not None:
                own_hidden |= self.row_lengths[:, None] - columns >= window
                too_far = (self.prompt_lengths[self.row_prompts] + self.row_lengths)[:, None] - tokens >= window
                grid = too_far.new_zeros((self.n_prompts * self.n_per_prompt, len(tokens)))
                grid[self.grid_cells] = too_far
                grid = grid.view(self.n_prompts, self.n_per_prompt, -1) | padding[:, None]
                prompt_hidden = grid.repeat_interleave(n_repeats, dim=1)
            else:
                prompt_hidden = padding[:, None]
            self.masks[window] = (prompt_hidden[:, None] * lowest, own_hidden[:, None, None] * lowest)
        return self.masks[window]


class SharedPrefixCache:
    """A KV cache in which rows share the keys and values of their prompts and store only their own tokens."""

    def __init__(self, model: Any, device: torch.device, *, max_new_tokens: int, token_budget: int) -> None:
        self.max_new_tokens, self.token_budget = max_new_tokens, token_budget
        self.configs = list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())
        self.device = device
        self.layers: list[SharedPrefixLayer] = []
        self.prefixes: list[Prefix] = []  # by their index in the prompt buffers
        self.prompt_indices: dict[int, int] = {}  # prefix key -> index, without released prefixes
        self.row_keys: list[int] = []  # the prefix key of each row
        self.row_lengths: list[int] = []  # own tokens of each row that are cached
        self.positions = torch.zeros((0, 1), dtype=torch.long, device=device)  # (rows, dimensions)
        self.layout: StepLayout
        self.last_update: tuple[SharedPrefixLayer, torch.Tensor] | None = None  # with the keys it returned
        self.n_layers_read = 0  # layers whose attention read this cache in the present step

    @property
    def n_rows(self) -> int:
        return int(self.positions.shape[0])

    @property
    def _longest(self) -> int:
        """The length of the longest prompt."""
        return max((self.prefixes[index].length for index in self.prompt_indices.values()), default=0)

    def cost(self, length: int, n_completions: int) -> int:
        return n_completions * self.max_new_tokens + length

    def free_tokens(self, n_rows: int, *, new: Sequence[Prefix] = (), without: Container[int] = ()) -> int:
        lengths = {key: self.prefixes[index].length for key, index in self.prompt_indices.items() if key not in without}
        lengths |= {prefix.key: prefix.length for prefix in new}
        return self.token_budget - len(lengths) * max(lengths.values(), default=0) - n_rows * self.max_new_tokens

    def reserve_rows(self, prefixes: Sequence[Prefix], *, n_rows: int, wanted: int, later: int) -> int:  # noqa: ARG002 - later rows are allocated when they come
        new = [prefix for prefix in prefixes if prefix.key not in self.prompt_indices]
        left = self.free_tokens(0, new=new)
        n_needed = min(n_rows + wanted, max(1, n_rows, left // self.max_new_tokens))
        if new or n_needed >= _WORTH_REBUILDING * self.n_rows:
            self._rebuild(new, n_needed)
        return self.n_rows - n_rows

    def _rebuild(self, new: Sequence[Prefix], n_rows: int) -> None:
        """Drops released prompts from the buffers, adds the `new` ones, and allocates `n_rows` rows."""
        if not self.layers:
            self.layers = [SharedPrefixLayer(self, keys, values) for keys, values in new[0].layers]
            self.positions = self.positions.new_zeros((0, new[0].first_position.shape[0]))
        kept = sorted(self.prompt_indices.values())
        self.prefixes = [self.prefixes[index] for index in kept] + list(new)
        self.prompt_indices = {prefix.key: index for index, prefix in enumerate(self.prefixes)}
        n_columns = max(self.layers[0].keys.shape[2], min(self.max_new_tokens, _GROWTH))
        for layer in self.layers:
            layer.set_prompts(kept, [prefix.layers.pop(0) for prefix in new], self._longest)
            layer.resize(n_rows, n_columns)
        positions = self.positions.new_zeros((n_rows, self.positions.shape[1]))
        n_kept = min(n_rows, len(self.positions))
        positions[:n_kept] = self.positions[:n_kept]
        self.positions = positions

    def add_rows(self, n_rows: int, prefixes: Sequence[Prefix]) -> None:
        self.row_keys[n_rows:] = [prefix.key for prefix in prefixes]
        self.row_lengths[n_rows:] = [0] * len(prefixes)
        self.positions[n_rows : len(self.row_keys)] = torch.stack([prefix.first_position for prefix in prefixes])

    def forward(self, model: Any, last_tokens: torch.Tensor) -> torch.Tensor:
        n = last_tokens.shape[0]
        del self.row_keys[n:], self.row_lengths[n:]
        self.layout = self._make_layout()
        if self.layout.n_columns > self.layers[0].keys.shape[2]:
            for layer in self.layers:
                layer.resize(self.n_rows, min(self.max_new_tokens, self.layout.n_columns + _GROWTH))
        self.n_layers_read = 0
        with attention_reads(self):
            output = model(
                input_ids=last_tokens,
                position_ids=to_position_ids(self.positions[:n]),
                past_key_values=Cache(layers=list(self.layers)),
                use_cache=True,
                return_dict=True,
            )
        if self.n_layers_read != len(self.layers):
            raise UnsupportedAttentionError(
                f"{self.n_layers_read} of {len(self.layers)} layers call transformers' attention interface"
            )
        self.positions[:n] += 1
        self.row_lengths = [length + 1 for length in self.row_lengths]
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _make_layout(self) -> StepLayout:
        n_rows_of = [0] * len(self.prefixes)
        cells: list[tuple[int, int]] = []  # of each row: its prompt, and its number among the rows of that prompt
        for key in self.row_keys:
            prompt = self.prompt_indices[key]
            cells.append((prompt, n_rows_of[prompt]))
            n_rows_of[prompt] += 1
        n_per_prompt, n_columns = max(n_rows_of), max(self.row_lengths) + 1
        # One tensor, so that there is a single transfer to the device.
        numbers = (
            [prompt for prompt, _ in cells],
            [prompt * n_per_prompt + number for prompt, number in cells],
            self.row_lengths,
            range(len(cells)),
        )
        row_prompts, grid_cells, row_lengths, rows = torch.tensor([list(one) for one in numbers], device=self.device)
        prompt_lengths = torch.tensor([prefix.length for prefix in self.prefixes], device=self.device)
        return StepLayout(
            rows=rows,
            grid_cells=grid_cells,
            n_prompts=len(self.prefixes),
            n_per_prompt=n_per_prompt,
            prompt_lengths=prompt_lengths,
            row_prompts=row_prompts,
            row_lengths=row_lengths,
            n_columns=n_columns,
        )

    def copy_rows(self, source: Sequence[int], to: Sequence[int]) -> None:
        to_rows, source_rows = (torch.tensor(rows, device=self.device) for rows in (to, source))
        end = max(self.row_lengths[row] for row in source)
        for layer in self.layers:
            for buffer in (layer.keys, layer.values):
                buffer[to_rows, :, :end] = buffer[source_rows, :, :end]
        self.positions[to_rows] = self.positions[source_rows]
        for from_row, to_row in zip(source, to, strict=True):
            self.row_keys[to_row : to_row + 1] = [self.row_keys[from_row]]
            self.row_lengths[to_row : to_row + 1] = [self.row_lengths[from_row]]

    def release_prefix(self, key: int) -> None:
        """Frees the memory of released prompts once they are half of all."""
        self.prompt_indices.pop(key, None)
        if self.prompt_indices and 2 * len(self.prompt_indices) <= len(self.prefixes):
            self._rebuild((), self.n_rows)


# The attention


_current_cache: ContextVar[SharedPrefixCache] = ContextVar("illume_shared_prefix_cache")


@contextmanager
def attention_reads(cache: SharedPrefixCache) -> Iterator[None]:
    """A context in which the model's attention is `attend_with_shared_prefix`, reading from `cache`."""
    before = [(config, config._attn_implementation) for config in cache.configs]
    token = _current_cache.set(cache)
    try:
        for config in cache.configs:
            config._attn_implementation = ATTENTION_NAME
        yield
    finally:
        # Outer configurations come first: setting them also sets the configurations within them.
        for config, implementation in before:
            config._attn_implementation = implementation
        _current_cache.reset(token)


def attend_with_shared_prefix(
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
    """Attention of one query per row over its prompt and its own tokens.

    `query` is (rows, query heads, 1, head_dim); `key` and `value` are the rows' own, (rows, key heads, columns,
    head_dim), as `SharedPrefixLayer.update` returned them. Returns (rows, 1, query heads, head_dim). Raises
    UnsupportedAttentionError for inputs whose meaning is unknown, such as attention sinks: ignoring them would give
    wrong results silently.
    """
    cache = _current_cache.get()
    unknown = {name for name, other in others.items() if isinstance(other, torch.Tensor)} - _IGNORED_INPUTS
    if cache.last_update is None or cache.last_update[1] is not key or unknown or query.shape[2] != 1:
        raise UnsupportedAttentionError(f"attention of {type(module).__name__} with {sorted(unknown)}")
    cache.n_layers_read += 1
    layer, layout = cache.last_update[0], cache.layout
    n, heads, width = len(layout.rows), key.shape[1], query.shape[3]
    repeats = query.shape[1] // heads
    scaling = width**-0.5 if scaling is None else scaling
    prompt_mask, own_mask = layout.get_masks(sliding_window, repeats)
    rows = query.reshape(n, heads, repeats, width)
    own, own_lse = attend_with_logsumexp(rows, key, value, own_mask, scaling, softcap)

    # Arrange the queries by prompt: (prompts, heads, rows per prompt * repeats, head_dim).
    grid = rows.new_zeros((layout.n_prompts * layout.n_per_prompt, heads, repeats, width))
    grid[layout.grid_cells] = rows
    grid = grid.view(layout.n_prompts, layout.n_per_prompt, heads, repeats, width).transpose(1, 2)
    grid = grid.reshape(layout.n_prompts, heads, layout.n_per_prompt * repeats, width)
    # Attend, and bring the results back into the order of the rows: (rows, heads, repeats, head_dim or 1).
    prompt, prompt_lse = (
        one.view(layout.n_prompts, heads, layout.n_per_prompt, repeats, -1)
        .transpose(1, 2)
        .flatten(0, 1)[layout.grid_cells]
        for one in attend_with_logsumexp(grid, layer.prompt_keys, layer.prompt_values, prompt_mask, scaling, softcap)
    )
    output = torch.lerp(own, prompt, (prompt_lse - own_lse).sigmoid())
    return output.reshape(n, 1, query.shape[1], -1).to(query.dtype), None


def attend_with_logsumexp(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention with its softmax in float32: the outputs (..., queries, head_dim), and the log-sum-exp of the scores.

    The log-sum-exp (..., queries, 1) makes it possible to combine attention over two sets of tokens.
    """
    scores = (query @ keys.transpose(-1, -2)).float() * scaling
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores += mask
    top = scores.amax(dim=-1, keepdim=True)
    weights = (scores - top).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    return (weights.to(values.dtype) @ values).float() / total, top + total.log()


AttentionInterface.register(ATTENTION_NAME, attend_with_shared_prefix)
