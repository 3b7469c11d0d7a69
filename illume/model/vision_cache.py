"""Caches encoded prompts and the image features of a frozen vision tower.

Adapters change only the language model, so all model versions of a base model share the image features of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from illume.model.prompting import PromptText
from illume.model.vlm import ImageLike, Inputs, Vlm, bare_model, encode


class FeatureHolder(Protocol):
    """An object that stores image features; None until they are computed."""

    features: list[Any] | None


@dataclass
class EncodedBatch:
    """A batch of prompts as model inputs, with the features of their images once they are known."""

    inputs: Inputs
    features: list[Any] | None = None


class EncodedPromptCache:
    """Keeps encoded batches of prompts for use by several versions of a base model with a frozen vision tower.

    Batches are kept on the CPU up to `budget_mb`; beyond that they are encoded anew each time. The pixels of a stored
    batch are replaced by zeros that share one element, because with known features only their shape is used.
    """

    def __init__(self, *, budget_mb: int = 1024) -> None:
        self._free_bytes = budget_mb * 2**20
        self._batches: dict[tuple[Any, ...], EncodedBatch] = {}

    def get(self, vlm: Vlm, prompts: Sequence[PromptText], images: Sequence[Sequence[ImageLike]]) -> EncodedBatch:
        """Returns the batch on the model's device, with its features if `store` was given them."""
        stored = self._batches.get(_key(vlm, prompts, images))
        if stored is None:
            return EncodedBatch(encode(vlm, prompts, images))
        return EncodedBatch(to_device(stored.inputs, vlm.device), to_device(stored.features, vlm.device))

    def store(
        self, vlm: Vlm, prompts: Sequence[PromptText], images: Sequence[Sequence[ImageLike]], batch: EncodedBatch
    ) -> None:
        """Stores the batch if it is new, its features are known, and the budget allows."""
        key = _key(vlm, prompts, images)
        if key in self._batches or batch.features is None:
            return
        without_pixels = {name: value for name, value in batch.inputs.items() if name != "pixel_values"}
        size = n_bytes((without_pixels, batch.features))
        if size > self._free_bytes:
            return
        self._free_bytes -= size
        cpu = torch.device("cpu")
        inputs = to_device(without_pixels, cpu)
        if (pixels := batch.inputs.get("pixel_values")) is not None:
            inputs["pixel_values"] = pixels.new_zeros((), device=cpu).expand(pixels.shape)
        self._batches[key] = EncodedBatch(inputs, to_device(batch.features, cpu))


def _key(vlm: Vlm, prompts: Sequence[PromptText], images: Sequence[Sequence[ImageLike]]) -> tuple[Any, ...]:
    """The cache key of a batch: files by path, images in memory by identity (the key keeps them alive)."""
    groups = tuple(
        tuple(image if isinstance(image, str) else _ByIdentity(image) for image in group) for group in images
    )
    return vlm.base, vlm.dtype, tuple(prompts), groups


@dataclass(frozen=True, slots=True, eq=False)
class _ByIdentity:
    """Wraps an object as a dictionary key that is equal to the same object only."""

    wrapped: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.wrapped is self.wrapped

    def __hash__(self) -> int:
        return id(self.wrapped)


@contextmanager
def cached_image_features(vlm: Vlm, holder: FeatureHolder) -> Iterator[None]:
    """A context in which the model takes its image features from `holder`, or stores them there the first time.

    In transformers nearly every family has a method `get_image_features`, which turns pixels into the inputs of the
    language model. The modules behind it are frozen, so its result never changes. The context wraps that method;
    families without it compute their features again.
    """
    modules = [module for module in bare_model(vlm).modules() if hasattr(type(module), "get_image_features")]
    replay = iter(holder.features) if holder.features is not None else None
    recorded: list[Any] = []
    depth = 0

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def features(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            if depth == 0 and replay is not None:
                return next(replay)
            depth += 1
            try:
                with torch.no_grad():
                    result = original(*args, **kwargs)
            finally:
                depth -= 1
            if depth == 0:
                recorded.append(_drop_hidden_states(result))
            return result

        return features

    for module in modules:
        module.__dict__["get_image_features"] = wrap(module.get_image_features)
    try:
        yield
        if replay is None and recorded:
            holder.features = recorded
    finally:
        for module in modules:
            del module.__dict__["get_image_features"]


def _drop_hidden_states(result: Any) -> Any:
    """`result` without hidden states and attentions, which no later forward pass reads."""
    if not isinstance(result, dict):
        return result
    kept = {key: value for key, value in result.items() if key not in ("hidden_states", "attentions")}
    return type(result)(**kept)


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Applies `change` to every tensor in nested dictionaries, lists and tuples."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):  # includes the ModelOutput classes of transformers
        changed = {key: map_tensors(item, change) for key, item in value.items()}
        return changed if type(value) is dict else type(value)(**changed)
    if isinstance(value, list | tuple):
        return type(value)([map_tensors(item, change) for item in value])
    return value


def to_device(value: Any, device: torch.device) -> Any:
    """Moves all tensors in `value` to `device`."""
    return map_tensors(value, lambda tensor: tensor.to(device))


def n_bytes(value: Any) -> int:
    """Bytes that the tensors in `value` occupy."""
    total = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    map_tensors(value, count)
    return total
