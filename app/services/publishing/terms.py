"""What a card says of a published repository that Illume cannot know: its licence and its languages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from app.errors import Invalid
from illume.phrases import Number, _
from illume.texts import LANGUAGE_TAG

LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,59}")
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
            _("license: '%(licence)s' is no identifier such as cc-by-4.0, apache-2.0 or other.", licence=licence[:60]),
            field="license",
        )
    found = tuple(dict.fromkeys(one for language in languages for one in language.replace(",", " ").split()))
    bad = next((one for one in found if not LANGUAGE_TAG.fullmatch(one)), None)
    if bad is not None:
        raise Invalid(
            _("language: '%(bad)s' is no language tag such as en, de or pt-BR.", bad=bad[:40]), field="language"
        )
    if len(found) > MOST_LANGUAGES:
        raise Invalid(
            _(
                "language: %(count)s were named; at most %(most_languages)s are written.",
                count=Number(len(found)),
                most_languages=MOST_LANGUAGES,
            ),
            field="language",
        )
    return Terms(licence, found)
