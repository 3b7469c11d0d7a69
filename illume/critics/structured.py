"""Structured answers as machine critics read them: the chosen values in place of the answer, and the rationale.

`helpfulness` reads the rationale and looks for the gold values, where the prompt has them. `verifier` reads the values
of the answer itself, so that a right rationale beside a wrong value does not fit. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from illume.critics.rows import JudgedRationale
from illume.fields.answers import Values
from illume.fields.definitions import AnswerFields
from illume.phrases import _
from illume.records import Example
from illume.settings import MachineCritic
from illume.texts import normalise_rationale


def label_of(values: Mapping[str, str | None], fields: AnswerFields) -> str:
    """The chosen values of an answer in the order of its fields, separated by commas; those that are null left out."""
    return ", ".join(value for one in fields.fields if one.kind == "choice" and (value := values.get(one.name)))


def knows_right(gold: Mapping[str, str | None], fields: AnswerFields) -> bool:
    """Whether gold values have each choice that an answer needs, of which there has to be one at least."""
    needed = _needed_choices(fields)
    return bool(needed) and all(gold.get(name) is not None for name in needed)


def _needed_choices(fields: AnswerFields) -> list[str]:
    return [one.name for one in fields.fields if one.kind == "choice" and one.required]


def check_choices(fields: AnswerFields) -> None:
    """Raises ValueError unless an answer has choices: without them there is nothing that a critic could look for."""
    if not _needed_choices(fields):
        raise ValueError(_("a machine critic reads structured answers by their choices, and no field has to have one"))


def explained_by(
    example: Example, values: Mapping[str, str | None], fields: AnswerFields, kind: MachineCritic
) -> tuple[Example, str]:
    """An example with the answer that a critic of this kind looks for, and the rationale of a structured answer.

    `values` are all of the answer's. The fields have choices, as `check_choices` says.
    """
    looks_for_gold = kind == "helpfulness" and knows_right(example.fields, fields)
    answer = label_of(example.fields if looks_for_gold else values, fields)
    return replace(example, answer=answer), str(values[fields.rationale.name])


def judged_answers(
    examples: Sequence[Example],
    accepted: Mapping[str, Sequence[Values]],
    judged: Mapping[str, Sequence[tuple[Values, float | None]]],
    fields: AnswerFields,
    kind: MachineCritic,
) -> list[JudgedRationale]:
    """What was accepted and what was not of structured answers, in the order of `examples`; each once.

    `accepted` has the answers as critics left them, by example id, and `judged` all candidates of decided sets as they
    were written, with the mean log-probability of their sampling, if it is known. A candidate fits if an accepted
    answer is the same to a critic of this kind: for a verifier one whose rationale was picked and whose choices were
    right.
    """
    rows: list[JudgedRationale] = []
    for example in examples:
        written = [
            (explained_by(example, values, fields, kind), likely) for values, likely in judged.get(example.id, ())
        ]
        likely_of = {_key(*one): likely for one, likely in reversed(written)}
        fitting = [explained_by(example, values, fields, kind) for values in accepted.get(example.id, ())]
        known: set[tuple[str, str]] = set()
        for picked, (explained, text) in [
            *((True, one) for one in fitting),
            *((False, one) for one, _likely in written),
        ]:
            key = _key(explained, text)
            if key not in known:
                known.add(key)
                rows.append(JudgedRationale(explained, text, picked, likely_of.get(key)))
    return rows


def _key(example: Example, text: str) -> tuple[str, str]:
    return str(example.answer), normalise_rationale(text)
