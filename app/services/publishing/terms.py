"""What a card says of a published repository that Illume cannot know: its licence and its languages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from app.errors import Invalid

LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,59}")
LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")
MOST_LANGUAGES = 50


@dataclass(frozen=True, slots=True)
class Terms:
    """The licence, as an identifier of the Hub, or nothing; the languages of the texts, as in BCP 47."""

    licence: str = ""
    languages: tuple[str, ...] = ()


def parse_terms(licence: str, languages: Iterable[str]) -> Terms:
    """Check a licence and languages. Raises `Invalid`, naming the field."""
    licence = licence.strip().lower()
    if licence and not LICENCE.fullmatch(licence):
        raise Invalid(
            f"license: '{licence[:60]}' is no identifier such as cc-by-4.0, apache-2.0 or other.", field="license"
        )
    found = tuple(dict.fromkeys(one for language in languages for one in language.replace(",", " ").split()))
    bad = next((one for one in found if not LANGUAGE.fullmatch(one)), None)
    if bad is not None:
        raise Invalid(f"language: '{bad[:40]}' is no language tag such as en, de or pt-BR.", field="language")
    if len(found) > MOST_LANGUAGES:
        raise Invalid(f"language: {len(found):,} were named; at most {MOST_LANGUAGES} are written.", field="language")
    return Terms(licence, found)
