"""Generates candidate sets of rationales and the model's own answers, and scores given rationales."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from illume.fields.answers import Values, answer_pieces
from illume.fields.definitions import AnswerFields
from illume.model.prompting import answer_prompt, answer_text, rationale_prompt, rationale_text
from illume.model.vision_cache import EncodedPromptCache
from illume.model.vlm import Vlm, bare_model, decode, encode_continuation, encode_pieces
from illume.records import AnswerSource, Example, Rationale
from illume.sampling.constraint import answer_constraint
from illume.sampling.decoding import Completion, DecodeRequest, OnCompletions, decode_prompts
from illume.sampling.drawing import Draw, Sample
from illume.sampling.sampler import SamplingParams
from illume.sampling.scoring import Continuation, mean_logprobs_of_rows, score_continuations
from illume.settings import SamplingSettings

Progress = Callable[[int, int], None]
"""Called with the number of finished prompts and the number of all prompts."""

OnSet = Callable[[int, list[Rationale]], None]
"""Called with the index of an example and its candidate set, as soon as the set is complete."""


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
    draws = [Draw(example, settings, seed) for example in examples]
    requests = [
        _make_request(vlm, example, answer, _sampling_params(vlm, draw.open, settings), settings)
        for example, answer, draw in zip(examples, prompt_answers, draws, strict=True)
    ]

    def keep_distinct(index: int, completions: list[Completion]) -> Sequence[SamplingParams]:
        draw, example = draws[index], examples[index]
        answer, source = prompt_answers[index], sources[index]
        drawn = zip(draw.open, completions, strict=True)
        redraws = draw.take([(one, _to_rationale(vlm, example, one, made, answer, source)) for one, made in drawn])
        if not redraws and on_set is not None:
            on_set(index, draw.ordered())
        return _sampling_params(vlm, redraws, settings)

    _decode(vlm, requests, settings, keep_distinct, progress)
    return [draw.ordered() for draw in draws]


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
    continuations = [
        Continuation(
            rationale_prompt(example, answer, template=settings.template),
            example.images,
            tuple(encode_continuation(vlm, rationale_text(rationale))),
        )
        for example, answer, rationale in rows
    ]
    return score_continuations(vlm, continuations, mean_logprobs_of_rows, token_budget=settings.token_budget)


def structured_logprobs(
    vlm: Vlm, rows: Sequence[tuple[Example, Values]], fields: AnswerFields, settings: SamplingSettings
) -> list[float]:
    """As `mean_logprobs`, of the rationale in each structured answer, after the values that stand before it."""
    scored = []
    for example, values in rows:
        pieces = [
            (text, name if name == fields.rationale.name else None) for text, name in answer_pieces(values, fields)
        ]
        token_ids, names = zip(*encode_pieces(vlm, [(answer_text(""), None), *pieces]), strict=True)
        prompt = answer_prompt(example, template=settings.template)
        counts = tuple(name is not None for name in names)
        scored.append(Continuation(prompt, example.images, tuple(token_ids), counts))
    return score_continuations(vlm, scored, mean_logprobs_of_rows, token_budget=settings.token_budget)


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


def _sampling_params(vlm: Vlm, samples: Sequence[Sample], settings: SamplingSettings) -> tuple[SamplingParams, ...]:
    vocabulary = bare_model(vlm).config.get_text_config().vocab_size
    top_k = max(1, round(settings.top_k_share * vocabulary)) if settings.top_k_share < 1 else 0
    return tuple(SamplingParams(sample.temperature, top_k, settings.top_p, sample.seed) for sample in samples)


def _to_rationale(
    vlm: Vlm, example: Example, sample: Sample, completion: Completion, answer: str, source: AnswerSource
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
