"""Simulated critics, the accumulation of accepted rationales, and the rows that a round trains on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from illume.evaluation.metrics import rouge_l
from illume.evaluation.tasks import faithful
from illume.fields.accepting import field_pairs
from illume.fields.answers import Values, can_guard, parse_answer
from illume.fields.definitions import AnswerField, AnswerFields
from illume.records import Example, Rationale, Rejection, TrainingRow, Verdict, stable_seed
from illume.texts import normalise_rationale

Critic = Callable[[Example, Sequence[Rationale]], Verdict]
Accepted = Mapping[str, tuple[str, ...]]
"""Accepted rationales by example id, in the order of their acceptance."""


# Simulated critics


def _verdict(example: Example, critic: str, picks: Iterable[int]) -> Verdict:
    chosen = tuple(sorted(picks))
    return Verdict(example.id, critic, "picked" if chosen else "none_fit", chosen)


def rouge_critic(*, threshold: float = 0.7, name: str = "rouge") -> Critic:
    """A critic that picks each candidate whose ROUGE-L with a reference is at least `threshold`."""

    def judge(example: Example, candidates: Sequence[Rationale]) -> Verdict:
        if not example.references:
            raise ValueError(f"{name} cannot judge {example.id}: it has no references")
        picks = (i for i, c in enumerate(candidates) if rouge_l(c.text, example.references) >= threshold)
        return _verdict(example, name, picks)

    return judge


def truth_critic(*, name: str = "truth") -> Critic:
    """A critic that picks each candidate that is true of its prompt's scene."""

    def judge(example: Example, candidates: Sequence[Rationale]) -> Verdict:
        return _verdict(example, name, (i for i, c in enumerate(candidates) if _true(example, c, name)))

    return judge


def untruth_critic(*, name: str = "untruth") -> Critic:
    """A critic that picks each candidate that is not true of its prompt's scene, as a control condition."""

    def judge(example: Example, candidates: Sequence[Rationale]) -> Verdict:
        return _verdict(example, name, (i for i, c in enumerate(candidates) if not _true(example, c, name)))

    return judge


def _true(example: Example, candidate: Rationale, critic: str) -> bool:
    verdict = faithful(candidate.text, replace(example, answer=candidate.answer))
    if verdict is None:
        raise ValueError(f"{critic} cannot judge {example.id}: its metadata holds no scene that can be read")
    return verdict


