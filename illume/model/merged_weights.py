"""Merges an adapter into copies of the weights it changes, for the duration of decoding.

An unmerged LoRA layer needs three matrix products per token instead of one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear

from illume.model.vlm import Vlm

MAX_BYTES = 2**30
"""Default limit for the total size of the copied weights. A larger model keeps its adapter unmerged."""


@dataclass
class MergedWeights:
    """The layers that `merge_adapter` changed, each with its original weight tensor."""

    originals: list[tuple[Linear, torch.Tensor]] = field(default_factory=list)

    def restore(self) -> None:
        """Gives every layer its original weight tensor back (the same object) and enables its adapter again."""
        for layer, weight in self.originals:
            layer.get_base_layer().weight.data = weight
            layer._disable_adapters = False
        self.originals.clear()


def merge_adapter(vlm: Vlm, *, max_bytes: int = MAX_BYTES) -> MergedWeights:
    """Makes the LoRA layers of `vlm` compute with one merged matrix, until `MergedWeights.restore`.

    The weights of the base model are not modified: each layer gets a copy with the adapter's update added. Nothing is
    merged unless the model is in float32, where the rounding error of the sum is negligible, and no weights are
    quantized or sharded, nor when the copies would exceed `max_bytes`.
    """
    merged = MergedWeights()
    is_whole = vlm.quantization == "none" and vlm.agree is None
    if not isinstance(vlm.model, PeftModel) or vlm.dtype != torch.float32 or not is_whole:
        return merged
    layers: list[Any] = [module for module in vlm.model.modules() if isinstance(module, Linear)]
    if not all(is_plain_lora(layer) for layer in layers):
        return merged
    if sum(layer.get_base_layer().weight.numel() * 4 for layer in layers) > max_bytes:
        return merged
    with torch.no_grad():
        for layer in layers:
            weight = layer.get_base_layer().weight
            merged.originals.append((layer, weight.data))
            weight.data = weight.data + layer.get_delta_weight(layer.active_adapters[0])
            layer._disable_adapters = True
    return merged


def is_plain_lora(layer: Any) -> bool:
    """Whether `layer` is a float32 linear layer with exactly one unmerged LoRA adapter, no variant and no bias."""
    return (
        len(layer.active_adapters) == 1
        and not layer.merged
        and not layer.disable_adapters
        and not layer.lora_variant
        and not any(layer.lora_bias.values())
        and isinstance(layer.get_base_layer(), torch.nn.Linear)
        and layer.get_base_layer().weight.dtype == torch.float32
    )
