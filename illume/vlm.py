"""Load a vision-language model with its processor and one adapter; turn texts and images into what it is fed.

Nothing here knows a family by name: image placeholders come from the processor, positions and token types from the
model's own generation hooks.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

IGNORED = -100
"""The label of a token no loss is taken of."""

ADAPTER_RECORD = "illume_adapter.json"
"""The file beside an adapter's weights that says which base they belong to."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

_LOAD_ERRORS = (ImportError, OSError, ValueError, TypeError, KeyError, AttributeError)
"""What the auto classes of transformers raise for folders that lack or garble a file."""

Inputs = dict[str, Any]
ImageLike = Image.Image | str | Path


class VlmError(ValueError):
    """A model, processor, adapter or image that cannot be used, with a reason a person can act on."""


@dataclass
class Vlm:
    """A loaded model: the base with at most one whole adapter, never merged.

    `model` is the transformers model, or the peft model around it when there is an adapter.
    """

    model: Any
    processor: Any
    device: torch.device
    dtype: torch.dtype
    base: str
    adapter: str | None = None
    _prompt_tail: str | None = field(default=None, repr=False)
    _end_id: int | None = field(default=None, repr=False)

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer


def bare_model(vlm: Vlm) -> Any:
    """The transformers model; with an adapter its layers hold the adapter's weights too."""
    return vlm.model.get_base_model() if isinstance(vlm.model, PeftModel) else vlm.model


# --- loading -----------------------------------------------------------------------------------------------------


def load_vlm(base: str, *, adapter: str | None = None, device: str = "auto", dtype: str = "auto") -> Vlm:
    """Loads `base` (a folder or a hub name) in evaluation mode, with the adapter in folder `adapter` on top.

    `device` and `dtype` "auto": the GPU in bfloat16 where there is one, else the CPU in float32. Everything that can be
    known to be wrong from small files raises VlmError before the weights are read.
    """
    config = read_config(base)
    processor = _load_processor(base, config)
    if adapter is not None:
        check_adapter(base, adapter, config=config)
    where = _pick_device(device)
    kind = _pick_dtype(dtype, where)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            base, config=config, dtype=kind, local_files_only=Path(base).is_dir()
        )
    except (OSError, RuntimeError) as error:
        raise VlmError(f"the weights of {base} cannot be loaded: {error}") from error
    model.to(where).eval()
    vlm = Vlm(model, processor, where, kind, base)
    if adapter is not None:
        _put_adapter(vlm, adapter)
    return vlm


def read_config(base: str) -> Any:
    """The configuration of `base`; raises VlmError for a missing folder and for a model that takes no images."""
    folder = Path(base)
    looks_local = folder.is_absolute() or base.startswith(".") or base.count("/") > 1
    if folder.exists() or looks_local:
        if not folder.is_dir():
            raise VlmError(f"there is no model folder {base}")
        if not (folder / "config.json").is_file():
            raise VlmError(f"the folder {base} holds no model: config.json is missing")
    try:
        config = AutoConfig.from_pretrained(base, local_files_only=folder.is_dir())
    except (OSError, ValueError, KeyError) as error:
        raise VlmError(f"the model {base} cannot be found or read: {error}") from error
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


def _load_processor(base: str, config: Any) -> Any:
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


def _pick_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise VlmError(f"unknown device {device}") from error


def _pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in kinds:
        raise VlmError(f"unknown dtype {dtype}: use auto, {', '.join(kinds)}")
    return kinds[dtype]


# --- adapters ----------------------------------------------------------------------------------------------------


def set_adapter(vlm: Vlm, adapter: str | None) -> None:
    """Puts the adapter in folder `adapter` in the place of the present one; None leaves the plain base.

    Raises VlmError, with the model unchanged, when the adapter does not belong to the base.
    """
    if adapter is not None:
        check_adapter(vlm.base, adapter, config=bare_model(vlm).config)
    if isinstance(vlm.model, PeftModel):
        vlm.model = vlm.model.unload()
    vlm.adapter = None
    if adapter is not None:
        _put_adapter(vlm, adapter)
    vlm.model.eval()


def _put_adapter(vlm: Vlm, adapter: str) -> None:
    vlm.model = PeftModel.from_pretrained(vlm.model, adapter, is_trainable=False, autocast_adapter_dtype=False)
    vlm.model.eval()
    vlm.adapter = adapter


def save_adapter(vlm: Vlm, folder: str) -> None:
    """Writes the adapter of `vlm.model` into `folder`, with a record of the base it belongs to."""
    if not isinstance(vlm.model, PeftModel):
        raise VlmError("the model has no adapter to save")
    vlm.model.save_pretrained(folder, save_embedding_layers=False)  # else peft asks the hub about the base
    record = {"base": vlm.base, "base_fingerprint": base_fingerprint(vlm.base)}
    (Path(folder) / ADAPTER_RECORD).write_text(json.dumps(record, indent=1) + "\n")


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


