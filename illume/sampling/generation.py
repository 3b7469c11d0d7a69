"""Generates candidate sets of rationales and the model's own answers, and scores given rationales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from illume.fields.answers import InvalidAnswer, answer_json, parse_answer
from illume.fields.definitions import AnswerFields
from illume.model.prompting import (
    PromptText,
    answer_prompt,
    count_characters,
    count_pictures,
    rationale_prompt,
    rationale_text,
)
from illume.model.vision_cache import EncodedPromptCache
from illume.model.vlm import IGNORED, Vlm, append_continuations, bare_model, decode, encode, encode_continuation
from illume.records import AnswerSource, Example, Rationale, stable_seed
from illume.sampling.constraint import answer_constraint
from illume.sampling.decoding import Completion, DecodeRequest, OnCompletions, decode_prompts, is_out_of_memory
from illume.sampling.sampler import SamplingParams
from illume.settings import SamplingSettings
from illume.texts import normalise_rationale

Progress = Callable[[int, int], None]
"""Called with the number of finished prompts and the number of all prompts."""

OnSet = Callable[[int, list[Rationale]], None]
"""Called with the index of an example and its candidate set, as soon as the set is complete."""


@dataclass
class _Sample:
    """One rationale to be sampled. Each redraw of a duplicate has a seed of its own."""

    temperature: float
    number: int  # its place in the candidate set
    redraw: int = 0
    seed: int = 0


@dataclass
class _CandidateSet:
    """The candidate set of one example in progress: what was kept, and the samples that are being decoded."""

    open: list[_Sample]
    kept: list[tuple[int, Rationale]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)  # normalised texts

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
    """Samples a candidate set of distinct rationales for each example, in the order of `settings.temperatures`.

    The prompt contains the gold answer, or the model's own if there is none; `answers` forces one of the two.
    Duplicates and empty texts are redrawn up to `settings.redraws` times, then dropped, so a set may be smaller than
    asked for. The same example, settings and seed give the same set whatever else is in the batch, up to numerical
    precision. Raises ValueError if gold answers are forced and an example has none.

    With `settings.answer_fields` structured answers are sampled, after the answer prompt; tokens that no valid answer
    allows are not chosen. Invalid answers, such as those that are cut off, are redrawn as well, then kept as `invalid`,
    even if there is another of the same text.
    """
    fields = settings.answer_fields
    if fields is None:
        prompt_answers, sources = _resolve_answers(vlm, examples, settings, answers)
    else:
        prompt_answers, sources = [""] * len(examples), ["own"] * len(examples)
    sets = [_CandidateSet(_plan_samples(example, settings, seed)) for example in examples]
    requests = [
        _make_request(vlm, example, answer, _sampling_params(vlm, candidates.open, settings), settings)
        for example, answer, candidates in zip(examples, prompt_answers, sets, strict=True)
    ]

    def keep_distinct(index: int, completions: list[Completion]) -> Sequence[SamplingParams]:
        candidates, example = sets[index], examples[index]
        redraws: list[_Sample] = []
        for sample, completion in zip(candidates.open, completions, strict=True):
            rationale = _to_rationale(vlm, example, sample, completion, prompt_answers[index], sources[index])
            key = normalise_rationale(rationale.text)
            if fields is not None:
                rationale, key = _read_answer(rationale, fields, example)
            may_redraw = sample.temperature > 0 and sample.redraw < settings.redraws
            is_new = bool(key) and key not in candidates.seen
            keeps = not may_redraw if rationale.invalid else is_new
            if keeps:
                candidates.seen.add(key)
                candidates.kept.append((sample.number, rationale))
            elif may_redraw:
                redraws.append(_with_seed(replace(sample, redraw=sample.redraw + 1), example, seed))
        candidates.open = redraws
        if not redraws and on_set is not None:
            on_set(index, candidates.ordered())
        return _sampling_params(vlm, redraws, settings)

    _decode(vlm, requests, settings, keep_distinct, progress)
    return [candidates.ordered() for candidates in sets]


def _make_request(
    vlm: Vlm, example: Example, answer: str, params: tuple[SamplingParams, ...], settings: SamplingSettings
) -> DecodeRequest:
    """The request for a rationale after `answer`, or for a structured answer."""
    template, policy, fields = settings.template, example.policy, settings.answer_fields
    if fields is None:
        text = rationale_prompt(example, answer, template=template)
        return DecodeRequest(text, example.images, params)
    text = answer_prompt(example, template=template)
    return DecodeRequest(text, example.images, params, constraint=answer_constraint(vlm, fields, policy))


def _read_answer(answer: Rationale, fields: AnswerFields, example: Example) -> tuple[Rationale, str]:
    """The structured answer in the project's form, or marked as invalid; and what tells it from others of its set."""
    try:
        values = parse_answer(answer.text, fields, example.policy)
    except InvalidAnswer as error:
        return replace(answer, invalid=error.reason), answer.text
    told_apart = {**values, fields.rationale.name: normalise_rationale(values[fields.rationale.name] or "")}
    return replace(answer, text=answer_json(values, fields)), answer_json(told_apart, fields)


