"""Loads a vision-language model with its processor and one adapter, and turns texts and images into model inputs.

No model family is treated specially: image placeholders come from the processor, position ids and token types from the
model's own generation hooks.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from peft import PeftModel
from PIL import Image, UnidentifiedImageError
from transformers import AutoModelForImageTextToText

from illume.errors import UNEXPECTED_ERRORS, VlmError
from illume.model.folder import check_weights, pickles_refused, place_of
from illume.model.loading import (
    ADAPTER_RECORD,
    base_fingerprint,
    check_adapter,
    load_processor,
    read_config,
    weights_options,
)
from illume.model.machine import check_machine, pick_device, pick_dtype
from illume.model.prompting import PromptText, shown_images
from illume.parts import ImagePart, Parts, TextPart, join_texts, texts_of
from illume.phrases import _, ngettext, said_by
from illume.pictures import as_seen, enlarged

IGNORED = -100
"""The label of tokens that are left out of the loss, as in torch's cross-entropy."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

Inputs = dict[str, Any]
ImageLike = Image.Image | str | Path


@dataclass
class Vlm:
    """A loaded model: a base model with at most one adapter.

    `model` is the transformers model, or the peft model that wraps it when there is an adapter. The private fields
    cache properties of the model that are determined on first use.

    Where the weights are sharded over several processes, all of them have to make the same forward passes. `agree` then
    replaces a tensor by that of the first process, so that texts do not part by a rounding error.
    """

    model: Any
    processor: Any
    device: torch.device
    dtype: torch.dtype
    base: str
    adapter: str | None = None
    quantization: str = "none"
    agree: Callable[[torch.Tensor], torch.Tensor] | None = None
    _last_prompt_character: str | None = field(default=None, repr=False)
    _end_token_id: int | None = field(default=None, repr=False)
    _is_causal: bool | None = field(default=None, repr=False)
    _shares_prefixes: bool | None = field(default=None, repr=False)
    _vocabulary: Any = field(default=None, repr=False)  # of illume.sampling.constraint, as are the next ones
    _constraints: dict[Any, Any] = field(default_factory=dict, repr=False)
    _reads_pictures_first: bool | None = field(default=None, repr=False)

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer


def bare_model(vlm: Vlm) -> Any:
    """The transformers model without the peft wrapper. Its layers still apply the adapter, if there is one."""
    return vlm.model.get_base_model() if isinstance(vlm.model, PeftModel) else vlm.model


# --- loading -----------------------------------------------------------------------------------------------------


def load_vlm(
    base: str,
    *,
    adapter: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str = "auto",
    quantization: str = "none",
    allow_pickle: bool = False,
    place: Callable[[Any], None] | None = None,
) -> Vlm:
    """Loads `base` in evaluation mode, with the adapter in folder `adapter` if given.

    `base` is a folder, or a hub name with `@COMMIT` or without. With "auto" for `device` and `dtype` the model runs in
    bfloat16 on a GPU if there is one, else in float32 on the CPU. `attn_implementation` is a name of transformers;
    with a `quantization` the language model's weights are loaded in 8 or 4 bits. Weights are safetensors, unless
    `allow_pickle`. `place`, if given, brings the loaded model to its device. Raises VlmError. Every problem that small
    files can reveal is reported before the weights are read.
    """
    check_machine(device=device, dtype=dtype, attn_implementation=attn_implementation, quantization=quantization)
    config = read_config(base)
    processor = load_processor(base, config)
    check_weights(base, allow_pickle=allow_pickle)
    if adapter is not None:
        check_adapter(base, adapter, config=config)
    torch_device = pick_device(device)
    torch_dtype = pick_dtype(dtype, torch_device)
    options = weights_options(base, config, torch_device, torch_dtype, attn_implementation, quantization)
    name, found_by = place_of(base)
    try:
        model, found = AutoModelForImageTextToText.from_pretrained(
            name,
            config=config,
            output_loading_info=True,
            dtype=torch_dtype,
            **options,
            **found_by,
            trust_remote_code=False,
            use_safetensors=None if allow_pickle else True,
        )
    except UNEXPECTED_ERRORS as error:
        if not allow_pickle and "use_safetensors" in str(error):
            raise VlmError(pickles_refused(_("the model %(name)s", name=base))) from error
        raise VlmError(
            _("the weights of %(base)s cannot be loaded: %(error)s", base=base, error=said_by(error))
        ) from error
    if lacking := sorted(found["missing_keys"]):  # transformers would put random numbers there
        raise VlmError(
            ngettext(
                "the weights of %(base)s are incomplete: they lack %(first)s",
                "the weights of %(base)s are incomplete: they lack %(num)s tensors, such as %(first)s",
                len(lacking),
                base=base,
                first=lacking[0],
            )
        )
    if place is not None:
        place(model)
    elif quantization == "none":  # else its weights are there already, and cannot be moved
        model.to(torch_device)
    model.eval()
    vlm = Vlm(model, processor, torch_device, torch_dtype, base, quantization=quantization)
    if adapter is not None:
        _attach_adapter(vlm, adapter)
    return vlm