# --- texts and images to inputs ----------------------------------------------------------------------------------


def open_image(image: ImageLike) -> Image.Image:
    """The image as RGB, upright; raises VlmError naming a file that is missing or no image."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        with Image.open(image) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise VlmError(f"the image {image} cannot be read: {error}") from error


def encode(
    vlm: Vlm,
    texts: Sequence[str],
    images: Sequence[Sequence[ImageLike]],
    *,
    padding_side: Literal["left", "right"] = "left",
) -> Inputs:
    """Prompts as model inputs on the model's device: `input_ids` and `attention_mask` (batch, tokens), pixels and more.

    Each text gets its images first: through the processor's chat template where there is one, ended as the assistant's
    turn begins, else as the processor's image tokens before the text. Control tokens inside a text stay text.
    """
    if len(texts) != len(images):
        raise VlmError(f"{len(texts)} texts came with {len(images)} lists of images")
    if not all(images):
        raise VlmError("every prompt needs at least one image")
    prompts = [wrap_prompt(vlm, text, len(group)) for text, group in zip(texts, images, strict=True)]
    opened: dict[str, Image.Image] = {}
    pictures = [[_open_once(image, opened) for image in group] for group in images]
    bos = vlm.tokenizer.bos_token
    with warnings.catch_warnings():
        # One family turns tensors into arrays the old way; nothing of ours can change it.
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        batch = vlm.processor(
            text=prompts,
            images=pictures,
            padding=True,
            padding_side=padding_side,
            return_tensors="pt",
            # A chat template that writes the first token itself must not get it twice.
            add_special_tokens=not (bos and prompts[0].startswith(bos)),
        )
    inputs = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor) and key != "labels"}
    return {
        key: value.to(vlm.device, vlm.dtype) if value.is_floating_point() else value.to(vlm.device)
        for key, value in inputs.items()
    }


def _open_once(image: ImageLike, opened: dict[str, Image.Image]) -> Image.Image:
    if isinstance(image, Image.Image):
        return open_image(image)
    key = str(image)
    if key not in opened:
        opened[key] = open_image(image)
    return opened[key]


def wrap_prompt(vlm: Vlm, text: str, n_images: int) -> str:
    """The prompt as the processor wants it, with `n_images` image placeholders before `text`."""
    text = _defuse(vlm, text)
    if _has_chat_template(vlm):
        content: list[dict[str, str]] = [{"type": "image"} for _ in range(n_images)]
        turn = {"role": "user", "content": [*content, {"type": "text", "text": text}]}
        return str(vlm.processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True))
    return _image_token(vlm) * n_images + text


def _has_chat_template(vlm: Vlm) -> bool:
    return bool(getattr(vlm.processor, "chat_template", None))


def _image_token(vlm: Vlm) -> str:
    token = getattr(vlm.processor, "image_token", None) or getattr(vlm.tokenizer, "image_token", None)
    if not token:
        raise VlmError(f"the processor of {vlm.base} has neither a chat template nor an image token")
    return str(token)


def _defuse(vlm: Vlm, text: str) -> str:
    """Breaks control tokens that a question or rationale happens to spell, so that they are read as text."""
    tokens = {str(token) for token in vlm.tokenizer.all_special_tokens}
    for name in ("image_token", "video_token", "boi_token", "eoi_token", "fake_image_token"):
        token = getattr(vlm.processor, name, None)
        if token:
            tokens.add(str(token))
    for token in sorted(tokens, key=len, reverse=True):
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def prompt_tail(vlm: Vlm) -> str:
    """The characters a prompt's tokens end with: ":" for a plain prompt "A:", a newline after many chat templates."""
    if vlm._prompt_tail is None:
        inputs = encode(vlm, ["A:"], [[Image.new("RGB", (64, 64))]])
        last = int(inputs["input_ids"][0, -1])
        text = vlm.tokenizer.decode([last], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        vlm._prompt_tail = str(text)[-1:] or ":"
    return vlm._prompt_tail


def continuation_ids(vlm: Vlm, text: str) -> list[int]:
    """The tokens of `text` (an answer or rationale with its leading space) after a prompt, and the end token.

    Where the prompt itself ends in white space the leading space goes, as the model would not write it again.
    """
    tail = prompt_tail(vlm)
    text = _defuse(vlm, text)
    anchor = ":"
    if tail.isspace():
        text, anchor = text.lstrip(), tail
    # Some tokenizers put a space of their own before a text: behind an anchor it comes as it would in a prompt.
    alone = vlm.tokenizer(anchor, add_special_tokens=False)["input_ids"]
    joined = vlm.tokenizer(anchor + text, add_special_tokens=False)["input_ids"]
    if joined[: len(alone)] == alone:
        ids = joined[len(alone) :]
    else:
        ids = vlm.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*ids, end_id(vlm)]


