"""An adapter folded into copies of the weights it changes, for as long as many tokens are written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear

from illume.model.vlm import Vlm

_MOST_BYTES = 2**30
"""Copies of weights are made up to this size; a larger model keeps its adapter beside them."""


@dataclass
class Folded:
    """What `fold_adapter` changed."""

    kept: list[tuple[Linear, torch.Tensor]] = field(default_factory=list)

    def undo(self) -> None:
        """Gives every layer its own weight tensor back, the very same one, and its adapter."""
        for layer, weight in self.kept:
            layer.get_base_layer().weight.data = weight
            layer._disable_adapters = False
        self.kept.clear()


def fold_adapter(vlm: Vlm) -> Folded:
    """Lets the layers of `vlm` that LoRA changes compute with one matrix instead of three, until `undo`.

    The base's own weights are not touched: each layer gets a copy with the adapter added. Done in single precision
    only, where the sum loses nothing that matters, and where the copies are small.
    """
    folded = Folded()
    if not isinstance(vlm.model, PeftModel) or vlm.dtype != torch.float32:
        return folded
    layers: list[Any] = [module for module in vlm.model.modules() if isinstance(module, Linear)]
    if not all(is_plain(layer) for layer in layers):
        return folded
    if sum(layer.get_base_layer().weight.numel() * 4 for layer in layers) > _MOST_BYTES:
        return folded
    with torch.no_grad():
        for layer in layers:
            weight = layer.get_base_layer().weight
            folded.kept.append((layer, weight.data))
            weight.data = weight.data + layer.get_delta_weight(layer.active_adapters[0])
            layer._disable_adapters = True
    return folded


def is_plain(layer: Any) -> bool:
    """Whether `layer` is a linear layer in single precision with one adapter of LoRA's first kind."""
    return (
        len(layer.active_adapters) == 1
        and not layer.merged
        and not layer.disable_adapters
        and not layer.lora_variant
        and not any(layer.lora_bias.values())
        and isinstance(layer.get_base_layer(), torch.nn.Linear)
        and layer.get_base_layer().weight.dtype == torch.float32
    )
