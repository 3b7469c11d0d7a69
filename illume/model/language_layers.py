"""The layers of a model's language model, which get LoRA, and in fewer bits if memory is to be saved."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

from illume.errors import VlmError
from illume.phrases import _


def language_model(model: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of the language model: in every family, the module that contains the text embeddings."""
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    for name, module in model.named_modules():
        if any(child is embeddings for child in module.children()):
            return name, module
    raise VlmError(_("no module of the model contains its text embeddings: LoRA cannot be applied"))


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the language model that follow one another, without those of a vision tower within it."""
    _prefix, module = language_model(model)
    apart = {id(part) for part in _vision_tower_parts(model, module)}
    stacks = [part for part in module.modules() if isinstance(part, nn.ModuleList) and id(part) not in apart]
    if not stacks:
        raise VlmError(_("the language model has no list of layers"))
    sizes = [sum(one.numel() for one in stack.parameters()) for stack in stacks]
    return list(stacks[sizes.index(max(sizes))])


def _vision_tower_parts(model: nn.Module, module: nn.Module) -> list[nn.Module]:
    """The modules of the vision tower, unless it is the whole of `model` or of its language model, `module`."""
    find_encoder = getattr(model, "get_encoder", None)
    tower = find_encoder(modality="image") if find_encoder is not None else None
    if not isinstance(tower, nn.Module) or tower is model or tower is module:
        return []
    return list(tower.modules())


def lora_targets(model: nn.Module) -> list[str]:
    """Full names of all linear layers of the language model, without its output layer.

    Layers of the vision tower are left out, even if it is a part of the language model.
    """
    prefix, module = language_model(model)
    left_out = {id(model.get_output_embeddings())}  # type: ignore[operator]
    left_out |= {id(part) for part in _vision_tower_parts(model, module)}
    names = [
        f"{prefix}.{name}" if prefix else name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear | Conv1D) and id(part) not in left_out
    ]
    if not names:
        raise VlmError(_("the language model has no linear layers for LoRA"))
    return names
