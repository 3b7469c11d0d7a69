"""The untrained model, a LLaVA of about seven million parameters, with its tokenizer and processor."""

from __future__ import annotations

import random
from collections.abc import Iterator

from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from illume.guard import policies
from illume.guard import rationales as guard_rationales
from illume.pairs import questions as pair_questions
from illume.pairs import rationales as pair_rationales
from illume.pairs.questions import Language
from illume.scenes.graph import sample_scene
from illume.scenes.questions import FAMILIES, WORDINGS, make_question
from illume.scenes.rationales import CIRCULAR, correct_rationales
from illume.scenes.starter.architecture import build_model, train_tokenizer
from illume.scenes.texts import DESCRIBE, answer_prompt, describe_scene, rationale_prompt
from illume.starter.texts import GERMAN_WORDS, LISTS

CONTEXT = 2048

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
    """Trains the tokenizer on `n` samples of each task; every word is one token, and it can encode any text."""
    return train_tokenizer(_corpus(seed, n), vocab_size=3072, context=CONTEXT)


def build_starter(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlavaForConditionalGeneration:
    """Builds the untrained model: that of `illume.scenes.starter` with six layers of text instead of four."""
    return build_model(tokenizer, seed, layers=6)
