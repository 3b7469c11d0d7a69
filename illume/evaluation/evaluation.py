"""Evaluates a model version on given prompts: scores of its answers and rationales, prompt by prompt.

The result of `evaluate` can be written as JSON:

* `prompts`: the example ids, in the order of all lists below.
* `answers`: the model's own greedy answers (`own`), the gold answers (`gold`), `correct` (None without a gold answer),
  and `accuracy`.
* `gold`, `own`: scores of rationales generated after the gold answer (or the model's own if there is none), and after
  the model's own answer. Both have `greedy` and `sampled`, with `rationales` (a list of texts per prompt), per-prompt
  means `rouge_l`, `chrf`, `cider` (None without references) and `faithful` (None without a scene), and `means` over the
  corpus, with `bleu` (1-4) and `distinct_2`. Under `own`, `filtered` repeats the means over prompts whose own answer is
  correct, as is common in the literature. If METEOR is computed, there are also `meteor`, per prompt and on average,
  and `meteor_corpus`.
* `more`: a list of texts per prompt, those that were asked for by the way (`More`). They are not scored.
* `heldout`: the mean log-likelihood per token of held-out accepted rationales, one by one and on average.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from illume.evaluation.meteor import Meteor
from illume.evaluation.metrics import bleu, chrf, cider, distinct_n, rouge_l
from illume.evaluation.tasks import answer_right, faithful
from illume.model.prompting import DEFAULT_TEMPLATE, rationale_prompt
from illume.model.vision_cache import EncodedPromptCache
from illume.model.vlm import Vlm, bare_model, decode
from illume.records import Example, TrainingRow, stable_seed
from illume.sampling.decoding import Completion, DecodeRequest, decode_prompts
from illume.sampling.generation import generate_answers, mean_logprobs
from illume.sampling.prefix_reuse import count_suffix_tokens
from illume.sampling.sampler import SamplingParams
from illume.settings import EvaluationSettings, SamplingSettings

Scores = dict[str, Any]
Part = Literal["answers", "gold", "own", "heldout", "fields"]
PARTS: tuple[Part, ...] = ("answers", "gold", "own", "heldout")
FIELD_PARTS: tuple[Part, ...] = ("fields", "heldout")
"""The parts of `illume.evaluation.structured.evaluate_structured`."""

TOKEN_BUDGET = 16384
"""Tokens of keys and values that are held at a time while a version is scored."""


@dataclass(frozen=True, slots=True)
class More:
    """Rationales to sample beside those that are scored, of the same passes over the prompts with the gold answers."""

    temperature: float
    samples: int


def evaluate(
    vlm: Vlm,
    examples: Sequence[Example],
    settings: EvaluationSettings,
    *,
    heldout: Sequence[TrainingRow] = (),
    template: str = DEFAULT_TEMPLATE,
    parts: Sequence[Part] = PARTS,
    known: Mapping[str, Any] | None = None,
    on_part: Callable[[str, Any], None] | None = None,
    progress: Callable[[int], None] | None = None,
    prompt_cache: EncodedPromptCache | None = None,
    meteor: Meteor | None = None,
    more: More | None = None,
) -> Scores:
    """Scores the model in `vlm` on `examples`, and on `heldout` rationales.

    `known` holds parts that were computed before; they are copied into the result. `on_part` is called with each new
    part as soon as it is complete, `progress` with the number of newly generated texts (it may raise to stop).
    `prompt_cache` saves work when several versions of a base model are scored on the same examples. With `meteor`,
    rationales are scored by METEOR too. With `more`, the result has these texts as well; the part `gold` must be new.

    The part `own` needs `answers`, and so does `gold` if an example has no gold answer; ValueError is raised without.
    """
    if more is not None and "gold" not in set(parts) - set(known or {}):
        raise ValueError("more rationales come with the part gold, which is not computed")
    scores: Scores = {
        "prompts": [example.id for example in examples],
        "settings": dataclasses.asdict(settings) | {"template": template},
    }
    known = known or {}
    report = progress or (lambda _: None)
    together = None
    if prompt_cache is not None and {"answers", "gold"} <= set(parts) - set(known):
        together = _generate_together(vlm, examples, settings, template, report, prompt_cache, more)
    for part in PARTS:
        if part in known:
            scores[part] = known[part]
            continue
        if part not in parts:
            continue
        if part == "answers":
            answers = together and together[1]
            scores[part] = _score_answers(vlm, examples, settings, template, report, prompt_cache, answers)
        elif part == "heldout":
            scores[part] = _score_heldout(vlm, heldout, template)
            report(len(heldout))
        elif part == "gold":
            explained = _explained(examples, part, scores)
            if together is None:
                together = _generate(vlm, explained, settings, template, report, prompt_cache, more)
            n_scored = 1 + settings.samples
            scores[part] = _score_texts(explained, [row[:n_scored] for row in together[0]])
            if more is not None:
                scores["more"] = [row[n_scored:] for row in together[0]]
        else:
            explained = _explained(examples, part, scores)
            texts = _generate_after_own_answers(vlm, examples, explained, settings, template, scores, report)
            scores[part] = _score_texts(explained, texts, correct=scores["answers"]["correct"])
        if on_part is not None:
            on_part(part, scores[part])
    return scores if meteor is None else add_meteor(scores, examples, meteor)


def n_texts(examples: Sequence[Example], settings: EvaluationSettings, *, parts: Sequence[Part] = PARTS) -> int:
    """Estimates how many texts an evaluation will have reported to `progress` in the end."""
    sampled = 1 + settings.samples
    each = {"answers": 1, "gold": sampled, "own": sampled, "heldout": 0, "fields": sampled}
    return len(examples) * sum(each[part] for part in parts)


def _score_answers(
    vlm: Vlm,
    examples: Sequence[Example],
    settings: EvaluationSettings,
    template: str,
    report: Callable[[int], None],
    prompt_cache: EncodedPromptCache | None,
    own: list[str] | None,
) -> Scores:
    """The part `answers`; generates the model's own answers unless they are given in `own`."""
    if own is None:
        sampling = SamplingSettings(max_new_tokens=settings.max_answer_tokens, template=template)
        progress = count_texts(report, 1)
        own = generate_answers(vlm, examples, sampling, progress=progress, prompt_cache=prompt_cache)
    correct = [answer_right(answer, example) for example, answer in zip(examples, own, strict=True)]
    return {"own": own, "gold": [example.answer for example in examples], "correct": correct, "accuracy": mean(correct)}


