"""Scores a model version's structured answers on given prompts: greedy ones, and samples as critics are shown.

The result of `evaluate_structured` can be written as JSON. It has `prompts` and `settings`, `heldout` as in
`illume.evaluation.evaluation`, and `fields` with `greedy` and `sampled`, which both have:

* `answers`: for each prompt a list of answers, each with the values of its fields, or None where it is invalid;
* `invalid`: in the same form, what is wrong with each (`illume.fields.answers.REASONS`), or None;
* `measures`: those of `illume.evaluation.field_metrics`, with their intervals; `by_change` for each policy variant;
* `balanced`: what each image contributes to the balanced accuracy, so that versions can be compared in pairs;
* `counts`: what `illume.evaluation.field_metrics.COLUMNS` counts of each image, from which all measures follow;
* `rationales`: scores of the rationales (`illume.evaluation.evaluation.score_rationales`). That of an invalid answer is
  empty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from illume.evaluation.evaluation import (
    FIELD_PARTS,
    TOKEN_BUDGET,
    Part,
    Scores,
    count_texts,
    mean,
    sampled_params,
    score_rationales,
)
from illume.evaluation.field_metrics import (
    FieldCase,
    Measures,
    balanced_by_image,
    count_by_image,
    field_measures,
    measures_by_change,
)
from illume.fields.answers import InvalidAnswer, Reason, Values, parse_answer
from illume.fields.definitions import AnswerFields
from illume.fields.variants import change_of
from illume.model.prompting import DEFAULT_TEMPLATE, answer_prompt
from illume.model.vision_cache import EncodedPromptCache
from illume.model.vlm import Vlm, decode
from illume.records import Example, TrainingRow
from illume.sampling.constraint import answer_constraint
from illume.sampling.decoding import Completion, DecodeRequest, decode_prompts
from illume.sampling.generation import structured_logprobs
from illume.sampling.sampler import SamplingParams
from illume.settings import EvaluationSettings, SamplingSettings


def evaluate_structured(
    vlm: Vlm,
    examples: Sequence[Example],
    fields: AnswerFields,
    settings: EvaluationSettings,
    *,
    max_new_tokens: int,
    heldout: Sequence[TrainingRow] = (),
    template: str = DEFAULT_TEMPLATE,
    parts: Sequence[Part] = FIELD_PARTS,
    known: Mapping[str, Any] | None = None,
    on_part: Callable[[str, Any], None] | None = None,
    progress: Callable[[int], None] | None = None,
    prompt_cache: EncodedPromptCache | None = None,
) -> Scores:
    """Scores the answers of the model in `vlm`, and `heldout` ones; those longer than `max_new_tokens` are invalid.

    An example whose metadata have a `variant` is a variant of the one with the same images that has none. Nothing is
    redrawn, since that would hide how many answers are invalid. `parts`, `known`, `on_part` and `progress` are as in
    `illume.evaluation.evaluation.evaluate`.
    """
    scores: Scores = {
        "prompts": [example.id for example in examples],
        "settings": dataclasses.asdict(settings)
        | {"template": template, "max_fields_tokens": max_new_tokens, "answer_fields": fields.to_json()},
    }
    report = progress or (lambda _: None)
    for part in FIELD_PARTS:
        if part in (known or {}):
            scores[part] = (known or {})[part]
            continue
        if part not in parts:
            continue
        if part == "fields":
            texts = _generate(vlm, examples, fields, settings, max_new_tokens, template, report, prompt_cache)
            styles = {"greedy": [row[:1] for row in texts], "sampled": [row[1:] for row in texts]}
            scores[part] = {
                style: score_answers(examples, rows, fields, seed=settings.seed) for style, rows in styles.items()
            }
        else:
            scores[part] = _score_heldout(vlm, heldout, fields, template)
            report(len(heldout))
        if on_part is not None:
            on_part(part, scores[part])
    return scores


def _generate(
    vlm: Vlm,
    examples: Sequence[Example],
    fields: AnswerFields,
    settings: EvaluationSettings,
    max_new_tokens: int,
    template: str,
    report: Callable[[int], None],
    prompt_cache: EncodedPromptCache | None,
) -> list[list[str]]:
    """A greedy answer to each prompt, then `settings.samples` sampled ones."""
    texts: list[list[str]] = [[] for _ in examples]

    def keep(index: int, completions: list[Completion]) -> Sequence[SamplingParams]:
        texts[index] = [decode(vlm, one.token_ids) for one in completions]
        return ()

    requests = []
    for example in examples:
        params = (SamplingParams(), *sampled_params(vlm, example, settings))
        prompt = answer_prompt(example, template=template)
        constraint = answer_constraint(vlm, fields, example.policy)
        requests.append(DecodeRequest(prompt, example.images, params, constraint=constraint))
    if requests:
        decode_prompts(
            vlm,
            requests,
            max_new_tokens=max_new_tokens,
            token_budget=TOKEN_BUDGET,
            on_completions=keep,
            progress=count_texts(report, 1 + settings.samples),
            prompt_cache=prompt_cache,
        )
    return texts


def _score_heldout(vlm: Vlm, rows: Sequence[TrainingRow], fields: AnswerFields, template: str) -> Scores:
    answers = [
        (row.example, {**(row.values or {}), fields.rationale.name: row.rationale})
        for row in rows
        if row.rationale is not None
    ]
    settings = SamplingSettings(template=template, token_budget=TOKEN_BUDGET)
    values = structured_logprobs(vlm, answers, fields, settings) if answers else []
    return {"prompts": [example.id for example, _ in answers], "mean_logprob": values, "mean": mean(values)}


def score_answers(
    examples: Sequence[Example], texts: Sequence[Sequence[str]], fields: AnswerFields, *, seed: int
) -> Scores:
    """Scores the texts of answers, a list for each example."""
    read = [[_read(text, fields, example) for text in row] for example, row in zip(examples, texts, strict=True)]
    answers = [[values for values, _ in row] for row in read]
    cases = field_cases(examples, answers)
    name = fields.rationale.name
    return {
        "answers": answers,
        "invalid": [[reason for _, reason in row] for row in read],
        "measures": _plain(field_measures(cases, fields, seed=seed)) if cases else {},
        "by_change": {
            change: _plain(measures) for change, measures in measures_by_change(cases, fields, seed=seed).items()
        },
        "balanced": balanced_by_image(cases, fields),
        "counts": count_by_image(cases, fields).astype(int).tolist(),
        "rationales": score_rationales(
            examples, [[(values or {}).get(name) or "" for values in row] for row in answers]
        ),
    }


def field_cases(examples: Sequence[Example], answers: Sequence[Sequence[Values | None]]) -> list[FieldCase]:
    """The cases of all answers. The n-th answer under a variant is compared with the n-th one under its base."""
    bases: dict[tuple[str, ...], str] = {}
    for example in examples:
        if not change_of(example.metadata):
            bases.setdefault(example.images, example.id)
    cases = []
    for example, row in zip(examples, answers, strict=True):
        change = change_of(example.metadata)
        base = bases.get(example.images) if change else None
        for number, values in enumerate(row):
            cases.append(
                FieldCase(
                    id=f"{example.id}#{number}",
                    image="\x1f".join(example.images),
                    gold=example.fields,
                    answer=values,
                    base=None if base is None else f"{base}#{number}",
                    change=change,
                )
            )
    return cases


def _read(text: str, fields: AnswerFields, example: Example) -> tuple[Values | None, Reason | None]:
    try:
        return parse_answer(text, fields, example.policy), None
    except InvalidAnswer as error:
        return None, error.reason


def _plain(measures: Measures) -> Mapping[str, Any]:
    return {name: None if one is None else dataclasses.asdict(one) for name, one in measures.items()}
