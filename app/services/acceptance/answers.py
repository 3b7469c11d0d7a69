"""Accepted answers of structured projects: what is counted in SQL, joined by `illume.fields.accepting`."""

from __future__ import annotations

from collections.abc import Mapping

from illume.fields.accepting import AcceptedAnswer, accepted_answers
from illume.fields.answers import Values
from illume.fields.definitions import AnswerFields


def compose_answer(
    text: str,
    written: Mapping[str, str | None] | None,
    decided: Mapping[str, str | None] | None,
    fields: AnswerFields,
    *,
    is_own: bool,
) -> AcceptedAnswer | None:
    """The accepted answer of a picked candidate, or with `is_own` of a text that a critic wrote as the rationale.

    `written` are the values of the candidate, or those that go with the text, and `decided` the fields that critics
    agree on. None without values, as of a candidate that is invalid, or if one that is required is not known.
    """
    values = whole_answer(text, written, fields, is_own=is_own)
    if values is None:
        return None
    known = decided or {}
    if any(one.required and known.get(one.name, values[one.name]) is None for one in fields.fields):
        return None
    return accepted_answers([values], [0], known, fields)[0]


def whole_answer(
    text: str, written: Mapping[str, str | None] | None, fields: AnswerFields, *, is_own: bool
) -> Values | None:
    """The values of a candidate, or of a critic's text with what goes with it; those that are not known are None."""
    if written is None:
        return None
    values = {one.name: written.get(one.name) for one in fields.fields}
    return values | {fields.rationale.name: text} if is_own else values
