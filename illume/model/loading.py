"""Checks made before any weights are read: configuration, processor, and whether an adapter fits a base model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from illume.errors import VlmError

ADAPTER_RECORD = "illume_adapter.json"
"""The file in an adapter's folder that names the base model the adapter was trained on."""

_LOAD_ERRORS = (ImportError, OSError, ValueError, TypeError, KeyError, AttributeError)
"""What the auto classes of transformers raise when a file is missing or malformed."""

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
"""Names of weights in the format of pickle, which can run code as it is opened."""

_LONGEST_HEADER = 100 * 2**20
"""Safetensors files with a longer header are refused by the format's own reader too, in bytes."""


# --- configurations and processors ---


def read_config(base: str) -> Any:
    """Reads the configuration of `base`. Raises VlmError if the folder is missing or the model takes no images."""
    folder = Path(base)
    in_folder = folder.parent != Path() and folder.parent.is_dir()
    looks_local = folder.is_absolute() or base.startswith(".") or base.count("/") > 1 or in_folder
    if folder.exists() or looks_local:
        if not folder.is_dir():
            raise VlmError(f"there is no model folder {base}")
        if not (folder / "config.json").is_file():
            raise VlmError(f"the folder {base} contains no model: config.json is missing")
    try:
        config = AutoConfig.from_pretrained(base, local_files_only=folder.is_dir(), trust_remote_code=False)
    except _LOAD_ERRORS as error:
        if "trust_remote_code" in str(error):
            raise VlmError(f"the model {base} has code of its own, which is not run here") from error
        reason = str(error).strip().partition("\n")[0]
        raise VlmError(f"the model {base} could not be found or read: {reason}") from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise VlmError(f"{base} is a {config.model_type} model: it does not generate text from images and text")
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
    local = Path(base).is_dir()
    try:
        processor = AutoProcessor.from_pretrained(base, local_files_only=local, trust_remote_code=False)
    except _LOAD_ERRORS as error:
        processor = _assemble_processor(base, config, local, error)
    for part in ("image_processor", "tokenizer"):
        if getattr(processor, part, None) is None:
            raise VlmError(f"the processor of {base} is missing or incomplete: it has no {part}")
    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise VlmError(f"the tokenizer of {base} has neither a padding token nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def check_weights(base: str, *, allow_pickle: bool = False) -> None:
    """Raises VlmError unless the weight files of a model folder are complete, by names and headers.

    Without `allow_pickle` they must be safetensors, those that an index names and those of an adapter within too.
    """
    folder = Path(base)
    if not folder.is_dir():
        return
    if not allow_pickle:
        _refuse_pickles(folder)
    for index in sorted(folder.glob("*.index.json")):
        if index.name.endswith(".bin.index.json") and not allow_pickle:
            continue  # never read
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise VlmError(f"{index} is not a readable index of weights") from error
        if not allow_pickle and (foreign := [name for name in names if not str(name).endswith(".safetensors")]):
            raise VlmError(pickles_refused(f"the model {base}", [str(foreign[0])]))
        if missing := [str(name) for name in names if not (folder / str(name)).is_file()]:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise VlmError(f"the folder {base} lacks the weights {missing[0]}{others}, which {index.name} names")
    files = weight_files(folder)
    if not files:
        raise VlmError(f"the folder {base} contains no weights (*.safetensors or *.bin)")
    for path in files:
        if path.suffix == ".safetensors":
            _tensor_shapes(path)


def pickles_refused(owner: str, names: Sequence[str] = ()) -> str:
    """Why weights that are no safetensors are not loaded; `names` are some of their files."""
    which = f" ({', '.join(names)})" if names else ""
    return (
        f"{owner} has no weights as safetensors, only pickle files{which}, which can run code as they are opened:"
        " convert them to safetensors, or allow pickles for the whole installation (ILLUME_ALLOW_PICKLE_WEIGHTS=true)"
    )


def _refuse_pickles(folder: Path) -> None:
    """Raises VlmError if the model in `folder`, or an adapter beside it, has pickle files in place of safetensors."""
    adapters = {path.name for path in folder.glob("adapter_model.*")}
    if "adapter_model.bin" in adapters and "adapter_model.safetensors" not in adapters:
        raise VlmError(pickles_refused(f"the adapter in {folder}", ["adapter_model.bin"]))
    if any(path.name not in adapters for path in folder.glob("*.safetensors")):
        return
    if pickles := sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern)):
        raise VlmError(pickles_refused(f"the model {folder}", pickles[:2]))


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder, by name."""
    return sorted(path for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))


def _assemble_processor(base: str, config: Any, local: bool, cause: Exception) -> Any:
    """Builds a processor part by part, without the video processor whose absence may be the `cause` of the failure."""
    if type(config) not in PROCESSOR_MAPPING:
        raise VlmError(f"the processor of {base} is missing or cannot be loaded: {cause}") from cause
    processor_class = without_video_processor(PROCESSOR_MAPPING[type(config)])
    loaders = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
    try:
        settings, rest = processor_class.get_processor_dict(base, local_files_only=local)
        names = processor_class.get_attributes()
        if unknown := [name for name in names if name not in loaders]:
            raise VlmError(f"the processor of {base} needs a {unknown[0]}, which is not supported")
        parts = [loaders[name].from_pretrained(base, local_files_only=local, trust_remote_code=False) for name in names]
        return processor_class.from_args_and_dict(parts, {**settings, "video_processor": None}, **rest)
    except _LOAD_ERRORS as error:
        raise VlmError(f"the processor of {base} is missing or cannot be loaded: {error}") from error


def pick_device(device: str) -> torch.device:
    """The device with this name; "auto" prefers a GPU. Raises VlmError if this machine does not have the device."""
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
    """The dtype with this name; "auto" is bfloat16 on a GPU that supports it, else float32."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in kinds:
        raise VlmError(f"unknown dtype {dtype}: use auto, {', '.join(kinds)}")
    return kinds[dtype]


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
                    f"the adapter {adapter} is a pickle file ({pickles[0].name}), which can run code as it is opened:"
                    " adapters are safetensors only"
                )
            raise VlmError(f"{adapter} is not an adapter: {name} is missing")
    record_file = folder / ADAPTER_RECORD
    if record_file.is_file():
        recorded = json.loads(record_file.read_text())
        present = base_fingerprint(base)
        if recorded.get("base_fingerprint") and present and recorded["base_fingerprint"] != present:
            raise VlmError(
                f"the adapter {adapter} was made for another base model ({recorded.get('base')}), not for {base}"
            )
    config = read_config(base) if config is None else config
    with torch.device("meta"):
        skeleton = AutoModelForImageTextToText.from_config(config)
    modules = dict(skeleton.named_modules())
    shapes = _tensor_shapes(folder / "adapter_model.safetensors")
    _check_shapes(base, adapter, modules, shapes)
    settings = PeftConfig.from_pretrained(adapter)
    targets = {name for name, module in modules.items() if hasattr(module, "weight") and _is_target(settings, name)}
    adapted = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in shapes}
    if missing := sorted(targets - adapted):
        raise VlmError(
            f"the adapter {adapter} was made for another base model: it has no weights for {missing[0]} of {base}"
        )


def _is_target(settings: Any, name: str) -> bool:
    return bool(check_target_module_exists(settings, name))


def _tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Reads tensor names and shapes from the header of a safetensors file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, _LONGEST_HEADER)))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise VlmError(f"{path} is not a readable safetensors file") from error
    if path.stat().st_size < 8 + length + max(ends, default=0):
        raise VlmError(f"{path} is shorter than its header says: it was not copied completely")
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def _check_shapes(base: str, adapter: str, modules: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for key, shape in shapes.items():
        path, part, _ = key.removeprefix("base_model.model.").partition(".lora_")
        if not part:
            continue
        suffix = key[len("base_model.model.") + len(path) :]
        module = modules.get(path)
        if module is None:
            raise VlmError(f"the adapter {adapter} was made for another base model: {base} has no module {path}")
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2 or len(shape) != 2:
            continue
        axis = 1 if suffix.startswith(".lora_A") else 0 if suffix.startswith(".lora_B") else None
        if axis is not None and shape[axis] != weight.shape[axis]:
            raise VlmError(
                f"the adapter {adapter} was made for another base model: {path} has weights of shape"
                f" {tuple(weight.shape)} in {base}, but the adapter's have shape {shape}"
            )
