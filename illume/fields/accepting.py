"""What of structured answers is accepted: the fields that critics agree on, with each rationale that they picked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from illume.fields.answers import Values, answer_json
from illume.fields.definitions import AnswerField, AnswerFields


@dataclass(frozen=True, slots=True)
class AcceptedAnswer:
    """An accepted answer with its JSON text. `masked` are the fields that stand as the model wrote them, unjudged."""

    values: Values
    text: str
    masked: frozenset[str]


@dataclass(frozen=True, slots=True)
class FieldPair:
    """Two answers that differ in one field alone: as it was corrected, and as the model wrote it."""

    field: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class FieldAnswers:
    """The values of two answers that differ in one field alone, as `FieldPair` has their texts."""

    field: str
    chosen: Values
    rejected: Values


def decide_fields(
    given: Sequence[Mapping[str, str | None]], fields: AnswerFields
) -> tuple[dict[str, str | None], tuple[str, ...]]:
    """The value of each field that most critics gave, and the names of those where two values have as many votes.

    `given` has the values of each critic, the corrected ones where they differ from the blind ones, in any order; a
    field that a critic did not judge is missing. Rationales are picked, not voted for.
    """
    decided: dict[str, str | None] = {}
    undecided = []
    for one in _judged_fields(fields):
        votes = Counter(values[one.name] for values in given if one.name in values)
        (first, most), *others = votes.most_common(2) or [(None, 0)]
        if most and (not others or others[0][1] < most):
            decided[one.name] = first
        elif most:
            undecided.append(one.name)
    return decided, tuple(undecided)


def _judged_fields(fields: AnswerFields) -> list[AnswerField]:
    return [one for one in fields.fields if one.role != "rationale"]


def accepted_answers(
    candidates: Sequence[Values | None],
    picked: Collection[int],
    decided: Mapping[str, str | None],
    fields: AnswerFields,
) -> list[AcceptedAnswer]:
    """The decided fields with the rationale of each picked candidate, in the project's order; no answer twice.

    `candidates` are None where they are invalid. Fields that are not decided stay as in the candidate.
    """
    masked = frozenset(one.name for one in _judged_fields(fields) if one.name not in decided)
    found: dict[str, AcceptedAnswer] = {}
    for candidate in _picked(candidates, picked):
        values = {one.name: decided.get(one.name, candidate[one.name]) for one in fields.fields}
        text = answer_json(values, fields)
        found.setdefault(text, AcceptedAnswer(values, text, masked))
    return list(found.values())


def field_pairs(
    candidates: Sequence[Values | None],
    picked: Collection[int],
    decided: Mapping[str, str | None],
    fields: AnswerFields,
) -> list[FieldPair]:
    """Pairs of picked candidates that are right but for one field, and the same answers with that field corrected."""
    found = field_answers(candidates, picked, decided)
    made = (FieldPair(one.field, answer_json(one.chosen, fields), answer_json(one.rejected, fields)) for one in found)
    return list(dict.fromkeys(made))


def field_answers(
    candidates: Sequence[Values | None], picked: Collection[int], decided: Mapping[str, str | None]
) -> list[FieldAnswers]:
    """The values of `field_pairs`, of which several may be the same."""
    pairs = []
    for candidate in _picked(candidates, picked):
        wrong = [name for name, value in decided.items() if candidate[name] != value]
        if len(wrong) == 1:
            pairs.append(FieldAnswers(wrong[0], {**candidate, wrong[0]: decided[wrong[0]]}, candidate))
    return pairs


def _picked(candidates: Sequence[Values | None], picked: Collection[int]) -> list[Values]:
    return [one for index, one in enumerate(candidates) if index in picked and one is not None]