def _score_texts(
    explained: Sequence[Example], texts: Sequence[Sequence[str]], *, correct: Sequence[bool | None] | None = None
) -> Scores:
    """The scores of the part `gold` or `own`: of each example a greedy text, then sampled ones."""
    return {
        "greedy": score_rationales(explained, [row[:1] for row in texts], correct=correct),
        "sampled": score_rationales(explained, [row[1:] for row in texts], correct=correct),
    }


def _generate_after_own_answers(
    vlm: Vlm,
    examples: Sequence[Example],
    explained: Sequence[Example],
    settings: EvaluationSettings,
    template: str,
    scores: Mapping[str, Any],
    report: Callable[[int], None],
) -> list[list[str]]:
    """The rationales of the part `own`, behind the answers in `explained`.

    If the own answer is the gold one, prompt and seeds are the same, so the rationales of the part `gold` are reused.
    There is no prompt cache: each version has different own answers.
    """
    texts: list[list[str]] = [[] for _ in examples]
    if "gold" in scores:
        greedy, sampled = (scores["gold"][style]["rationales"] for style in ("greedy", "sampled"))
        for index, answer in enumerate(_prompt_answers(examples, "gold", scores)):
            if answer.strip() == (explained[index].answer or "").strip():
                texts[index] = greedy[index] + sampled[index]
    missing = [index for index, row in enumerate(texts) if not row]
    if "gold" in scores:
        report((len(examples) - len(missing)) * (1 + settings.samples))
    rows, _ = _generate(vlm, [explained[index] for index in missing], settings, template, report, None)
    for index, row in zip(missing, rows, strict=True):
        texts[index] = row
    return texts


def _explained(examples: Sequence[Example], part: str, scores: Mapping[str, Any]) -> list[Example]:
    """The examples with the answers in their rationale prompts."""
    answers = _prompt_answers(examples, part, scores)
    return [replace(example, answer=answer) for example, answer in zip(examples, answers, strict=True)]


def _prompt_answers(examples: Sequence[Example], part: str, scores: Mapping[str, Any]) -> list[str]:
    """The answer in each rationale prompt."""
    own = scores.get("answers", {}).get("own", [None] * len(examples))
    chosen = []
    for example, own_answer in zip(examples, own, strict=True):
        answer = own_answer if part == "own" or example.answer is None else example.answer
        if answer is None:
            raise ValueError(f"{example.id} has no gold answer, and the model was not asked for its own")
        chosen.append(answer)
    return chosen


