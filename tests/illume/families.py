"""Tiny, randomly initialised vision-language models, built and saved without network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)

from illume.model.loading import without_video_processor

LEXICON = (
    "Q A seeing that what is where how many the a red blue green dog cat boat there one two three yes no on in of "
    "sand water park night day sun because it can be seen : , . ? !"
)


def make_tokenizer(*special: str, **names: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose merges are the words above, so that any text is tokenised and words are one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for word in LEXICON.split():
        left = ""
        for right in [*word, None]:
            pair = (left, right) if right else ("Ġ", left)
            if left and "".join(pair) not in vocab:
                vocab["".join(pair)] = len(vocab)
                merges.append(pair)
            left += right or ""
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", **names
    )
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def _save(model: Any, processor: Any, folder: Path) -> Path:
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **more,
    }


CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:TAIL{% endif %}"
)


def chat_template(image: str, tail: str = "") -> str:
    """A chat template that writes `image` for an image and ends, for the answer, in `tail` after "assistant:"."""
    return CHAT_TEMPLATE.replace("IMAGE", image).replace("TAIL", tail)


LLAVA_1_5 = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% endif %}"
    "{% endfor %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
"""All images of a turn before its texts, as in the template of LLaVA-1.5."""

SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def make_llava(folder: Path, *, chat: bool = True, seed: int = 0, hidden_size: int = 32, context: int = 512) -> Path:
    """LLaVA: 16 image tokens an image."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer("<image>")
    config = LlavaConfig(
        vision_config=dict(SIGLIP),
        text_config={
            "model_type": "llama",
            **_text(tokenizer, hidden_size=hidden_size, max_position_embeddings=context),
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=16,
    )
    processor = LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=chat_template("<image>") if chat else None,
    )
    return _save(LlavaForConditionalGeneration(config), processor, folder)


def _tile_tokens() -> list[str]:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    return ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles]


def make_idefics3(folder: Path, *, seed: int = 0) -> Path:
    """Idefics3, the family of the first SmolVLM: images in tiles, 4 image tokens a tile."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(*_tile_tokens())
    config = Idefics3Config(
        vision_config={**SIGLIP, "model_type": "idefics3_vision"},
        text_config={"model_type": "llama", **_text(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=chat_template("<image>"),
    )
    return _save(Idefics3ForConditionalGeneration(config), processor, folder)


def make_smolvlm(folder: Path, *, seed: int = 0) -> Path:
    """SmolVLM, the second generation: Idefics3 with a processor that also asks for videos."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(*_tile_tokens())
    config = SmolVLMConfig(
        vision_config={**SIGLIP, "model_type": "smolvlm_vision"},
        text_config={"model_type": "llama", **_text(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    processor = without_video_processor(SmolVLMProcessor)(
        image_processor=SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        tokenizer=tokenizer,
        video_processor=None,
        image_seq_len=4,
        chat_template=chat_template("<image>"),
    )
    return _save(SmolVLMForConditionalGeneration(config), processor, folder)


def make_qwen2_5_vl(folder: Path, *, seed: int = 0) -> Path:
    """Qwen2.5-VL: positions in three dimensions, image tokens by the image's size."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in (
            ("vision_start", "<|vision_start|>"),
            ("vision_end", "<|vision_end|>"),
            ("image", "<|image_pad|>"),
            ("video", "<|video_pad|>"),
        )
    }
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 8,
            "window_size": 32,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        text_config=_text(tokenizer, rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1]}),
        **ids,
    )
    processor = without_video_processor(Qwen2_5_VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(patch_size=8, min_pixels=16 * 16, max_pixels=48 * 48),
        tokenizer=tokenizer,
        video_processor=None,
        chat_template=chat_template("<|vision_start|><|image_pad|><|vision_end|>", tail="{{ '\\n' }}"),
    )
    return _save(Qwen2_5_VLForConditionalGeneration(config), processor, folder)


def make_paligemma2(folder: Path) -> Path:
    """The second PaliGemma: Gemma 2 writes its texts, with a sliding window and attention scores held down by tanh."""
    text = {"model_type": "gemma2", "query_pre_attn_scalar": 8, "sliding_window": 12, "attn_logit_softcapping": 0.05}
    return make_paligemma(folder, text=text)


def make_paligemma(folder: Path, *, seed: int = 0, text: dict[str, Any] | None = None) -> Path:
    """PaliGemma: no chat template, a prompt that is read in both directions and ends in a line break."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer("<image>")
    image_processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    image_processor.image_seq_length = 16
    processor = PaliGemmaProcessor(image_processor=image_processor, tokenizer=tokenizer)
    config = PaliGemmaConfig(
        vision_config=dict(SIGLIP),
        text_config={"model_type": "gemma", **_text(tokenizer, head_dim=8), **(text or {})},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
        vocab_size=len(tokenizer),
    )
    return _save(PaliGemmaForConditionalGeneration(config), processor, folder)


def make_gemma3(folder: Path, *, seed: int = 0) -> Path:
    """Gemma 3: sliding and full attention in turn, a window shorter than a prompt, images read in both directions."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(
        extra_special_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        }
    )
    config = Gemma3Config(
        vision_config=dict(SIGLIP),
        text_config={
            "model_type": "gemma3_text",
            **_text(tokenizer, head_dim=8, query_pre_attn_scalar=8, sliding_window=12),
            "layer_types": ["sliding_attention", "full_attention"],
        },
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=chat_template("<start_of_image>", tail="{{ '\\n' }}"),
    )
    model = Gemma3ForConditionalGeneration(config)
    # An untrained projector is zero, and the model blind.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return _save(model, processor, folder)


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llava": make_llava,
    "idefics3": make_idefics3,
    "smolvlm": make_smolvlm,
    "qwen2_5_vl": make_qwen2_5_vl,
    "paligemma": make_paligemma,
    "gemma3": make_gemma3,
}

REPRESENTATIVE = "qwen2_5_vl"
"""The family least like the others: images of any shape, of as many patches as they need."""

EACH_FAMILY = [
    pytest.param(family, marks=() if family == REPRESENTATIVE else pytest.mark.slow, id=family) for family in FAMILIES
]
"""For tests that train: one family in the quick tests, all in the slow ones."""


def make_text_only(folder: Path) -> Path:
    """A Llama without eyes."""
    tokenizer = make_tokenizer()
    return _save_text(LlamaForCausalLM(LlamaConfig(**_text(tokenizer))), tokenizer, folder)


def _save_text(model: Any, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_images(folder: Path, count: int) -> list[str]:
    """Files of small pictures that all differ, in colour and in where a square stands."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        picture = Image.new("RGB", (40, 32), ((53 * number) % 256, (97 * number + 60) % 256, (31 * number + 120) % 256))
        left, top = 8 * (number % 4), 8 * (number // 4 % 3)
        picture.paste((255 - (53 * number) % 256, 255, 40 * number % 256), (left, top, left + 8, top + 8))
        path = folder / f"{number}.png"
        picture.save(path)
        paths.append(str(path))
    return paths
