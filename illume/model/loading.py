"""What is read, and refused, before any weights are: configurations, processors, and whether an adapter fits a base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from illume.errors import VlmError as VlmError

ADAPTER_RECORD = "illume_adapter.json"
"""The file beside an adapter's weights that says which base they belong to."""

_LOAD_ERRORS = (ImportError, OSError, ValueError, TypeError, KeyError, AttributeError)
"""What the auto classes of transformers raise for folders that lack or garble a file."""


# --- configurations and processors ---


def read_config(base: str) -> Any:
    """The configuration of `base`; raises VlmError for a missing folder and for a model that takes no images."""
    folder = Path(base)
    in_folder = folder.parent != Path() and folder.parent.is_dir()
    looks_local = folder.is_absolute() or base.startswith(".") or base.count("/") > 1 or in_folder
    if folder.exists() or looks_local:
        if not folder.is_dir():
            raise VlmError(f"there is no model folder {base}")
        if not (folder / "config.json").is_file():
            raise VlmError(f"the folder {base} holds no model: config.json is missing")
    try:
        config = AutoConfig.from_pretrained(base, local_files_only=folder.is_dir())
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise VlmError(f"the model {base} cannot be found or read: {reason}") from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise VlmError(f"{base} is a {config.model_type} model: it does not take images and texts and write text")
    return config


class _NoVideo:
    """Stands where a processor asks its video processor for settings."""

    num_frames = fps = None


def image_only(kind: type[Any]) -> type[Any]:
    """The processor class `kind` without its video processor: video processors need torchvision, images do not."""

    def get_attributes(cls: Any) -> list[str]:
        return [name for name in super(made, cls).get_attributes() if name != "video_processor"]

    made: type[Any] = type(
        kind.__name__, (kind,), {"video_processor": _NoVideo(), "get_attributes": classmethod(get_attributes)}
    )
    return made


def load_processor(base: str, config: Any) -> Any:
    """The processor of `base`, with an image processor and a tokenizer that can pad; raises VlmError without them."""
    local = Path(base).is_dir()
    try:
        processor = AutoProcessor.from_pretrained(base, local_files_only=local)
    except _LOAD_ERRORS as error:
        processor = _assemble_processor(base, config, local, error)
    for part in ("image_processor", "tokenizer"):
        if getattr(processor, part, None) is None:
            raise VlmError(f"the processor of {base} is missing or incomplete: it has no {part}")
    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def _assemble_processor(base: str, config: Any, local: bool, cause: Exception) -> Any:
    """Builds a processor part by part, without the video processor that may have been the `cause` of a failure."""
    if type(config) not in PROCESSOR_MAPPING:
        raise VlmError(f"the processor of {base} is missing or cannot be loaded: {cause}") from cause
    kind = image_only(PROCESSOR_MAPPING[type(config)])
    loaders = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
    try:
        settings, rest = kind.get_processor_dict(base, local_files_only=local)
        names = kind.get_attributes()
        if unknown := [name for name in names if name not in loaders]:
            raise VlmError(f"the processor of {base} needs a {unknown[0]}, which cannot be loaded here")
        parts = [loaders[name].from_pretrained(base, local_files_only=local) for name in names]
        return kind.from_args_and_dict(parts, {**settings, "video_processor": None}, **rest)
    except _LOAD_ERRORS as error:
        raise VlmError(f"the processor of {base} is missing or cannot be loaded: {error}") from error


def pick_device(device: str) -> torch.device:
    """The device by name; "auto" is the GPU where there is one. Raises VlmError for one that is not here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise VlmError(f"unknown device {device}: use auto, cpu, cuda, cuda:1 ... or mps") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise VlmError(f"there is no device {device} here: torch sees {torch.cuda.device_count()} CUDA devices")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise VlmError(f"there is no device {device} here")
    return found


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The precision by name; "auto" is bfloat16 on a GPU that has it, else float32."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in kinds:
        raise VlmError(f"unknown dtype {dtype}: use auto, {', '.join(kinds)}")
    return kinds[dtype]


# --- adapters ---


def base_fingerprint(base: str) -> str | None:
    """A hash that tells two bases of one shape apart: configuration, weight file sizes, headers and samples.

    None for a hub name: its name stands for it.
    """
    folder = Path(base)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    settings = json.loads((folder / "config.json").read_text())
    for volatile in ("transformers_version", "_name_or_path"):
        settings.pop(volatile, None)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for part in range(16):
                file.seek(size * part // 16)
                digest.update(file.read(1 << 16))
    return digest.hexdigest()


def check_adapter(base: str, adapter: str, *, config: Any = None) -> None:
    """Raises VlmError unless `adapter` is a LoRA adapter made for `base`: by its record, module names and shapes.

    Reads headers only; the base is built without memory.
    """
    folder = Path(adapter)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise VlmError(f"{adapter} is no adapter: {name} is missing")
    record_file = folder / ADAPTER_RECORD
    if record_file.is_file():
        recorded = json.loads(record_file.read_text())
        present = base_fingerprint(base)
        if recorded.get("base_fingerprint") and present and recorded["base_fingerprint"] != present:
            raise VlmError(f"the adapter {adapter} was made for another base ({recorded.get('base')}), not for {base}")
    config = read_config(base) if config is None else config
    with torch.device("meta"):
        skeleton = AutoModelForImageTextToText.from_config(config)
    modules = dict(skeleton.named_modules())
    shapes = _tensor_shapes(folder / "adapter_model.safetensors")
    _check_shapes(base, adapter, modules, shapes)
    settings = PeftConfig.from_pretrained(adapter)
    wanted = {name for name, module in modules.items() if hasattr(module, "weight") and _is_target(settings, name)}
    brought = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in shapes}
    if missing := sorted(wanted - brought):
        raise VlmError(f"the adapter {adapter} was made for another base: it brings nothing for {missing[0]} of {base}")


def _is_target(settings: Any, name: str) -> bool:
    return bool(check_target_module_exists(settings, name))


def _tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes from the header of a safetensors file."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (OSError, ValueError) as error:
        raise VlmError(f"{path} is not a readable safetensors file") from error
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def _check_shapes(base: str, adapter: str, modules: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for key, shape in shapes.items():
        path, part, _ = key.removeprefix("base_model.model.").partition(".lora_")
        if not part:
            continue
        which = key[len("base_model.model.") + len(path) :]
        module = modules.get(path)
        if module is None:
            raise VlmError(f"the adapter {adapter} was made for another base: {base} has no module {path}")
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2 or len(shape) != 2:
            continue
        axis = 1 if which.startswith(".lora_A") else 0 if which.startswith(".lora_B") else None
        if axis is not None and shape[axis] != weight.shape[axis]:
            raise VlmError(
                f"the adapter {adapter} was made for another base: {path} has weights of {tuple(weight.shape)}"
                f" in {base}, and the adapter brings {shape}"
            )