# --- adapters ----------------------------------------------------------------------------------------------------


def set_adapter(vlm: Vlm, adapter: str | None) -> None:
    """Replaces the current adapter by the one in folder `adapter`; None leaves the base model alone.

    Raises VlmError, and leaves the model unchanged, if the adapter was not made for this base model.
    """
    if adapter is not None:
        check_adapter(vlm.base, adapter, config=bare_model(vlm).config)
    if isinstance(vlm.model, PeftModel):
        vlm.model = vlm.model.unload()
    vlm.adapter = None
    if adapter is not None:
        _attach_adapter(vlm, adapter)
    vlm.model.eval()


def _attach_adapter(vlm: Vlm, adapter: str) -> None:
    with without_peft_warning():
        vlm.model = PeftModel.from_pretrained(vlm.model, adapter, is_trainable=False, autocast_adapter_dtype=False)
    vlm.model.eval()
    vlm.adapter = adapter


@contextmanager
def without_peft_warning() -> Iterator[None]:
    """Hides a deprecation warning that peft causes in transformers whenever it attaches an adapter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)
        yield


def save_adapter(vlm: Vlm, folder: str) -> None:
    """Writes the adapter of `vlm.model` into `folder`, with a record of its base model and how that was loaded."""
    if not isinstance(vlm.model, PeftModel):
        raise VlmError(_("the model has no adapter to save"))
    vlm.model.save_pretrained(
        folder, save_embedding_layers=False
    )  # otherwise peft queries the hub about the base model
    precision = str(vlm.dtype).removeprefix("torch.") if vlm.quantization == "none" else vlm.quantization
    record = {"base": vlm.base, "base_fingerprint": base_fingerprint(vlm.base), "base_precision": precision}
    (Path(folder) / ADAPTER_RECORD).write_text(json.dumps(record, indent=1) + "\n")


# --- texts and images to inputs ----------------------------------------------------------------------------------


def open_image(image: ImageLike) -> Image.Image:
    """Opens an image as people see it (`illume.pictures`), in RGB. Raises VlmError naming an unreadable file.

    One whose shorter side has under 56 pixels is scaled up: some models cannot encode it otherwise.
    """
    if isinstance(image, Image.Image):
        return enlarged(as_seen(image).pixels.convert("RGB"))
    try:
        with Image.open(image) as opened:
            return enlarged(as_seen(opened).pixels.convert("RGB"))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise VlmError(_("the image %(image)s cannot be read: %(error)s", image=image, error=said_by(error))) from error


def encode(
    vlm: Vlm,
    prompts: Sequence[PromptText],
    images: Sequence[Sequence[ImageLike]],
    *,
    padding_side: Literal["left", "right"] = "left",
) -> Inputs:
    """Turns prompts into model inputs on the model's device.

    The result has `input_ids` and `attention_mask`, both (batch, tokens), `pixel_values`, and whatever else the
    family's processor returns. Parts keep their order; a text alone comes after its images. With a chat template, the
    parts form a user turn, followed by the header of the assistant's turn; without one, image tokens stand in the
    places of the pictures. A model that reads all pictures first gets them first. Control tokens that occur in a text
    are treated as plain text. Raises VlmError for a prompt without images.
    """
    if len(prompts) != len(images):
        raise VlmError(
            _("%(count)s prompts came with %(count2)s lists of images", count=len(prompts), count2=len(images))
        )
    texts = [wrap_prompt(vlm, prompt, len(group)) for prompt, group in zip(prompts, images, strict=True)]
    opened: dict[str, Image.Image] = {}
    pictures = [
        [_open_once(group[place], opened) for place in _places(prompt, len(group))]
        for prompt, group in zip(prompts, images, strict=True)
    ]
    return _process(vlm, texts, pictures, padding_side)


def _places(prompt: PromptText, n_images: int) -> tuple[int, ...]:
    """The positions of the images that a prompt shows, in order. Raises VlmError for none, and for one too high."""
    places = shown_images(prompt, n_images)
    if not places:
        raise VlmError(_("every prompt needs at least one image"))
    if max(places) >= n_images:
        raise VlmError(
            _(
                "a prompt with %(n_images)s images shows the one at position %(place)s",
                n_images=n_images,
                place=max(places),
            )
        )
    return places


def _process(
    vlm: Vlm, texts: Sequence[str], pictures: Sequence[Sequence[Image.Image]], padding_side: Literal["left", "right"]
) -> Inputs:
    """Runs the processor on the results of `wrap_prompt`."""
    bos = vlm.tokenizer.bos_token
    with warnings.catch_warnings():
        # The processor of one family converts tensors to arrays in a deprecated way; callers cannot avoid it.
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        batch = vlm.processor(
            text=list(texts),
            images=[list(group) for group in pictures],
            padding=True,
            padding_side=padding_side,
            return_tensors="pt",
            # A chat template may already begin with the first special token, which must not be added twice.
            add_special_tokens=not (bos and texts[0].startswith(bos)),
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


def wrap_prompt(vlm: Vlm, prompt: PromptText, n_images: int) -> str:
    """The prompt in the form that the processor expects, with placeholders for its pictures.

    `n_images` is the number of the prompt's images; a text alone comes after all of them.
    """
    _places(prompt, n_images)
    if isinstance(prompt, str):
        parts: Parts = (*map(ImagePart, range(n_images)), TextPart(prompt))
    elif any(isinstance(part, TextPart) for part in prompt) and reads_pictures_first(vlm):
        parts = (*(part for part in prompt if isinstance(part, ImagePart)), TextPart(join_texts(prompt)))
    else:
        parts = prompt
    return _render_parts(vlm, parts)


def _render_parts(vlm: Vlm, parts: Parts) -> str:
    texts = iter([_escape_control_tokens(vlm, text) for text in texts_of(parts)])
    if _has_chat_template(vlm):
        content = [
            {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": next(texts)}
            for part in parts
        ]
        return _render_chat(vlm, [{"role": "user", "content": content}], add_generation_prompt=True)
    return "".join(_image_token(vlm) if isinstance(part, ImagePart) else next(texts) for part in parts)


def reads_pictures_first(vlm: Vlm) -> bool:
    """Whether the model reads all pictures of a prompt before its texts, whatever their order."""
    if vlm._reads_pictures_first is None:
        vlm._reads_pictures_first = bool(find_pictures_first(vlm))
    return vlm._reads_pictures_first


def find_pictures_first(vlm: Vlm) -> bool | None:
    """Encodes text, picture, text, picture, and looks where the pictures' tokens land. None if that cannot be seen.

    The pictures come first if the chat template puts them there, or if the processor begins the text after the last
    one. The model itself is not needed.
    """
    one, two = "zebra", "walrus"
    picture = Image.new("RGB", (64, 64))
    try:
        text = _render_parts(vlm, (TextPart(one), ImagePart(0), TextPart(two), ImagePart(1)))
        ids = _process(vlm, [text], [[picture, picture]], "left")["input_ids"][0].tolist()
        image = vlm.tokenizer.convert_tokens_to_ids(_image_token(vlm))
    except UNEXPECTED_ERRORS:  # such as a processor that takes one picture only
        return None
    start = None if _has_chat_template(vlm) else vlm.tokenizer.bos_token_id
    found: list[str] = []
    for special, run in groupby(ids, key=lambda token: token if token in (image, start) else None):
        if special is not None:
            found.append("picture" if special == image else "start")
            continue
        words = vlm.tokenizer.decode(list(run), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        found += sorted((word for word in (one, two) if word in words), key=words.index)
    if "picture" not in found or one not in found or two not in found:
        return None
    rest = found[found.index(one) :]
    return "picture" not in rest or "start" in rest


def _render_chat(vlm: Vlm, turns: list[dict[str, Any]], **options: Any) -> str:
    """Renders turns by the model's chat template. Raises VlmError where the template fails."""
    try:
        return str(vlm.processor.apply_chat_template(turns, tokenize=False, **options))
    except TemplateError as error:
        raise VlmError(
            _("the chat template of %(base)s fails: %(error)s", base=vlm.base, error=said_by(error))
        ) from error


