"""Model and examples to rationales: each prompt is encoded once, and all its samples decode with all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from illume.model.prompting import (
    rationale_text,
    render_answer_prompt,
    render_rationale_prompt,
)
from illume.model.vision_cache import EncodedPrompts
from illume.model.vlm import IGNORED, Vlm, append_continuations, bare_model, continuation_ids, decode, encode
from illume.records import AnswerSource, Example, Rationale, stable_seed
from illume.sampling.decoding import DecodePrompt, Draw, Written, decode_prompts, is_out_of_memory
from illume.settings import SamplingSettings
from illume.texts import normalise_rationale

Progress = Callable[[int, int], None]
"""Called with how many prompts are done, and how many there are."""

OnSet = Callable[[int, list[Rationale]], None]
"""Called with an example's index and its set, once that is whole."""


@dataclass
class _Sample:
    """One rationale wanted: where it stands in its set, and the draw that is to write it."""

    temperature: float
    number: int
    redraw: int = 0
    seed: int = 0


@dataclass
class _Set:
    """The candidate set of one example while it is made. `open` are the samples being drawn."""

    open: list[_Sample]
    kept: list[tuple[int, Rationale]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def ordered(self) -> list[Rationale]:
        return [rationale for _, rationale in sorted(self.kept, key=lambda pair: pair[0])]


def sample_rationales(
    vlm: Vlm,
    examples: Sequence[Example],
    settings: SamplingSettings,
    *,
    seed: int,
    progress: Progress | None = None,
    answers: AnswerSource | None = None,
    on_set: OnSet | None = None,
) -> list[list[Rationale]]:
    """A set of distinct rationales for each example, in the order of `settings.temperatures`.

    The prompt holds the gold answer, or the model's own where there is none; `answers` forces one of the two.
    Duplicates and empty texts are redrawn, then dropped, so a set may be shorter than asked for. The same example,
    settings and seed give the same set whatever it is batched with, to the model's numerical precision.
    Raises ValueError when gold answers are forced and an example has none.
    """
    said, sources = _answers(vlm, examples, settings, answers)
    sets = [_Set(_wanted(example, settings, seed)) for example in examples]
    prompts = [
        DecodePrompt(
            render_rationale_prompt(example.question, answer, template=settings.template),
            example.images,
            _draws(vlm, group.open, settings),
        )
        for example, answer, group in zip(examples, said, sets, strict=True)
    ]

    def keep(index: int, written: list[Written]) -> Sequence[Draw]:
        group, example = sets[index], examples[index]
        again: list[_Sample] = []
        for sample, text in zip(group.open, written, strict=True):
            rationale = _rationale(vlm, example, sample, text, said[index], sources[index])
            if (key := normalise_rationale(rationale.text)) and key not in group.seen:
                group.seen.add(key)
                group.kept.append((sample.number, rationale))
            elif sample.temperature > 0 and sample.redraw < settings.redraws:
                again.append(_seeded(replace(sample, redraw=sample.redraw + 1), example, seed))
        group.open = again
        if not again and on_set is not None:
            on_set(index, group.ordered())
        return _draws(vlm, again, settings)

    _decode(vlm, prompts, settings, keep, progress)
    return [group.ordered() for group in sets]


def generate_answers(
    vlm: Vlm,
    examples: Sequence[Example],
    settings: SamplingSettings,
    *,
    progress: Progress | None = None,
    memory: EncodedPrompts | None = None,
) -> list[str]:
    """The model's own greedy answer to each example's question; `memory` as `illume.sampling.decoding` has it."""
    answers = [""] * len(examples)
    prompts = [
        DecodePrompt(render_answer_prompt(example.question, template=settings.template), example.images, (Draw(),))
        for example in examples
    ]

    def keep(index: int, written: list[Written]) -> Sequence[Draw]:
        answers[index] = decode(vlm, written[0].ids)
        return ()

    _decode(vlm, prompts, settings, keep, progress, memory)
    return answers


def mean_logprobs(vlm: Vlm, rows: Sequence[tuple[Example, str, str]], settings: SamplingSettings) -> list[float]:
    """Mean natural-log probability per token (end token included) of each (example, answer, rationale)."""
    tokens = [continuation_ids(vlm, rationale_text(rationale)) for _, _, rationale in rows]
    prompts = [render_rationale_prompt(row[0].question, row[1], template=settings.template) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i][0].images), len(prompts[i]) + 4 * len(tokens[i])))
    scores = [0.0] * len(rows)
    model = bare_model(vlm)
    was_training = model.training
    model.eval()
    try:
        size, start = 1, 0
        limit = len(rows)
        while start < len(order):
            batch = order[start : start + size]
            try:
                values, width = _score(
                    vlm, [rows[i][0] for i in batch], [prompts[i] for i in batch], [tokens[i] for i in batch]
                )
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(batch) == 1:
                    raise
                size = limit = len(batch) // 2
                continue
            for index, value in zip(batch, values, strict=True):
                scores[index] = value
            start += len(batch)
            size = max(1, min(limit, settings.token_budget // width))
    finally:
        model.train(was_training)
    return scores


@torch.inference_mode()
def _score(
    vlm: Vlm, examples: Sequence[Example], prompts: Sequence[str], tokens: Sequence[Sequence[int]]
) -> tuple[list[float], int]:
    """Mean log-probabilities of `tokens` behind `prompts`, and the width of the batch in tokens."""
    inputs = encode(vlm, prompts, [example.images for example in examples])
    ready, labels = append_continuations(vlm, inputs, tokens)
    keep = max(len(row) for row in tokens) + 1
    ready |= {"use_cache": False, "logits_to_keep": keep, "return_dict": True}
    logits = bare_model(vlm)(**ready).logits
    logits, labels = logits[:, -keep:-1].float(), labels[:, -keep + 1 :]
    mask = labels != IGNORED
    chosen = logits.gather(2, labels.clamp(min=0)[..., None])[..., 0] - logits.logsumexp(dim=-1)
    means = (chosen * mask).sum(dim=1) / mask.sum(dim=1)
    return means.tolist(), int(ready["input_ids"].shape[1])


def _answers(
    vlm: Vlm, examples: Sequence[Example], settings: SamplingSettings, forced: AnswerSource | None
) -> tuple[list[str], list[AnswerSource]]:
    """The answer that stands in each prompt, and whose it is."""
    sources: list[AnswerSource] = [forced or ("own" if example.answer is None else "gold") for example in examples]
    asked = [example for example, source in zip(examples, sources, strict=True) if source == "own"]
    own = iter(generate_answers(vlm, asked, settings) if asked else [])
    said: list[str] = []
    for example, source in zip(examples, sources, strict=True):
        answer = next(own) if source == "own" else example.answer
        if answer is None:
            raise ValueError(f"example {example.id} has no gold answer")
        said.append(answer)
    return said, sources


def _wanted(example: Example, settings: SamplingSettings, seed: int) -> list[_Sample]:
    samples: list[_Sample] = []
    for temperature, count in settings.temperatures:
        for _ in range(count):
            samples.append(_seeded(_Sample(temperature, len(samples)), example, seed))
    return samples


def _seeded(sample: _Sample, example: Example, seed: int) -> _Sample:
    parts = (seed, example.id, float(sample.temperature), sample.number, sample.redraw)
    return replace(sample, seed=stable_seed(*parts))


def _draws(vlm: Vlm, samples: Sequence[_Sample], settings: SamplingSettings) -> tuple[Draw, ...]:
    vocabulary = bare_model(vlm).config.get_text_config().vocab_size
    top_k = max(1, round(settings.top_k_share * vocabulary)) if settings.top_k_share < 1 else 0
    return tuple(Draw(sample.temperature, top_k, settings.top_p, sample.seed) for sample in samples)


def _rationale(
    vlm: Vlm, example: Example, sample: _Sample, written: Written, answer: str, source: AnswerSource
) -> Rationale:
    return Rationale(
        example_id=example.id,
        text=decode(vlm, written.ids),
        temperature=sample.temperature,
        seed=sample.seed,
        mean_logprob=written.logprob / len(written.ids),
        n_tokens=len(written.ids),
        answer=answer,
        answer_source=source,
    )


def _decode(
    vlm: Vlm,
    prompts: Sequence[DecodePrompt],
    settings: SamplingSettings,
    keep: Callable[[int, list[Written]], Sequence[Draw]],
    progress: Progress | None,
    memory: EncodedPrompts | None = None,
) -> None:
    decode_prompts(
        vlm,
        prompts,
        max_new_tokens=settings.max_new_tokens,
        token_budget=settings.token_budget,
        next_draws=keep,
        progress=progress,
        memory=memory,
    )
