"""When two rationales count as the same."""

from __future__ import annotations

import unicodedata

_AT_THE_END = " .!?,;:"


def normalise_rationale(text: str) -> str:
    """The form in which two rationales are compared: they are the same where it is equal.

    Case, the width of spaces, punctuation at the end and Unicode's compatible spellings make no difference. Everything
    inside the text does: `3.5` is not `3 5`, and vowel signs are kept. Empty for a text of punctuation only.
    """
    return " ".join(unicodedata.normalize("NFKC", text).split()).lower().rstrip(_AT_THE_END)
