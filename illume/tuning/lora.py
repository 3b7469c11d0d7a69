"""The adapter that a round trains: its initial weights, how it is computed, how it is stored."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from torch import nn

from illume.errors import VlmError
from illume.files import replace_folder
from illume.model.folder import split_revision
from illume.model.language_layers import lora_targets
from illume.model.loading import ADAPTER_RECORD, check_adapter
from illume.model.merged_weights import is_plain_lora
from illume.model.vlm import Vlm, bare_model, save_adapter, without_peft_warning
from illume.phrases import _
from illume.records import stable_seed
from illume.settings import Init, TuningSettings
from illume.tuning.job import write_json


def begin_adapter(vlm: Vlm, *, init: Init, parent: str | None, settings: TuningSettings) -> None:
    """Adds a trainable adapter to the base model: a copy of the parent's with `continue`, else a new one.

    A new adapter does not change the model's outputs at first; its A matrices are sampled with the seed. Adapter
    weights are float32 for any dtype of the base model, also where its own are quantized: of what peft prepares such
    models by (`prepare_model_for_kbit_training`), only the frozen weights are needed, since the input of a checkpointed
    layer needs no gradient, and a copy of the embeddings in float32 would take the memory that few bits save. Raises
    VlmError if there is an adapter already.
    """
    if isinstance(vlm.model, PeftModel):
        raise VlmError(_("the model has an adapter already: adapters are never stacked"))
    if init == "continue" and parent is not None:
        check_adapter(vlm.base, parent, config=vlm.model.config)
        with without_peft_warning():
            vlm.model = PeftModel.from_pretrained(vlm.model, parent, is_trainable=True, autocast_adapter_dtype=True)
        vlm.adapter = parent
    else:
        torch.manual_seed(stable_seed(settings.seed, "lora"))
        config = LoraConfig(
            r=settings.lora_r,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=lora_targets(vlm.model),
        )
        with without_peft_warning():
            vlm.model = get_peft_model(vlm.model, config, autocast_adapter_dtype=True)
        vlm.adapter = None
    fuse_lora_updates(vlm)
    if settings.gradient_checkpointing:
        bare = bare_model(vlm)
        bare.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def fuse_lora_updates(vlm: Vlm) -> None:
    """Makes plain LoRA layers in float32 add their update to the base output with a single `addmm`.

    The result is the same. The forward method of peft computes, scales and adds the update one after the other, each of
    which is a pass over the activations.
    """
    if vlm.dtype != torch.float32:
        return
    for layer in vlm.model.modules():
        if isinstance(layer, Linear) and is_plain_lora(layer) and isinstance(_only(layer.lora_dropout), nn.Identity):
            layer.forward = partial(_fused_forward, layer)


def _fused_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    base: torch.Tensor = layer.base_layer(x)
    if layer.disable_adapters:
        return base
    low = nn.functional.linear(x, _only(layer.lora_A).weight) * next(iter(layer.scaling.values()))
    up = _only(layer.lora_B).weight.t()
    return torch.addmm(base.flatten(0, -2), low.flatten(0, -2), up).view(base.shape)


def _only(modules: nn.ModuleDict) -> Any:
    [module] = modules.values()
    return module


def trainable_parameters(vlm: Vlm) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name."""
    return {name: parameter for name, parameter in vlm.model.named_parameters() if parameter.requires_grad}


def store_adapter(vlm: Vlm, folder: Path) -> None:
    """Writes the adapter to `folder`, atomically.

    Of the base model's path only the last part is stored, so that the files are the same on every machine.
    """
    with replace_folder(folder) as new:
        save_adapter(vlm, str(new))
        _make_portable(new, vlm.base)


def _make_portable(folder: Path, base: str) -> None:
    name = Path(base).name if Path(base).is_dir() else base
    found_as, commit = (name, None) if Path(base).is_dir() else split_revision(base)
    config_file, record_file = folder / "adapter_config.json", folder / ADAPTER_RECORD
    config: dict[str, Any] = json.loads(config_file.read_text())
    config["base_model_name_or_path"] = found_as
    if commit is not None:
        config["revision"] = commit
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    write_json(config_file, config)
    if record_file.exists():
        write_json(record_file, json.loads(record_file.read_text()) | {"base": name})
    (folder / "README.md").unlink(missing_ok=True)  # peft's model card, which contains paths and nothing useful
