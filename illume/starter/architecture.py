"""The untrained model, a LLaVA of about seven million parameters, with its tokenizer and processor."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from illume.guard import policies
from illume.guard import rationales as guard_rationales
from illume.pairs import questions as pair_questions
from illume.pairs import rationales as pair_rationales
from illume.pairs.questions import Language
from illume.scenes.graph import sample_scene
from illume.scenes.questions import FAMILIES, WORDINGS, make_question
from illume.scenes.rationales import CIRCULAR, correct_rationales
from illume.starter.scene_texts import DESCRIBE, answer_prompt, describe_scene, rationale_prompt
from illume.starter.texts import EOS, GERMAN_WORDS, IMAGE, LISTS

IMAGE_SIZE = 96
PATCH = 12
IMAGE_TOKENS = (IMAGE_SIZE // PATCH) ** 2
VOCABULARY = 3072
CONTEXT = 2048
PAD = "<pad>"

# The parts of a turn follow one another as they stand; an assistant's turn ends with the end token. Two texts in a row
# are separated by a space.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set parts = [{'type': 'text', 'text': message['content']}] if message['content'] is string"
    " else message['content'] -%}"
    "{%- if message['role'] == 'assistant' -%}{{- ' ' -}}{%- endif -%}"
    "{%- for part in parts -%}"
    "{%- if part['type'] == 'image' -%}<image>"
    "{%- else -%}"
    "{{- (' ' if loop.previtem is defined and loop.previtem['type'] == 'text' else '') + part['text'] | trim -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if message['role'] == 'assistant' -%}<eos>{%- endif -%}"
    "{%- endfor -%}"
)


def _corpus(seed: int, n: int) -> Iterator[str]:
    """Texts like those that the model is trained on, with all wordings."""
    rng = random.Random(seed)
    for index in range(n):
        yield from _scene_texts(rng, index)
        yield from _pair_texts(rng, index)
        yield from _guard_texts(rng)
    for _ in range(5):
        yield from (f" {wording}" for wordings in WORDINGS.values() for wording in wordings)
        yield from (f" {text}" for text in (*CIRCULAR, *guard_rationales.CIRCULAR, *GERMAN_WORDS))
        yield from (f" {text}" for texts in pair_rationales.CIRCULAR.values() for text in texts)
        yield from (f" {text}" for texts in LISTS.values() for text in texts)
        yield from (f"Q: {text}" for leads in pair_questions.LEADS.values() for lead in leads for text in lead)


def _scene_texts(rng: random.Random, index: int) -> Iterator[str]:
    scene = sample_scene(rng)
    yield f"{DESCRIBE} {describe_scene(scene)}"
    question = make_question(scene, FAMILIES[index % len(FAMILIES)], rng)
    if question is not None:
        yield f"{answer_prompt(question)} {question.answer}"
        for text in correct_rationales(question.query, question.answer, scene):
            yield f"{rationale_prompt(question)} {text}"


def _pair_texts(rng: random.Random, index: int) -> Iterator[str]:
    families = pair_questions.FAMILIES
    language: Language = "de" if index // len(families) % 3 else "en"  # German needs more words than English
    question = pair_questions.sample_question(rng, families[index % len(families)], language)
    pair = pair_questions.sample_pair_for(question.query, question.meaning, rng)
    yield question.text  # after a picture
    yield f"Q: {question.text} A: {question.answer}, seeing that"
    for text in pair_rationales.correct_rationales(question, pair)[::2]:
        yield f" {text}"


def _guard_texts(rng: random.Random) -> Iterator[str]:
    scene, policy, found = policies.sample_case(rng)
    yield f"{policy.text}\nQ: {rng.choice(policies.QUESTIONS)} A:"
    text = guard_rationales.sample_correct(scene, policy, found, rng)
    yield f" {policies.answer_json(found, text)}"


def build_tokenizer(seed: int = 0, *, n: int = 9_000) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer of at most VOCABULARY tokens on `n` samples of each task.

    Every word of the tasks is one token, and any text can be encoded.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=[PAD, EOS, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed, n), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Builds the processor: images are resized to 96 px, `<image>` becomes 64 tokens; with the chat template."""
    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def build_starter(
    tokenizer: PreTrainedTokenizerFast, seed: int = 0, *, layers: int = 6
) -> LlavaForConditionalGeneration:
    """Builds the untrained model: SigLIP (4 layers, width 192) and Llama (`layers` of width 256, tied embeddings)."""
    torch.manual_seed(seed)
    vision = SiglipVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = None
    return model


def save_starter(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Saves model and processor. The weights are stored in float16 and meant to be loaded in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.to(torch.float16) for name, value in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(folder, state_dict=state)
    name_for_servers(folder / "model.safetensors")
    processor.save_pretrained(folder)


def name_for_servers(file: Path) -> None:
    """Names the weights of the vision tower as older models have them.

    Transformers loads both names, and vLLM only these.
    """
    new, old = "vision_tower.", "vision_tower.vision_model."
    weights = load_file(file)
    renamed = {
        name if name.startswith(old) or not name.startswith(new) else old + name.removeprefix(new): value.clone()
        for name, value in weights.items()
    }
    if renamed.keys() != weights.keys():
        save_file(renamed, file, metadata={"format": "pt"})
