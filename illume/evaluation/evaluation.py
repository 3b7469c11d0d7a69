"""How good a version is: its rationales and answers on given prompts, scored prompt by prompt, as plain data.

The result of `evaluate` is JSON-able:

* `prompts`: the ids, in the order of every list below.
* `answers`: the model's own greedy answers (`own`), the gold ones, `correct` (None without a gold answer), `accuracy`.
* `gold`, `own`: rationales written behind the gold answer (the own one where there is none) and behind the model's
  own, each with `greedy` and `sampled`: `rationales` (a list of texts per prompt), per-prompt means `rouge_l`, `cider`
  (None without references), `faithful` (None without a scene), and `means` over the corpus, with `bleu` (1-4) and
  `distinct_2`. Under `own`, `filtered` repeats the means over the prompts whose own answer is right, as the field
  reports them. With METEOR's program also `meteor` by prompt and on average, and `meteor_corpus`, its corpus score.
* `heldout`: the mean log-likelihood per token of held-out accepted rationales, one by one and on average.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from illume.evaluation.meteor import Meteor
from illume.evaluation.metrics import answer_correct, bleu, cider, distinct_n, faithful, rouge_l
from illume.model.prompting import DEFAULT_TEMPLATE, render_rationale_prompt
from illume.model.vision_cache import EncodedPrompts
from illume.model.vlm import Vlm, bare_model, decode
from illume.records import Example, TrainingRow, stable_seed
from illume.sampling.decoding import DecodePrompt, Draw, Written, decode_prompts
from illume.sampling.prefix_reuse import lead_tails
from illume.sampling.sampling import generate_answers, mean_logprobs
from illume.settings import EvaluationSettings, SamplingSettings

Scores = dict[str, Any]
Part = Literal["answers", "gold", "own", "heldout"]
PARTS: tuple[Part, ...] = get_args(Part)

_TOKEN_BUDGET = 16384


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
    memory: EncodedPrompts | None = None,
    meteor: Meteor | None = None,
) -> Scores:
    """Scores the version that `vlm` holds on `examples`, and on `heldout` rationales.

    Where several versions of a base are scored on the same examples, `memory` keeps what they share. With `meteor`
    rationales are scored by METEOR too.

    `known` brings parts that were computed before and are taken as they are; `on_part` is called with each new part as
    soon as it is there, `progress` with the number of texts newly done (it may raise to stop). `own` needs `answers`,
    and so does `gold` where an example has no gold answer.
    """
    scores: Scores = {
        "prompts": [example.id for example in examples],
        "settings": dataclasses.asdict(settings) | {"template": template},
    }
    tick = progress or (lambda _: None)
    early = None
    if memory is not None and {"answers", "gold"} <= set(parts) - set(known or {}):
        early = _write_together(vlm, examples, settings, template, tick, memory)
    wanted = {part: part in parts or part in (known or {}) for part in PARTS}
    for part in PARTS:
        if not wanted[part]:
            continue
        if known is not None and part in known:
            scores[part] = known[part]
            continue
        if part == "answers":
            scores[part] = _answers(vlm, examples, settings, template, tick, memory, early and early[1])
        elif part == "heldout":
            scores[part] = _heldout(vlm, heldout, template)
            tick(len(heldout))
        else:
            scores[part] = _rationales(
                vlm, examples, settings, template, part, scores, tick, memory, early and early[0]
            )
        if on_part is not None:
            on_part(part, scores[part])
    return scores if meteor is None else add_meteor(scores, examples, meteor)


def n_texts(examples: Sequence[Example], settings: EvaluationSettings, *, parts: Sequence[Part] = PARTS) -> int:
    """About how many texts `evaluate` has written when it is done, for progress displays."""
    each = {"answers": 1, "gold": 1 + settings.samples, "own": 1 + settings.samples, "heldout": 0}
    return len(examples) * sum(each[part] for part in parts)


def _answers(
    vlm: Vlm,
    examples: Sequence[Example],
    settings: EvaluationSettings,
    template: str,
    tick: Callable[[int], None],
    memory: EncodedPrompts | None,
    early: list[str] | None,
) -> Scores:
    sampling = SamplingSettings(max_new_tokens=settings.max_answer_tokens, template=template)
    own = early or []
    if early is None and examples:
        own = generate_answers(vlm, examples, sampling, progress=_counter(tick, 1), memory=memory)
    correct = [
        None if example.answer is None else answer_correct(answer, example.answer)
        for example, answer in zip(examples, own, strict=True)
    ]
    return {"own": own, "gold": [example.answer for example in examples], "correct": correct, "accuracy": mean(correct)}


def _rationales(
    vlm: Vlm,
    examples: Sequence[Example],
    settings: EvaluationSettings,
    template: str,
    part: Part,
    scores: Mapping[str, Any],
    tick: Callable[[int], None],
    memory: EncodedPrompts | None,
    early: list[list[str]] | None,
) -> Scores:
    answers = _prompt_answers(examples, part, scores)
    texts: list[list[str]] = [[] for _ in examples]
    remembered = memory if part == "gold" else None  # each version has own answers of its own
    todo = list(range(len(examples)))
    if part == "own" and "gold" in scores:
        # Where the model's own answer is the gold one, prompt, seeds and so rationales are the same.
        for index, answer in enumerate(_prompt_answers(examples, "gold", scores)):
            if answer.strip() == answers[index].strip():
                gold = scores["gold"]
                texts[index] = gold["greedy"]["rationales"][index] + gold["sampled"]["rationales"][index]
        todo = [index for index in todo if not texts[index]]
        tick((len(examples) - len(todo)) * (1 + settings.samples))
    asked = [replace(examples[index], answer=answers[index]) for index in todo]
    if early is not None:
        texts = early
    else:
        rows, _ = _write(vlm, asked, settings, template, tick, remembered)
        for index, written in zip(todo, rows, strict=True):
            texts[index] = written
    judged = [replace(example, answer=answer) for example, answer in zip(examples, answers, strict=True)]
    correct = scores["answers"]["correct"] if part == "own" else None
    return {
        "greedy": score_rationales(judged, [row[:1] for row in texts], correct=correct),
        "sampled": score_rationales(judged, [row[1:] for row in texts], correct=correct),
    }


def _prompt_answers(examples: Sequence[Example], part: str, scores: Mapping[str, Any]) -> list[str]:
    """The answer that stands in each rationale prompt."""
    own = scores.get("answers", {}).get("own", [None] * len(examples))
    chosen = []
    for example, mine in zip(examples, own, strict=True):
        answer = mine if part == "own" or example.answer is None else example.answer
        if answer is None:
            raise ValueError(f"{example.id} has no gold answer, and the model was not asked for its own")
        chosen.append(answer)
    return chosen


def _write_together(
    vlm: Vlm,
    examples: Sequence[Example],
    settings: EvaluationSettings,
    template: str,
    tick: Callable[[int], None],
    memory: EncodedPrompts,
) -> tuple[list[list[str]], list[str]] | None:
    """Rationales behind the gold answers, and own answers, of one pass over each prompt; None where that cannot be."""
    if any(example.answer is None for example in examples):
        return None
    tails = lead_tails(vlm, examples, template=template)
    return None if tails is None else _write(vlm, examples, settings, template, tick, memory, tails)


def _write(
    vlm: Vlm,
    examples: Sequence[Example],
    settings: EvaluationSettings,
    template: str,
    tick: Callable[[int], None],
    memory: EncodedPrompts | None,
    tails: Sequence[int] | None = None,
) -> tuple[list[list[str]], list[str]]:
    """The greedy rationale of each example, and `settings.samples` independent ones; with `tails` also own answers.

    Independent: an equal text is not drawn again, as it is for critics, since that would favour rare texts.
    """
    vocabulary = bare_model(vlm).config.get_text_config().vocab_size
    top_k = max(1, round(settings.top_k_share * vocabulary))
    texts: list[list[str]] = [[] for _ in examples]
    answers = ["" for _ in examples]
    prompts = []
    for example, tail in zip(examples, tails or [0] * len(examples), strict=True):
        seeds = [stable_seed(settings.seed, example.id, number) for number in range(settings.samples)]
        draws = (Draw(), *(Draw(settings.temperature, top_k, seed=seed) for seed in seeds))
        text = render_rationale_prompt(example.question, example.answer or "", template=template)
        prompts.append(DecodePrompt(text, example.images, draws, tail))

    def keep(index: int, written: list[Written]) -> Sequence[Draw]:
        if index < 0:
            answers[~index] = decode(vlm, written[0].ids[: settings.max_answer_tokens])
        else:
            texts[index] = [decode(vlm, one.ids) for one in written]
        return ()

    if prompts:
        decode_prompts(
            vlm,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            token_budget=_TOKEN_BUDGET,
            next_draws=keep,
            progress=_counter(tick, 1 + settings.samples + (tails is not None)),
            memory=memory,
        )
    return texts, answers


def _heldout(vlm: Vlm, rows: Sequence[TrainingRow], template: str) -> Scores:
    triples = [(row.example, row.example.answer or "", row.rationale) for row in rows if row.rationale is not None]
    settings = SamplingSettings(template=template, token_budget=_TOKEN_BUDGET)
    values = mean_logprobs(vlm, triples, settings) if triples else []
    return {"prompts": [example.id for example, _, _ in triples], "mean_logprob": values, "mean": mean(values)}


def score_rationales(
    examples: Sequence[Example], texts: Sequence[Sequence[str]], *, correct: Sequence[bool | None] | None = None
) -> Scores:
    """Scores of `texts` (rationales of each example, whose answer is the one they explain), by prompt and in all.

    With `correct`, also the means over the examples where it is True.
    """
    ciders = _ciders(examples, texts)
    rows: Scores = {
        "rationales": [list(row) for row in texts],
        "rouge_l": [
            mean([rouge_l(text, example.references) for text in row]) if example.references else None
            for example, row in zip(examples, texts, strict=True)
        ],
        "cider": ciders,
        "faithful": [
            mean([_faithful(text, example) for text in row]) for example, row in zip(examples, texts, strict=True)
        ],
    }
    rows["means"] = _means(examples, rows, range(len(examples)))
    if correct is not None:
        rows["filtered"] = _means(examples, rows, [index for index, right in enumerate(correct) if right])
    return rows


def add_meteor(scores: Scores, examples: Sequence[Example], program: Meteor) -> Scores:
    """`scores`, a result of `evaluate` on `examples`, with METEOR of all rationales whose prompt has references."""
    whole = dict(scores)
    for part in ("gold", "own"):
        if part in whole:
            styles = {name: _with_meteor(rows, examples, scores, program) for name, rows in whole[part].items()}
            whole[part] = styles
    return whole


def _with_meteor(rows: Scores, examples: Sequence[Example], scores: Scores, program: Meteor) -> Scores:
    """`rows`, a result of `score_rationales`, with METEOR; a text is scored once however many means it is in."""
    texts = rows["rationales"]

    def pairs(chosen: Sequence[int]) -> list[tuple[str, Sequence[str]]]:
        return [(text, examples[index].references) for index in chosen for text in texts[index]]

    def of(chosen: Sequence[int]) -> tuple[float | None, list[float]]:
        asked = [(text, references) for text, references in pairs(chosen) if references]
        return program.score([text for text, _ in asked], [refs for _, refs in asked]) if asked else (None, [])

    everything = range(len(examples))
    values = iter(of(everything)[1])
    by_prompt = [
        mean([next(values) for _ in row]) if example.references else None
        for example, row in zip(examples, texts, strict=True)
    ]
    chosen = {"means": list(everything)}
    if "filtered" in rows:
        chosen["filtered"] = [index for index, right in enumerate(scores["answers"]["correct"]) if right]
    means = {
        name: rows[name] | {"meteor": mean([by_prompt[index] for index in some]), "meteor_corpus": of(some)[0]}
        for name, some in chosen.items()
    }
    return rows | {"meteor": by_prompt} | means


def _faithful(text: str, example: Example) -> bool | None:
    return faithful(text, question=example.question, answer=example.answer or "", metadata=example.metadata)


def _ciders(examples: Sequence[Example], texts: Sequence[Sequence[str]]) -> list[float | None]:
    """CIDEr-D of each example's texts on average; document frequencies count every example once."""
    scored = [index for index, example in enumerate(examples) if example.references and texts[index]]
    values: list[list[float]] = [[] for _ in examples]
    for number in range(max((len(texts[index]) for index in scored), default=0)):
        present = [index for index in scored if len(texts[index]) > number]
        references = [examples[index].references for index in present]
        for index, value in zip(present, cider([texts[i][number] for i in present], references), strict=True):
            values[index].append(value)
    return [mean(row) for row in values]


def _means(examples: Sequence[Example], rows: Mapping[str, Any], chosen: Sequence[int]) -> Scores:
    texts = [(text, examples[index].references) for index in chosen for text in rows["rationales"][index]]
    referenced = [(text, references) for text, references in texts if references]
    return {
        "n": len(chosen),
        "rouge_l": mean([rows["rouge_l"][index] for index in chosen]),
        "cider": mean([rows["cider"][index] for index in chosen]),
        "faithful": mean([rows["faithful"][index] for index in chosen]),
        "bleu": bleu([text for text, _ in referenced], [refs for _, refs in referenced]) if referenced else None,
        "distinct_2": distinct_n([text for text, _ in texts], 2),
    }


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are there; None where none is."""
    present = [float(value) for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _counter(tick: Callable[[int], None], texts_each: int) -> Callable[[int, int], None]:
    """Turns 'so many prompts are done' into 'so many texts are new'."""
    before = 0

    def progress(done: int, total: int) -> None:  # noqa: ARG001  (the sampler's signature)
        nonlocal before
        tick((done - before) * texts_each)
        before = done

    return progress