def with_mistakes(critic: Critic, *, share: float, seed: int) -> Critic:
    """`critic`, with the decision on each candidate inverted with probability `share`.

    The same candidate is always judged the same way.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of mistakes must lie between 0 and 1, not {share}")

    def judge(example: Example, candidates: Sequence[Rationale]) -> Verdict:
        verdict = critic(example, candidates)
        if verdict.kind not in ("picked", "none_fit"):
            return verdict
        picks = set(verdict.picks)
        for index, candidate in enumerate(candidates):
            if random.Random(stable_seed(seed, "mistake", example.id, candidate.text)).random() < share:
                picks ^= {index}
        return _verdict(example, verdict.critic, picks)

    return judge


def random_critic(*, like: Critic | None = None, n_picks: int = 1, seed: int, name: str = "random") -> Critic:
    """A critic that picks candidates at random: as many as `like` would pick, else `n_picks`."""

    def judge(example: Example, candidates: Sequence[Rationale]) -> Verdict:
        count = n_picks if like is None else len(like(example, candidates).picks)
        generator = random.Random(stable_seed(seed, "random", example.id))
        return _verdict(example, name, generator.sample(range(len(candidates)), min(count, len(candidates))))

    return judge


def structured_critic(critic: Critic, fields: AnswerFields, *, mistakes: float = 0.0, seed: int = 0) -> Critic:
    """`critic` on structured answers: it picks by the rationales alone, and gives each field its gold value.

    Invalid answers are never picked. A choice is another than the gold one with probability `mistakes`; a field without
    a gold value is not judged.
    """

    def judge(example: Example, candidates: Sequence[Rationale]) -> Verdict:
        read: list[tuple[int, Rationale]] = []
        for index, candidate in enumerate(candidates):
            if candidate.invalid is None:
                values = parse_answer(candidate.text, fields, example.policy)
                text = values[fields.rationale.name] or ""
                read.append((index, replace(candidate, text=text, answer=example.answer or "")))
        verdict = critic(example, [candidate for _, candidate in read])
        given = {
            one.name: _mistaken(example, one, share=mistakes, seed=seed)
            for one in fields.fields
            if one.role != "rationale" and one.name in example.fields
        }
        return replace(verdict, picks=tuple(read[place][0] for place in verdict.picks), fields=given)

    return judge


def _mistaken(example: Example, field: AnswerField, *, share: float, seed: int) -> str | None:
    """The value that a critic gives to a field, who makes mistakes in a share of the choices."""
    gold = example.fields[field.name]
    others = [value for value in field.values(example.policy) if value != gold]
    generator = random.Random(stable_seed(seed, "mistake", example.id, field.name))
    return generator.choice(others) if others and generator.random() < share else gold


# Accumulating accepted rationales


def accumulate(
    accepted: Accepted, verdicts: Iterable[Verdict], candidates: Mapping[str, Sequence[Rationale]]
) -> dict[str, tuple[str, ...]]:
    """D_t: `accepted` (D_{t-1}) with the rationales that `verdicts` picked or added, de-duplicated per prompt.

    `candidates` holds the candidates of each example, by example id. Of rationales that are equal after normalisation
    the first one is kept.
    """
    accumulated = {example_id: list(texts) for example_id, texts in accepted.items()}
    for verdict in verdicts:
        if verdict.kind == "picked":
            shown = candidates[verdict.example_id] if verdict.picks else ()
            texts = [shown[index].text for index in verdict.picks]
        else:
            texts = []
        if verdict.rationale and verdict.rationale.strip():
            texts.append(verdict.rationale.strip())
        if texts:
            accumulated.setdefault(verdict.example_id, []).extend(texts)
    return {example_id: deduplicate(texts) for example_id, texts in accumulated.items() if texts}


def deduplicate(texts: Iterable[str]) -> tuple[str, ...]:
    """Drops each text that equals an earlier one after normalisation."""
    seen: dict[str, str] = {}
    for text in texts:
        seen.setdefault(normalise_rationale(text), text)
    return tuple(seen.values())


# The training rows of a round


def rationale_rows(
    examples: Sequence[Example], accepted: Accepted, *, answers: Mapping[str, str] | None = None
) -> list[TrainingRow]:
    """One row for each accepted rationale, in the order of `examples`.

    `answers` gives the answer in the prompt that the rationale was generated from, if it was not the gold answer.
    Raises ValueError for an example with rationales but no answer.
    """
    rows = []
    for example in examples:
        texts = accepted.get(example.id, ())
        answer = (answers or {}).get(example.id, example.answer)
        if texts and answer is None:
            raise ValueError(f"{example.id} has accepted rationales but no answer")
        rows += [TrainingRow(replace(example, answer=answer), text) for text in texts]
    return rows


def answer_rows(examples: Sequence[Example], accepted: Accepted, fields: AnswerFields) -> list[TrainingRow]:
    """One row for each accepted structured answer, in the order of `examples`; each is the JSON of a valid answer."""
    rows = []
    for example in examples:
        for text in accepted.get(example.id, ()):
            values = parse_answer(text, fields, example.policy)
            rows.append(TrainingRow(example, values.pop(fields.rationale.name), values))
    return rows


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """The texts of one candidate set that were accepted, and those that were turned down."""

    example_id: str
    accepted: tuple[str, ...]
    turned_down: tuple[str, ...]


def pair_texts(
    judged: JudgedSet, *, accepted: Iterable[str], per_rationale: int, seed: int
) -> list[tuple[str, str | None]]:
    """What was turned down, each text beside one that was accepted in the same set, or None if nothing was.

    Each accepted text is preferred to at most `per_rationale` others, selected by hash; so is nothing at all. What is
    among the prompt's `accepted` texts, of whatever set, is not turned down.
    """
    known = set(map(normalise_rationale, (*accepted, *judged.accepted)))
    worse = [text for text in deduplicate(judged.turned_down) if normalise_rationale(text) not in known]
    worse.sort(key=lambda text: stable_seed(seed, "pair", judged.example_id, text))
    better = judged.accepted
    kept = worse[: per_rationale * max(1, len(better))]
    return [(text, better[index % len(better)] if better else None) for index, text in enumerate(kept)]


def rejection_rows(
    examples: Sequence[Example],
    accepted: Accepted,
    judged: Iterable[JudgedSet],
    *,
    answers: Mapping[str, str] | None = None,
    per_rationale: int,
    seed: int,
) -> list[Rejection]:
    """The rejections of a round, in the order of `examples`; each text of a prompt once, in a pair if it has one.

    `answers` is as in `rationale_rows`. Raises ValueError for an example without an answer.
    """
    pairs: dict[str, dict[str, tuple[str, str | None]]] = {}
    for one in judged:
        found = pairs.setdefault(one.example_id, {})
        known = accepted.get(one.example_id, ())
        for text, better in pair_texts(one, accepted=known, per_rationale=per_rationale, seed=seed):
            key = normalise_rationale(text)
            if key not in found or found[key][1] is None:
                found[key] = text, better
    rows = []
    for example in examples:
        answer = (answers or {}).get(example.id, example.answer)
        mine = pairs.get(example.id, {})
        if mine and answer is None:
            raise ValueError(f"{example.id} has rationales that were turned down but no answer")
        rows += [Rejection(replace(example, answer=answer), text, better) for text, better in mine.values()]
    return rows


@dataclass(frozen=True, slots=True)
class JudgedAnswers:
    """Structured answers of one candidate set, None where invalid: which were picked, and the values decided on."""

    example_id: str
    candidates: tuple[Values | None, ...]
    picks: tuple[int, ...]
    decided: Mapping[str, str | None]


def answer_rejections(
    examples: Sequence[Example],
    accepted: Accepted,
    judged: Iterable[JudgedAnswers],
    fields: AnswerFields,
    *,
    per_rationale: int,
    seed: int,
) -> list[Rejection]:
    """The rejections of a round on structured answers, in the order of `examples`; no two are the same.

    A rationale that was turned down stands beside a picked one under the decided values, so that nothing else differs;
    a picked answer that is right but for one field stands beside itself as corrected.
    """
    found: dict[str, dict[str, tuple[Values, Values | None]]] = {}
    name = fields.rationale.name
    for one in judged:
        mine = found.setdefault(one.example_id, {})
        known = [json.loads(text)[name] for text in accepted.get(one.example_id, ())]
        for pair in (*_turned_down(one, known, name, per_rationale, seed), *_corrected(one, fields)):
            mine.setdefault(repr(pair), pair)
    rows = []
    for example in examples:
        for worse, better in found.get(example.id, {}).values():
            text, accepted_text = str(worse[name]), None if better is None else str(better[name])
            values, others = _without(worse, name), None if better is None else _without(better, name)
            rows.append(Rejection(example, text, accepted_text, values, others))
    return rows


def _turned_down(
    judged: JudgedAnswers, known: Sequence[str], name: str, per_rationale: int, seed: int
) -> list[tuple[Values, Values | None]]:
    by_text: dict[str, Values] = {}
    picked: list[str] = []
    others: list[str] = []
    for index, values in enumerate(judged.candidates):
        if values is not None:
            text = str(values[name])
            by_text.setdefault(text, values)
            (picked if index in judged.picks else others).append(text)
    texts = JudgedSet(judged.example_id, tuple(picked), tuple(others))
    pairs: list[tuple[Values, Values | None]] = []
    for text, better in pair_texts(texts, accepted=known, per_rationale=per_rationale, seed=seed):
        values = {**by_text[text if better is None else better], **judged.decided}
        pairs.append(({**values, name: text}, None if better is None else {**values, name: better}))
    return pairs


def _corrected(judged: JudgedAnswers, fields: AnswerFields) -> list[tuple[Values, Values]]:
    pairs = field_pairs(judged.candidates, judged.picks, judged.decided, fields)
    return [(json.loads(pair.rejected), json.loads(pair.chosen)) for pair in pairs]


def _without(values: Values, name: str) -> Values:
    return {key: value for key, value in values.items() if key != name}


def guard_rows(
    examples: Sequence[Example],
    accepted: Accepted,
    *,
    per_rationale: int = 10,
    seed: int,
    fields: AnswerFields | None = None,
) -> list[TrainingRow]:
    """The forgetting guard: VQA-only rows, up to `per_rationale` for each accepted rationale.

    They are drawn from the train prompts that have a gold answer, or the gold values of structured answers, first from
    those without an accepted rationale, then from the others. Each prompt is used at most once, so there are fewer rows
    if there are not enough prompts.
    """
    train = [example for example in examples if example.split == "train"]
    wanted = per_rationale * sum(len(accepted.get(example.id, ())) for example in train)
    if fields is None:
        usable = [example for example in train if example.answer is not None]
    else:
        usable = [one for one in train if can_guard(one.fields, fields, explained=bool(one.references))]
    usable.sort(key=lambda example: guard_rank(example.id, seed=seed, judged=bool(accepted.get(example.id))))
    return [TrainingRow(example, None) for example in usable[:wanted]]


def guard_rank(example_id: str, *, seed: int, judged: bool) -> tuple[bool, int]:
    """The lower, the sooner an example is drawn for the guard; `judged`: it has an accepted rationale."""
    return judged, stable_seed(seed, "guard", example_id)


def loss_weight(n_vqa_only: int, n_rationale: int) -> float:
    """w = max(1, n_vqa_only / n_rationale): the weight of the rationale loss; 1 without rationales."""
    return max(1.0, n_vqa_only / n_rationale) if n_rationale else 1.0