def _has_chat_template(vlm: Vlm) -> bool:
    return bool(getattr(vlm.processor, "chat_template", None))


def _image_token(vlm: Vlm) -> str:
    token = getattr(vlm.processor, "image_token", None) or getattr(vlm.tokenizer, "image_token", None)
    if not token:
        raise VlmError(_("the processor of %(base)s has neither a chat template nor an image token", base=vlm.base))
    return str(token)


_PLACE_TOKEN = re.compile(r"<(?:loc\d{4}|seg\d{3})>")
"""Tokens of places and shapes in a picture, as PaliGemma has them: added to its tokenizer, but not as special ones."""


def _escape_control_tokens(vlm: Vlm, text: str) -> str:
    """Inserts a space into each control token that a question or rationale contains, so that it is read as text."""
    tokens = {str(token) for token in vlm.tokenizer.all_special_tokens}
    tokens |= {str(token) for token in vlm.tokenizer.added_tokens_decoder.values() if token.special}
    for name in ("image_token", "video_token", "boi_token", "eoi_token", "fake_image_token"):
        token = getattr(vlm.processor, name, None)
        if token:
            tokens.add(str(token))
    # Whatever else the processor knows as a token, such as the tags between the tiles of an image.
    tokens |= {
        value for name, value in vars(vlm.processor).items() if name.endswith(("_token", "_tag")) and type(value) is str
    }
    if places := set(_PLACE_TOKEN.findall(text)):
        tokens |= places & vlm.tokenizer.get_added_vocab().keys()
    for token in sorted(tokens, key=len, reverse=True):
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def last_prompt_character(vlm: Vlm) -> str:
    """The last character of the prompt "A:" as the model sees it: ":", or a newline after many chat templates."""
    if vlm._last_prompt_character is None:
        inputs = encode(vlm, ["A:"], [[Image.new("RGB", (64, 64))]])
        last = int(inputs["input_ids"][0, -1])
        text = vlm.tokenizer.decode([last], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        vlm._last_prompt_character = str(text)[-1:] or ":"
    return vlm._last_prompt_character


def encode_continuation(vlm: Vlm, text: str) -> list[int]:
    """Token ids of `text` (an answer or rationale with its leading space) as they follow a prompt, plus the end token.

    If the prompt itself ends in white space the leading space is dropped, as the model would not generate it again.
    """
    return [*_continuation_tokens(vlm, _escape_control_tokens(vlm, text))[0], end_token_id(vlm)]


def encode_pieces(vlm: Vlm, pieces: Sequence[tuple[str, str | None]]) -> list[tuple[int, str | None]]:
    """The tokens of `encode_continuation` for a text in pieces, each with the label of the piece that it is part of.

    A token of several pieces has the first label among them; the end token has none. Raises VlmError if the tokenizer
    does not say which characters a token stands for.
    """
    escaped = [(_escape_control_tokens(vlm, text), label) for text, label in pieces]
    try:
        ids, spans = _continuation_tokens(vlm, "".join(text for text, _ in escaped), offsets=True)
    except NotImplementedError as error:
        raise VlmError(
            _("the tokenizer of %(base)s does not say which characters a token stands for", base=vlm.base)
        ) from error
    labels: list[str | None] = []  # by character
    for text, label in escaped:
        labels += [label] * len(text)
    found = [next((label for label in labels[start:end] if label is not None), None) for start, end in spans]
    return [*zip(ids, found, strict=True), (end_token_id(vlm), None)]


def _continuation_tokens(vlm: Vlm, text: str, *, offsets: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of `text` as they follow a prompt, and with `offsets` the part of the text that each stands for."""
    last = last_prompt_character(vlm)
    rest, anchor = (text.lstrip(), last) if last.isspace() else (text, ":")
    # Some tokenizers add a space before any text. Encoding an anchor first gives the tokens as they follow a prompt.
    alone = vlm.tokenizer(anchor, add_special_tokens=False)["input_ids"]
    joined = vlm.tokenizer(anchor + rest, add_special_tokens=False, return_offsets_mapping=offsets)
    n_dropped, shift = len(alone), len(text) - len(rest) - len(anchor)
    if joined["input_ids"][:n_dropped] != alone:
        joined = vlm.tokenizer(rest, add_special_tokens=False, return_offsets_mapping=offsets)
        n_dropped, shift = 0, len(text) - len(rest)
    spans = [(start + shift, end + shift) for start, end in joined["offset_mapping"][n_dropped:]] if offsets else []
    return joined["input_ids"][n_dropped:], spans


def stop_token_ids(vlm: Vlm) -> tuple[int, ...]:
    """The tokens that end a generated text: the generation configuration's, and the tokenizer's end of sequence."""
    configured = bare_model(vlm).generation_config.eos_token_id
    ids = [] if configured is None else [configured] if isinstance(configured, int) else list(configured)
    ids.append(vlm.tokenizer.eos_token_id)
    return tuple(sorted({int(token) for token in ids if token is not None}))


def end_token_id(vlm: Vlm) -> int:
    """The token that ends a training text: the one that closes a turn in the chat template, if it is a stop token.

    Otherwise the tokenizer's end of sequence. Raises VlmError if the model has no stop token.
    """
    if vlm._end_token_id is None:
        vlm._end_token_id = _find_end_token_id(vlm)
    return vlm._end_token_id


def _find_end_token_id(vlm: Vlm) -> int:
    stops = stop_token_ids(vlm)
    if not stops:
        raise VlmError(_("%(base)s has no end token in its generation configuration or its tokenizer", base=vlm.base))
    if _has_chat_template(vlm):
        marker = "zebra"
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": [{"type": "text", "text": "Q"}]},
            {"role": "assistant", "content": [{"type": "text", "text": marker}]},
        ]
        rendered = _render_chat(vlm, turns)
        after = vlm.tokenizer(rendered.rpartition(marker)[2], add_special_tokens=False)["input_ids"]
        closing = [token for token in after if token in stops]
        if closing:
            return int(closing[0])
    default = vlm.tokenizer.eos_token_id
    return int(default) if default is not None else stops[0]


def decode(vlm: Vlm, ids: Sequence[int]) -> str:
    """Decodes generated tokens to stripped text, without special tokens and control characters but tab and newline."""
    text = vlm.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return _CONTROL.sub("", str(text)).strip()


# --- inputs for the model's forward pass -------------------------------------------------------------------------


def forward_inputs(vlm: Vlm, inputs: Inputs) -> Inputs:
    """Adds position ids, and whatever else the family adds before its first forward pass, to the result of `encode`."""
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
    """Appends a continuation to each left-padded prompt of `encode`, right-padded to a common length.

    Returns inputs for a forward pass, and labels (batch, tokens) that are IGNORED on prompts and padding.
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
    # Let the model choose the type of generated tokens: in one family 1 marks an image, in another an answer.
    grown = bare_model(vlm)._update_model_kwargs_for_generation({}, dict(full))
    for key in ("token_type_ids", "mm_token_type_ids"):
        if key in full:
            full[key] = torch.cat([full[key], grown[key][:, -1:].expand(-1, longest)], dim=1)
    full["input_ids"] = torch.cat([ids, added.to(ids.device)], dim=1)
    full["attention_mask"] = torch.cat([inputs["attention_mask"], mask.to(ids.device)], dim=1)
    return forward_inputs(vlm, full), labels.to(ids.device)