def _generate_together(
    vlm: Vlm,
    examples: Sequence[Example],
    settings: EvaluationSettings,
    template: str,
    report: Callable[[int], None],
    prompt_cache: EncodedPromptCache,
    more: More | None,
) -> tuple[list[list[str]], list[str]] | None:
    """Rationales after the gold answers, and the own answers, with one forward pass over each prompt.

    None if an example has no gold answer, or if the model or the template does not allow prefix reuse.
    """
    if any(example.answer is None for example in examples):
        return None
    suffix_lengths = count_suffix_tokens(vlm, examples, template=template)
    if suffix_lengths is None:
        return None
    return _generate(vlm, examples, settings, template, report, prompt_cache, more, suffix_lengths)


def _generate(
    vlm: Vlm,
    examples: Sequence[Example],
    settings: EvaluationSettings,
    template: str,
    report: Callable[[int], None],
    prompt_cache: EncodedPromptCache | None,
    more: More | None = None,
    suffix_lengths: Sequence[int] | None = None,
) -> tuple[list[list[str]], list[str]]:
    """Generates a greedy rationale for each example, then `settings.samples` sampled ones, then `more`.

    With `suffix_lengths` of `count_suffix_tokens` own answers are generated too, else they are empty. Unlike in the
    candidate sets that critics see, duplicates are kept: redrawing them would favour rare texts.
    """
    also = None if more is None else replace(settings, temperature=more.temperature, samples=more.samples)
    texts: list[list[str]] = [[] for _ in examples]
    answers = ["" for _ in examples]
    requests = []
    for example, suffix_length in zip(examples, suffix_lengths or [0] * len(examples), strict=True):
        params: tuple[SamplingParams, ...] = (SamplingParams(), *sampled_params(vlm, example, settings))
        if also is not None:
            params += sampled_params(vlm, example, also)
        prompt = rationale_prompt(example, example.answer or "", template=template)
        requests.append(DecodeRequest(prompt, example.images, params, suffix_length))

    def keep(index: int, completions: list[Completion]) -> Sequence[SamplingParams]:
        if index < 0:
            answers[~index] = decode(vlm, completions[0].token_ids[: settings.max_answer_tokens])
        else:
            texts[index] = [decode(vlm, one.token_ids) for one in completions]
        return ()

    if requests:
        decode_prompts(
            vlm,
            requests,
            max_new_tokens=settings.max_new_tokens,
            token_budget=TOKEN_BUDGET,
            on_completions=keep,
            progress=count_texts(report, 1 + settings.samples + (suffix_lengths is not None)),
            prompt_cache=prompt_cache,
        )
    return texts, answers


def sampled_params(vlm: Vlm, example: Example, settings: EvaluationSettings) -> tuple[SamplingParams, ...]:
    """How `settings.samples` texts about an example are sampled; each seed is that of the example and a number."""
    top_k = count_kept(vlm, settings)
    seeds = (stable_seed(settings.seed, example.id, number) for number in range(settings.samples))
    return tuple(SamplingParams(settings.temperature, top_k, seed=seed) for seed in seeds)


def count_kept(vlm: Vlm, settings: EvaluationSettings) -> int:
    """The number of most likely tokens that are sampled from."""
    vocabulary = int(bare_model(vlm).config.get_text_config().vocab_size)
    return max(1, round(settings.top_k_share * vocabulary))


def _score_heldout(vlm: Vlm, rows: Sequence[TrainingRow], template: str) -> Scores:
    triples = [(row.example, row.example.answer or "", row.rationale) for row in rows if row.rationale is not None]
    settings = SamplingSettings(template=template, token_budget=TOKEN_BUDGET)
    values = mean_logprobs(vlm, triples, settings) if triples else []
    return {"prompts": [example.id for example, _, _ in triples], "mean_logprob": values, "mean": mean(values)}


def score_rationales(
    examples: Sequence[Example], texts: Sequence[Sequence[str]], *, correct: Sequence[bool | None] | None = None
) -> Scores:
    """Scores `texts`, a list of rationales for each example, by prompt and over all examples.

    The `answer` of an example must be the one that its rationales explain. With `correct`, the means over the examples
    where it is True are added as `filtered`.
    """
    ciders = _ciders(examples, texts)
    result: Scores = {
        "rationales": [list(row) for row in texts],
        "rouge_l": _against_references(rouge_l, examples, texts),
        "chrf": _against_references(chrf, examples, texts),
        "cider": ciders,
        "faithful": [
            mean([faithful(text, example) for text in row]) for example, row in zip(examples, texts, strict=True)
        ],
    }
    result["means"] = _means(examples, result, range(len(examples)))
    if correct is not None:
        result["filtered"] = _means(examples, result, [index for index, right in enumerate(correct) if right])
    return result


