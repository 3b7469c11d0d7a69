"""What a frozen vision tower made of images, computed once: for a batch, or for prompts asked of many versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from illume.model.vlm import ImageLike, Inputs, Vlm, bare_model, encode


class Holder(Protocol):
    """Whatever keeps features: None until they were computed."""

    features: list[Any] | None


@dataclass
class Encoded:
    """Prompts as inputs of the model, and the features of their images once they are known."""

    inputs: Inputs
    features: list[Any] | None = None


class EncodedPrompts:
    """Batches of prompts, encoded once for all versions of one base whose adapters leave the vision tower alone.

    Kept on the CPU up to a budget; what is beyond it is encoded anew each time. Once the features are there, the pixels
    are let go: only their shape is still asked for.
    """

    def __init__(self, *, budget_mb: int = 1024) -> None:
        self._left = budget_mb * 2**20
        self._kept: dict[tuple[Any, ...], Encoded] = {}

    def get(self, vlm: Vlm, texts: Sequence[str], images: Sequence[Sequence[ImageLike]]) -> Encoded:
        """The batch on the model's device; its features too, where `keep` was given them."""
        kept = self._kept.get(_key(vlm, texts, images))
        if kept is None:
            return Encoded(encode(vlm, texts, images))
        return Encoded(to_device(kept.inputs, vlm.device), to_device(kept.features, vlm.device))

    def keep(self, vlm: Vlm, texts: Sequence[str], images: Sequence[Sequence[ImageLike]], encoded: Encoded) -> None:
        """Keeps the batch where it is new, its features are known and there is room."""
        key = _key(vlm, texts, images)
        if key in self._kept or encoded.features is None:
            return
        texts_only = {name: value for name, value in encoded.inputs.items() if name != "pixel_values"}
        size = n_bytes((texts_only, encoded.features))
        if size > self._left:
            return
        self._left -= size
        cpu = torch.device("cpu")
        inputs = to_device(texts_only, cpu)
        if (pixels := encoded.inputs.get("pixel_values")) is not None:
            inputs["pixel_values"] = pixels.new_zeros((), device=cpu).expand(pixels.shape)
        self._kept[key] = Encoded(inputs, to_device(encoded.features, cpu))


def _key(vlm: Vlm, texts: Sequence[str], images: Sequence[Sequence[ImageLike]]) -> tuple[Any, ...]:
    """Files are known by their paths, images in memory by themselves (and stay alive as long as the key)."""
    groups = tuple(tuple(image if isinstance(image, str) else _Same(image) for image in group) for group in images)
    return vlm.base, vlm.dtype, tuple(texts), groups


@dataclass(frozen=True, slots=True, eq=False)
class _Same:
    """An object as a key that equals itself only."""

    one: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.one is self.one

    def __hash__(self) -> int:
        return id(self.one)


@contextmanager
def remembered_features(vlm: Vlm, holder: Holder) -> Iterator[None]:
    """Within it the model takes its image features from `holder`, or, the first time, leaves them there.

    Every family of transformers turns pixels into what its language model reads by a method `get_image_features`; its
    parts are frozen, so the result never changes. Families without that method compute theirs anew.
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
                recorded.append(_slim(result))
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


def _slim(result: Any) -> Any:
    """`result` without the towers' inner states, which no forward pass reads again."""
    if not isinstance(result, dict):
        return result
    kept = {key: value for key, value in result.items() if key not in ("hidden_states", "attentions")}
    return type(result)(**kept)


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`value` with every tensor in its dictionaries, lists and tuples replaced by `change` of it."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):  # model outputs are ordered dictionaries of a class of their own
        changed = {key: map_tensors(item, change) for key, item in value.items()}
        return changed if type(value) is dict else type(value)(**changed)
    if isinstance(value, list | tuple):
        return type(value)([map_tensors(item, change) for item in value])
    return value


def to_device(value: Any, device: torch.device) -> Any:
    """`value` with its tensors on `device`."""
    return map_tensors(value, lambda tensor: tensor.to(device))


def n_bytes(value: Any) -> int:
    """How much memory the tensors in `value` take."""
    total = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    map_tensors(value, count)
    return total
