"""Scores a model version's structured answers on given prompts: greedy ones, and samples as critics are shown.

The result of `evaluate_structured` can be written as JSON. It has `prompts` and `settings`, and under `greedy` and
`sampled`:

* `answers`: for each prompt a list of answers, each with the values of its fields, or None where it is invalid;
* `invalid`: in the same form, what is wrong with each (`illume.fields.answers.REASONS`), or None;
* `measures`: those of `illume.evaluation.field_metrics`, with their intervals; `by_change` for each policy variant;
* `balanced`: what each image contributes to the balanced accuracy, so that versions can be compared in pairs;
* `rationales`: scores of the rationales (`illume.evaluation.evaluation.score_rationales`). That of an invalid answer is
  empty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from illume.evaluation.evaluation import Scores, score_rationales
from illume.evaluation.field_metrics import (
    FieldCase,
    Measures,
    balanced_by_image,
    field_measures,
    measures_by_change,
)
from illume.fields.answers import InvalidAnswer, Reason, Values, parse_answer
from illume.fields.definitions import AnswerFields
from illume.model.prompting import DEFAULT_TEMPLATE, answer_prompt
from illume.model.vision_cache import EncodedPromptCache
from illume.model.vlm import Vlm, bare_model, decode
from illume.records import Example, stable_seed
from illume.sampling.constraint import answer_constraint
from illume.sampling.decoding import Completion, DecodeRequest, decode_prompts
from illume.sampling.sampler import SamplingParams
from illume.settings import EvaluationSettings

_TOKEN_BUDGET = 16384


def evaluate_structured(
    vlm: Vlm,
    examples: Sequence[Example],
    fields: AnswerFields,
    settings: EvaluationSettings,
    *,
    max_new_tokens: int,
    template: str = DEFAULT_TEMPLATE,
    progress: Callable[[int, int], None] | None = None,
    prompt_cache: EncodedPromptCache | None = None,
) -> Scores:
    """Scores the answers of the model in `vlm`; those longer than `max_new_tokens` are invalid.

    An example whose metadata have a `variant` is a variant of the one with the same images that has none. Nothing is
    redrawn, since that would hide how many answers are invalid. Raises ValueError without examples.
    """
    texts: list[list[str]] = [[] for _ in examples]
    vocabulary = bare_model(vlm).config.get_text_config().vocab_size
    top_k = max(1, round(settings.top_k_share * vocabulary))

    def keep(index: int, completions: list[Completion]) -> Sequence[SamplingParams]:
        texts[index] = [decode(vlm, one.token_ids) for one in completions]
        return ()

    requests = []
    for example in examples:
        seeds = [stable_seed(settings.seed, example.id, number) for number in range(settings.samples)]
        sampled = [SamplingParams(settings.temperature, top_k, seed=seed) for seed in seeds]
        prompt = answer_prompt(example, template=template)
        constraint = answer_constraint(vlm, fields, example.policy)
        requests.append(DecodeRequest(prompt, example.images, (SamplingParams(), *sampled), constraint=constraint))
    decode_prompts(
        vlm,
        requests,
        max_new_tokens=max_new_tokens,
        token_budget=_TOKEN_BUDGET,
        on_completions=keep,
        progress=progress,
        prompt_cache=prompt_cache,
    )
    settings_used = dataclasses.asdict(settings) | {"template": template, "max_new_tokens": max_new_tokens}
    return {
        "prompts": [example.id for example in examples],
        "settings": settings_used | {"answer_fields": fields.to_json()},
        "greedy": score_answers(examples, [row[:1] for row in texts], fields, seed=settings.seed),
        "sampled": score_answers(examples, [row[1:] for row in texts], fields, seed=settings.seed),
    }


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
        "measures": _plain(field_measures(cases, fields, seed=seed)),
        "by_change": {
            change: _plain(measures) for change, measures in measures_by_change(cases, fields, seed=seed).items()
        },
        "balanced": balanced_by_image(cases, fields),
        "rationales": score_rationales(
            examples, [[(values or {}).get(name) or "" for values in row] for row in answers]
        ),
    }


def field_cases(examples: Sequence[Example], answers: Sequence[Sequence[Values | None]]) -> list[FieldCase]:
    """The cases of all answers. The n-th answer under a variant is compared with the n-th one under its base."""
    bases: dict[tuple[str, ...], str] = {}
    for example in examples:
        if not example.metadata.get("variant"):
            bases.setdefault(example.images, example.id)
    cases = []
    for example, row in zip(examples, answers, strict=True):
        change = str(example.metadata.get("variant") or "")
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
