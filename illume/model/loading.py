"""Checks made before any weights are read: configuration, processor, and whether an adapter fits a base model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError
from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.pytorch_utils import Conv1D

from illume.errors import VlmError
from illume.model.folder import check_folder, place_of, tensor_shapes, weight_files
from illume.model.language_layers import lora_targets
from illume.model.machine import quantization_config
from illume.phrases import _, said_by

ADAPTER_RECORD = "illume_adapter.json"
"""The file in an adapter's folder that names the base model the adapter was trained on."""

_LOAD_ERRORS = (ImportError, OSError, ValueError, TypeError, KeyError, AttributeError)
"""What the auto classes of transformers raise when a file is missing or malformed."""

# --- configurations and processors ---


def read_config(base: str) -> Any:
    """Reads the configuration of `base`. Raises VlmError if the folder is missing or the model takes no images."""
    check_folder(base)
    name, found_by = place_of(base)
    try:
        config = AutoConfig.from_pretrained(name, **found_by, trust_remote_code=False)
    except _LOAD_ERRORS as error:
        if "trust_remote_code" in str(error):
            raise VlmError(_("the model %(base)s has code of its own, which is not run here", base=base)) from error
        if isinstance(error.__cause__, GatedRepoError):
            raise VlmError(
                _(
                    "the model %(base)s is gated: accept its terms on the hub, and set HF_TOKEN to a token of that"
                    " account on every machine with workers for models",
                    base=base,
                )
            ) from error
        reason = str(error).strip().partition("\n")[0]
        raise VlmError(
            _("the model %(base)s could not be found or read: %(reason)s", base=base, reason=reason)
        ) from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise VlmError(
            _(
                "%(base)s is a %(model_type)s model: it does not generate text from images and text",
                base=base,
                model_type=config.model_type,
            )
        )
    return config


class _NoVideo:
    """Placeholder for processors that read settings from their video processor."""

    num_frames = fps = None


def without_video_processor(processor_class: type[Any]) -> type[Any]:
    """A subclass of `processor_class` without a video processor, which would need torchvision; images do not."""

    def get_attributes(cls: Any) -> list[str]:
        return [name for name in super(subclass, cls).get_attributes() if name != "video_processor"]

    subclass: type[Any] = type(
        processor_class.__name__,
        (processor_class,),
        {"video_processor": _NoVideo(), "get_attributes": classmethod(get_attributes)},
    )
    return subclass


def load_processor(base: str, config: Any) -> Any:
    """Loads the processor of `base`. Raises VlmError if it lacks an image processor or a tokenizer.

    A tokenizer without a padding token pads with its end-of-sequence token.
    """
    name, found_by = place_of(base)
    try:
        processor = AutoProcessor.from_pretrained(name, **found_by, trust_remote_code=False)
    except _LOAD_ERRORS as error:
        processor = _assemble_processor(base, config, error)
    for part in ("image_processor", "tokenizer"):
        if getattr(processor, part, None) is None:
            raise VlmError(
                _("the processor of %(base)s is missing or incomplete: it has no %(part)s", base=base, part=part)
            )
    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise VlmError(_("the tokenizer of %(base)s has neither a padding token nor an end token", base=base))
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def _assemble_processor(base: str, config: Any, cause: Exception) -> Any:
    """Builds a processor part by part, without the video processor whose absence may be the `cause` of the failure."""
    if type(config) not in PROCESSOR_MAPPING:
        raise VlmError(
            _("the processor of %(base)s is missing or cannot be loaded: %(error)s", base=base, error=said_by(cause))
        ) from cause
    processor_class = without_video_processor(PROCESSOR_MAPPING[type(config)])
    loaders = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
    name, found_by = place_of(base)
    try:
        settings, rest = processor_class.get_processor_dict(name, **found_by)
        names = processor_class.get_attributes()
        if unknown := [part for part in names if part not in loaders]:
            raise VlmError(
                _("the processor of %(base)s needs a %(part)s, which is not supported", base=base, part=unknown[0])
            )
        parts = [loaders[part].from_pretrained(name, **found_by, trust_remote_code=False) for part in names]
        return processor_class.from_args_and_dict(parts, {**settings, "video_processor": None}, **rest)
    except _LOAD_ERRORS as error:
        raise VlmError(
            _("the processor of %(base)s is missing or cannot be loaded: %(error)s", base=base, error=said_by(error))
        ) from error


# --- how weights are loaded ---


def weights_options(
    base: str, config: Any, device: torch.device, dtype: torch.dtype, attn_implementation: str, quantization: str
) -> dict[str, Any]:
    """What `from_pretrained` takes for this attention and quantization, of which only the language model's layers are.

    Raises VlmError if the model cannot compute attention so, or is quantized already.
    """
    options: dict[str, Any] = {}
    if attn_implementation != "auto":
        options["attn_implementation"] = attn_implementation
    if quantization != "none":
        check_not_quantized(base, config, quantization)
    if not options and quantization == "none":
        return options
    skeleton = build_skeleton(base, config, attn_implementation=attn_implementation)
    if quantization != "none":
        few_bits = set(lora_targets(skeleton))
        exact = [
            name
            for name, one in skeleton.named_modules()
            if isinstance(one, nn.Linear | Conv1D) and name not in few_bits
        ]
        options["quantization_config"] = quantization_config(quantization, dtype, exact=exact)
        options["device_map"] = {"": str(device)}
    return options