def stop_ids(vlm: Vlm) -> tuple[int, ...]:
    """Every token that ends a text: the generation configuration's, and the tokenizer's end of sequence."""
    configured = bare_model(vlm).generation_config.eos_token_id
    ids = [] if configured is None else [configured] if isinstance(configured, int) else list(configured)
    ids.append(vlm.tokenizer.eos_token_id)
    return tuple(sorted({int(token) for token in ids if token is not None}))


def end_id(vlm: Vlm) -> int:
    """The token that ends a text in training: what the chat template closes a turn with, if it is a stop token."""
    if vlm._end_id is None:
        vlm._end_id = _find_end_id(vlm)
    return vlm._end_id


def _find_end_id(vlm: Vlm) -> int:
    stops = stop_ids(vlm)
    if not stops:
        raise VlmError(f"{vlm.base} names no end token: neither its generation configuration nor its tokenizer")
    if _has_chat_template(vlm):
        said = "zebra"
        turns = [
            {"role": "user", "content": [{"type": "text", "text": "Q"}]},
            {"role": "assistant", "content": [{"type": "text", "text": said}]},
        ]
        rendered = str(vlm.processor.apply_chat_template(turns, tokenize=False))
        after = vlm.tokenizer(rendered.rpartition(said)[2], add_special_tokens=False)["input_ids"]
        closing = [token for token in after if token in stops]
        if closing:
            return int(closing[0])
    default = vlm.tokenizer.eos_token_id
    return int(default) if default is not None else stops[0]


def decode(vlm: Vlm, ids: Sequence[int]) -> str:
    """The text of generated tokens, stripped, without control tokens; of control characters tabs and breaks stay."""
    text = vlm.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return _CONTROL.sub("", str(text)).strip()


# --- inputs for the model's forward pass -------------------------------------------------------------------------


def forward_inputs(vlm: Vlm, inputs: Inputs) -> Inputs:
    """`inputs` of `encode` with position ids and whatever else the family adds before its first forward pass."""
    model = bare_model(vlm)
    rest = {key: value for key, value in inputs.items() if key != "input_ids"}
    positions = model._prepare_position_ids_for_generation(inputs["input_ids"], rest)
    if positions.dim() == 2 and positions.shape[0] != inputs["input_ids"].shape[0]:
        positions = positions.expand(inputs["input_ids"].shape[0], -1)
    prepared = model.prepare_inputs_for_generation(
        inputs["input_ids"], is_first_iteration=True, position_ids=positions, **rest
    )
    return {key: value for key, value in prepared.items() if value is not None}


def append_continuations(
    vlm: Vlm, inputs: Inputs, continuations: Sequence[Sequence[int]]
) -> tuple[Inputs, torch.Tensor]:
    """Left-padded `inputs` of `encode` with a continuation behind each prompt, right-padded; and labels.

    Returns inputs ready for a forward pass and labels (batch, tokens) that are IGNORED on prompts and padding.
    """
    ids = inputs["input_ids"]
    n_prompt, longest = ids.shape[1], max(len(row) for row in continuations)
    added = torch.full((ids.shape[0], longest), int(vlm.tokenizer.pad_token_id), dtype=ids.dtype)
    labels = torch.full((ids.shape[0], n_prompt + longest), IGNORED)
    mask = torch.zeros((ids.shape[0], longest), dtype=inputs["attention_mask"].dtype)
    for row, tokens in enumerate(continuations):
        added[row, : len(tokens)] = torch.tensor(tokens, dtype=ids.dtype)
        mask[row, : len(tokens)] = 1
        labels[row, n_prompt : n_prompt + len(tokens)] = torch.tensor(tokens)
    full = {key: value for key, value in inputs.items() if key != "input_ids"}
    # The model's own rule says which type a generated token has: in one family 1 marks an image, in another an answer.
    grown = bare_model(vlm)._update_model_kwargs_for_generation({}, dict(full))
    for key in ("token_type_ids", "mm_token_type_ids"):
        if key in full:
            full[key] = torch.cat([full[key], grown[key][:, -1:].expand(-1, longest)], dim=1)
    full["input_ids"] = torch.cat([ids, added.to(ids.device)], dim=1)
    full["attention_mask"] = torch.cat([inputs["attention_mask"], mask.to(ids.device)], dim=1)
    return forward_inputs(vlm, full), labels.to(ids.device)