def generate_answers(
    vlm: Vlm,
    examples: Sequence[Example],
    settings: SamplingSettings,
    *,
    progress: Progress | None = None,
    prompt_cache: EncodedPromptCache | None = None,
) -> list[str]:
    """Generates the model's own answer to each question, greedily. `prompt_cache` is as in `decode_prompts`."""
    answers = [""] * len(examples)
    requests = [
        DecodeRequest(answer_prompt(example, template=settings.template), example.images, (SamplingParams(),))
        for example in examples
    ]

    def keep_answer(index: int, completions: list[Completion]) -> Sequence[SamplingParams]:
        answers[index] = decode(vlm, completions[0].token_ids)
        return ()

    _decode(vlm, requests, settings, keep_answer, progress, prompt_cache)
    return answers


def mean_logprobs(vlm: Vlm, rows: Sequence[tuple[Example, str, str]], settings: SamplingSettings) -> list[float]:
    """Mean natural-log probability per token (end token included) of each rationale in (example, answer, rationale).

    The batch size follows `settings.token_budget`; it is halved when memory runs out.
    """
    token_ids = [encode_continuation(vlm, rationale_text(rationale)) for _, _, rationale in rows]
    prompts = [rationale_prompt(example, answer, template=settings.template) for example, answer, _ in rows]

    def estimate(i: int) -> tuple[int, int]:
        n_pictures = count_pictures(prompts[i], len(rows[i][0].images))
        return n_pictures, count_characters(prompts[i]) + 4 * len(token_ids[i])

    order = sorted(range(len(rows)), key=estimate)
    scores = [0.0] * len(rows)
    model = bare_model(vlm)
    was_training = model.training
    model.eval()
    try:
        size, start = 1, 0  # the first batch of one tells how wide the rows are
        limit = len(rows)
        while start < len(order):
            batch = order[start : start + size]
            try:
                values, width = _score_batch(
                    vlm, [rows[i][0] for i in batch], [prompts[i] for i in batch], [token_ids[i] for i in batch]
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
def _score_batch(
    vlm: Vlm, examples: Sequence[Example], prompts: Sequence[PromptText], token_ids: Sequence[Sequence[int]]
) -> tuple[list[float], int]:
    """Mean log-probabilities of the continuations `token_ids` of `prompts`, and the width of the batch in tokens."""
    inputs = encode(vlm, prompts, [example.images for example in examples])
    ready, labels = append_continuations(vlm, inputs, token_ids)
    keep = max(len(row) for row in token_ids) + 1
    ready |= {"use_cache": False, "logits_to_keep": keep, "return_dict": True}
    logits = bare_model(vlm)(**ready).logits
    logits, labels = logits[:, -keep:-1].float(), labels[:, -keep + 1 :]
    mask = labels != IGNORED  # (batch, keep - 1), as `labels`; `logits` has the vocabulary as third dimension
    chosen = logits.gather(2, labels.clamp(min=0)[..., None])[..., 0] - logits.logsumexp(dim=-1)
    means = (chosen * mask).sum(dim=1) / mask.sum(dim=1)
    return means.tolist(), int(ready["input_ids"].shape[1])


def _resolve_answers(
    vlm: Vlm, examples: Sequence[Example], settings: SamplingSettings, forced: AnswerSource | None
) -> tuple[list[str], list[AnswerSource]]:
    """The answer to use in each prompt, and its source. Generates the model's own answers where they are needed."""
    sources: list[AnswerSource] = [forced or ("own" if example.answer is None else "gold") for example in examples]
    without = [example for example, source in zip(examples, sources, strict=True) if source == "own"]
    own = iter(generate_answers(vlm, without, settings) if without else [])
    answers: list[str] = []
    for example, source in zip(examples, sources, strict=True):
        answer = next(own) if source == "own" else example.answer
        if answer is None:
            raise ValueError(f"example {example.id} has no gold answer")
        answers.append(answer)
    return answers, sources


def _plan_samples(example: Example, settings: SamplingSettings, seed: int) -> list[_Sample]:
    samples: list[_Sample] = []
    for temperature, count in settings.temperatures:
        for _ in range(count):
            samples.append(_with_seed(_Sample(temperature, len(samples)), example, seed))
    return samples


def _with_seed(sample: _Sample, example: Example, seed: int) -> _Sample:
    parts = (seed, example.id, float(sample.temperature), sample.number, sample.redraw)
    return replace(sample, seed=stable_seed(*parts))


def _sampling_params(vlm: Vlm, samples: Sequence[_Sample], settings: SamplingSettings) -> tuple[SamplingParams, ...]:
    vocabulary = bare_model(vlm).config.get_text_config().vocab_size
    top_k = max(1, round(settings.top_k_share * vocabulary)) if settings.top_k_share < 1 else 0
    return tuple(SamplingParams(sample.temperature, top_k, settings.top_p, sample.seed) for sample in samples)


def _to_rationale(
    vlm: Vlm, example: Example, sample: _Sample, completion: Completion, answer: str, source: AnswerSource
) -> Rationale:
    return Rationale(
        example_id=example.id,
        text=decode(vlm, completion.token_ids),
        temperature=sample.temperature,
        seed=sample.seed,
        mean_logprob=completion.logprob / len(completion.token_ids),
        n_tokens=len(completion.token_ids),
        answer=answer,
        answer_source=source,
    )


def _decode(
    vlm: Vlm,
    requests: Sequence[DecodeRequest],
    settings: SamplingSettings,
    on_completions: OnCompletions,
    progress: Progress | None,
    prompt_cache: EncodedPromptCache | None = None,
) -> None:
    decode_prompts(
        vlm,
        requests,
        max_new_tokens=settings.max_new_tokens,
        token_budget=settings.token_budget,
        on_completions=on_completions,
        progress=progress,
        prompt_cache=prompt_cache,
    )