def _against_references(
    score: Callable[[str, Sequence[str]], float], examples: Sequence[Example], texts: Sequence[Sequence[str]]
) -> list[float | None]:
    """The mean score of each example's texts; None without references."""
    return [
        mean([score(text, example.references) for text in row]) if example.references else None
        for example, row in zip(examples, texts, strict=True)
    ]


def add_meteor(scores: Scores, examples: Sequence[Example], program: Meteor) -> Scores:
    """Adds METEOR of all rationales with references to `scores`, the result of an evaluation on `examples`."""
    result = dict(scores)
    if "fields" in scores:
        result["fields"] = {
            style: one | {"rationales": _with_meteor(one["rationales"], examples, scores, program)}
            for style, one in scores["fields"].items()
        }
    for part in ("gold", "own"):
        if part in scores:
            result[part] = {
                style: _with_meteor(styled, examples, scores, program) for style, styled in scores[part].items()
            }
    return result


def _with_meteor(styled: Scores, examples: Sequence[Example], scores: Scores, program: Meteor) -> Scores:
    """Adds METEOR to `styled`, a result of `score_rationales`. `program` scores no text twice."""
    texts = styled["rationales"]

    def score(chosen: Sequence[int]) -> tuple[float | None, list[float]]:
        """The corpus score of the chosen examples, and the scores of their texts."""
        pairs = [(text, examples[index].references) for index in chosen for text in texts[index]]
        scored = [(text, references) for text, references in pairs if references]
        return program.score([text for text, _ in scored], [refs for _, refs in scored]) if scored else (None, [])

    all_examples = range(len(examples))
    values = iter(score(all_examples)[1])
    by_prompt = [
        mean([next(values) for _ in row]) if example.references else None
        for example, row in zip(examples, texts, strict=True)
    ]
    chosen = {"means": list(all_examples)}
    if "filtered" in styled:
        chosen["filtered"] = [index for index, right in enumerate(scores["answers"]["correct"]) if right]
    means = {
        name: styled[name] | {"meteor": mean([by_prompt[i] for i in indices]), "meteor_corpus": score(indices)[0]}
        for name, indices in chosen.items()
    }
    return styled | {"meteor": by_prompt} | means


def _ciders(examples: Sequence[Example], texts: Sequence[Sequence[str]]) -> list[float | None]:
    """The mean CIDEr-D of each example's texts. Document frequencies count every example once."""
    scored = [index for index, example in enumerate(examples) if example.references and texts[index]]
    values: list[list[float]] = [[] for _ in examples]
    for number in range(max((len(texts[index]) for index in scored), default=0)):
        present = [index for index in scored if len(texts[index]) > number]
        references = [examples[index].references for index in present]
        for index, value in zip(present, cider([texts[i][number] for i in present], references), strict=True):
            values[index].append(value)
    return [mean(row) for row in values]


def _means(examples: Sequence[Example], result: Mapping[str, Any], chosen: Sequence[int]) -> Scores:
    """Means and corpus scores over the chosen examples."""
    texts = [(text, examples[index].references) for index in chosen for text in result["rationales"][index]]
    referenced = [(text, references) for text, references in texts if references]
    return {
        "n": len(chosen),
        "rouge_l": mean([result["rouge_l"][index] for index in chosen]),
        "chrf": mean([result["chrf"][index] for index in chosen]),
        "cider": mean([result["cider"][index] for index in chosen]),
        "faithful": mean([result["faithful"][index] for index in chosen]),
        "bleu": bleu([text for text, _ in referenced], [refs for _, refs in referenced]) if referenced else None,
        "distinct_2": distinct_n([text for text, _ in texts], 2),
    }


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    present = [float(value) for value in values if value is not None]
    return sum(present) / len(present) if present else None


def count_texts(report: Callable[[int], None], texts_per_prompt: int) -> Callable[[int, int], None]:
    """A progress callback of `decode_prompts` that reports the number of new texts."""
    before = 0

    def progress(done: int, total: int) -> None:  # noqa: ARG001 - part of the callback's signature
        nonlocal before
        report((done - before) * texts_per_prompt)
        before = done

    return progress
