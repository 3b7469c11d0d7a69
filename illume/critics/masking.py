"""Answers that a rationale says: a critic that reads one must not be told what it is to find. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from illume.texts import normalise_answer, words

MASK = "_"

_SHORTEST = 3
"""Letters that a word needs at least, for another form of it to count as the same word."""

_LONGEST_ENDING = 2


def mask_answer(rationale: str, answer: str, *, language: str | None = None) -> str:
    """The rationale with `MASK` in place of each word of the answer, whatever its case and ending.

    Numbers count as the same in words and digits, in English. Where an answer is `no`, so is each `no` of the
    rationale: what is left must not tell.
    """
    forms = _forms(answer, language)
    return regex.sub(
        r"[\p{L}\p{M}\p{N}]+", lambda match: MASK if _says(match[0], forms, language) else match[0], rationale
    )


def says_answer(rationale: str, answer: str, *, language: str | None = None) -> bool:
    """Whether the rationale has a word of the answer, in any of the forms that `mask_answer` masks."""
    return mask_answer(rationale, answer, language=language) != rationale


def leaking_share(rationales: Sequence[tuple[str, str]]) -> float | None:
    """The share of (rationale, answer) whose rationale says the answer; None without any."""
    return sum(says_answer(*one) for one in rationales) / len(rationales) if rationales else None


def _forms(answer: str, language: str | None) -> frozenset[str]:
    return frozenset((*words(answer), *normalise_answer(answer, language=language).split()))


def _says(word: str, forms: frozenset[str], language: str | None) -> bool:
    mine = {*words(word), normalise_answer(word, language=language)} - {""}
    return any(_is_form(one, other) for one in mine for other in forms)


def _is_form(one: str, other: str) -> bool:
    """Whether two folded words are the same but for an ending of up to two letters, or `y` and `ies`."""
    short, long = sorted((one, other), key=len)
    if short == long:
        return True
    if len(short) < _SHORTEST:
        return False
    if short.endswith("y") and long == f"{short[:-1]}ies":
        return True
    return long.startswith(short) and len(long) - len(short) <= _LONGEST_ENDING