def check_not_quantized(base: str, config: Any, quantization: str) -> None:
    """Raises VlmError if the files of `base` are quantized, so that they cannot be loaded with other bits."""
    found = getattr(config, "quantization_config", None)
    if found is not None:
        method = found.get("quant_method") if isinstance(found, Mapping) else getattr(found, "quant_method", None)
        raise VlmError(
            _(
                "the weights of %(base)s are quantized already (%(method)s): they cannot be loaded as %(name)s",
                base=base,
                method=str(getattr(method, "value", method)),
                name=quantization,
            )
        )


def build_skeleton(
    base: str, config: Any, *, attn_implementation: str = "auto", dtype: torch.dtype = torch.float32
) -> Any:
    """The model of `config` on the meta device, which allocates no memory for weights.

    Raises VlmError if it cannot compute attention in this way.
    """
    wanted = {} if attn_implementation == "auto" else {"attn_implementation": attn_implementation}
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(deepcopy(config), dtype=dtype, **wanted)
    except (ImportError, ValueError) as error:
        if not wanted:
            raise
        reason = str(error).strip().partition("\n")[0]
        raise VlmError(
            _(
                "the model %(base)s cannot compute with the attention %(name)s: %(reason)s",
                base=base,
                name=attn_implementation,
                reason=reason,
            )
        ) from error


# --- adapters ---


def base_fingerprint(base: str) -> str | None:
    """A hash that tells apart two base models of the same shape.

    It covers the configuration, and for each weight file its size and 16 samples of 64 KiB (the header among them):
    hashing all weights of a large model would take minutes. None for a hub name, which identifies the model by itself.
    """
    folder = Path(base)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    settings = json.loads((folder / "config.json").read_text())
    for volatile in ("transformers_version", "_name_or_path"):
        settings.pop(volatile, None)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for path in weight_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for part in range(16):
                file.seek(size * part // 16)
                digest.update(file.read(1 << 16))
    return digest.hexdigest()


def check_adapter(base: str, adapter: str, *, config: Any = None) -> None:
    """Raises VlmError unless `adapter` is a LoRA adapter made for `base`, as safetensors whatever is allowed for bases.

    Compares the recorded base model, module names and tensor shapes. Reads file headers only, and builds the base model
    on the meta device, which allocates no memory for weights.
    """
    folder = Path(adapter)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            if name == "adapter_model.safetensors" and (pickles := sorted(folder.glob("*.bin"))):
                raise VlmError(
                    _(
                        "the adapter %(adapter)s is a pickle file (%(name)s), which can run code as it is opened:"
                        " adapters are safetensors only",
                        adapter=adapter,
                        name=pickles[0].name,
                    )
                )
            raise VlmError(_("%(adapter)s is not an adapter: %(name)s is missing", adapter=adapter, name=name))
    record_file = folder / ADAPTER_RECORD
    if record_file.is_file():
        recorded = json.loads(record_file.read_text())
        present = base_fingerprint(base)
        if recorded.get("base_fingerprint") and present and recorded["base_fingerprint"] != present:
            raise VlmError(
                _(
                    "the adapter %(adapter)s was made for another base model (%(other)s), not for %(base)s",
                    adapter=adapter,
                    other=recorded.get("base"),
                    base=base,
                )
            )
    config = read_config(base) if config is None else config
    skeleton = build_skeleton(base, config)
    modules = dict(skeleton.named_modules())
    shapes = tensor_shapes(folder / "adapter_model.safetensors")
    _check_shapes(base, adapter, modules, shapes)
    settings = PeftConfig.from_pretrained(adapter)
    targets = {name for name, module in modules.items() if hasattr(module, "weight") and _is_target(settings, name)}
    adapted = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in shapes}
    if missing := sorted(targets - adapted):
        raise VlmError(
            _(
                "the adapter %(adapter)s was made for another base model: it has no weights for %(name)s of %(base)s",
                adapter=adapter,
                name=missing[0],
                base=base,
            )
        )


def _is_target(settings: Any, name: str) -> bool:
    return bool(check_target_module_exists(settings, name))


def _check_shapes(base: str, adapter: str, modules: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for key, shape in shapes.items():
        path, part, _name = key.removeprefix("base_model.model.").partition(".lora_")
        if not part:
            continue
        suffix = key[len("base_model.model.") + len(path) :]
        module = modules.get(path)
        if module is None:
            raise VlmError(
                _(
                    "the adapter %(adapter)s was made for another base model: %(base)s has no module %(path)s",
                    adapter=adapter,
                    base=base,
                    path=path,
                )
            )
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2 or len(shape) != 2:
            continue
        axis = 1 if suffix.startswith(".lora_A") else 0 if suffix.startswith(".lora_B") else None
        if axis is not None and shape[axis] != weight.shape[axis]:
            raise VlmError(
                _(
                    "the adapter %(adapter)s was made for another base model: %(path)s has weights of shape %(found)s"
                    " in %(base)s, but the adapter's have shape %(shape)s",
                    adapter=adapter,
                    path=path,
                    found=tuple(weight.shape),
                    base=base,
                    shape=shape,
                )
            )
