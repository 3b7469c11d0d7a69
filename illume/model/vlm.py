"""Load a vision-language model with its processor and one adapter; turn texts and images into what it is fed.

Nothing here knows a family by name: image placeholders come from the processor, positions and token types from the
model's own generation hooks.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import AutoModelForImageTextToText

from illume.model.loading import ADAPTER_RECORD as ADAPTER_RECORD
from illume.model.loading import VlmError as VlmError
from illume.model.loading import base_fingerprint as base_fingerprint
from illume.model.loading import check_adapter as check_adapter
from illume.model.loading import image_only as image_only
from illume.model.loading import load_processor, pick_device, pick_dtype
from illume.model.loading import read_config as read_config

IGNORED = -100
"""The label of a token no loss is taken of."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

Inputs = dict[str, Any]
ImageLike = Image.Image | str | Path


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
    _reads_forward: bool | None = field(default=None, repr=False)
    _shares_prompts: bool | None = field(default=None, repr=False)

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
    processor = load_processor(base, config)
    if adapter is not None:
        check_adapter(base, adapter, config=config)
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
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
    with without_peft_warning():
        vlm.model = PeftModel.from_pretrained(vlm.model, adapter, is_trainable=False, autocast_adapter_dtype=False)
    vlm.model.eval()
    vlm.adapter = adapter


@contextmanager
def without_peft_warning() -> Iterator[None]:
    """Within it an adapter is attached: peft asks transformers by an old name, of which its user need not hear."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)
        yield


def save_adapter(vlm: Vlm, folder: str) -> None:
    """Writes the adapter of `vlm.model` into `folder`, with a record of the base it belongs to."""
    if not isinstance(vlm.model, PeftModel):
        raise VlmError("the model has no adapter to save")
    vlm.model.save_pretrained(folder, save_embedding_layers=False)  # else peft asks the hub about the base
    record = {"base": vlm.base, "base_fingerprint": base_fingerprint(vlm.base)}
    (Path(folder) / ADAPTER_RECORD).write_text(json.dumps(record, indent=1) + "\n")


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
