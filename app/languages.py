"""The languages of the pages: their catalogues, which of them a reader gets, and how they write numbers and times.

A language is a folder of `app/locale` with a `messages.po`. English is the language of the sources: it has none.
"""

from __future__ import annotations

import functools
import gettext
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from babel import Locale
from babel.dates import format_date, format_skeleton, format_time
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import format_decimal

from illume.phrases import Reader, reader

LOCALE = Path(__file__).parent / "locale"
CATALOGUE = "messages.po"
ENGLISH = "en"


@dataclass(frozen=True, slots=True)
class Language:
    """A language of the pages. `name` is its name for itself, `tag` what HTML and browsers call it."""

    code: str
    name: str
    tag: str
    direction: str

    @property
    def locale(self) -> Locale:
        """What Babel knows of it."""
        return Locale.parse(self.code)


class PageReader(Reader):
    """The reader of a page, with the language that the page is in."""

    __slots__ = ("language",)

    def __init__(self, language: Language) -> None:
        super().__init__()
        self.speak(language)

    def speak(self, language: Language) -> None:
        """Go on in another language."""
        self.language = language
        self.catalogue = None if language.code == ENGLISH else translations(language.code)

    def write_number(self, value: float, digits: int) -> str:
        """As `number` does: only readers of other languages than English are asked."""
        return number(value, digits)


@functools.cache
def languages() -> Mapping[str, Language]:
    """All languages by their codes: English, then the others in the order of their names."""
    folders = [file.parent.name for file in LOCALE.glob(f"*/{CATALOGUE}")]
    found = [_language(code) for code in (ENGLISH, *folders)]
    return {one.code: one for one in (found[0], *sorted(found[1:], key=lambda one: one.name.casefold()))}


def _language(code: str) -> Language:
    locale = Locale.parse(code)
    name = str(locale.get_display_name(code))
    return Language(code, name[:1].upper() + name[1:], code.replace("_", "-"), locale.text_direction)


def read_catalogue(code: str) -> Catalog:
    """The messages of a language with their translations, as the folder holds them."""
    with (LOCALE / code / CATALOGUE).open("rb") as file:
        return read_po(file, locale=code)


@functools.cache
def translations(code: str) -> gettext.GNUTranslations:
    """The translations of a language, read once."""
    compiled = io.BytesIO()
    write_mo(compiled, read_catalogue(code))
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)


@functools.cache
def script_messages(code: str) -> Mapping[str, str | list[str]]:
    """What the scripts of the pages say, by the English message: a translation, or one for each plural form."""
    if code == ENGLISH:
        return {}
    told: dict[str, str | list[str]] = {}
    for message in read_catalogue(code):
        if any(path.startswith("static/") for path, _line in message.locations):
            name = message.id if isinstance(message.id, str) else message.id[0]
            told[name] = message.string if isinstance(message.string, str) else list(message.string or ())
    return told


def accepted(header: str) -> Language:
    """The language of an `Accept-Language` header that the pages are in; English where they are in none of them."""
    wishes: list[tuple[float, str]] = []
    for entry in header[:1000].split(","):
        tag, _, weight = entry.strip().partition(";")
        try:
            wishes.append((float(weight.strip().removeprefix("q=")) if weight else 1.0, tag.strip().lower()))
        except ValueError:
            continue
    for quality, tag in sorted(wishes, key=lambda wish: -wish[0]):
        if quality > 0:
            parents = [language for language in languages().values() if _covers(language.tag.lower(), tag)]
            if parents:
                return parents[0]
    return languages()[ENGLISH]


def _covers(ours: str, wish: str) -> bool:
    return wish == ours or wish.split("-")[0] == ours.split("-")[0]


def current() -> Language:
    """The language of the current reader."""
    now = reader.get()
    return now.language if isinstance(now, PageReader) else languages()[ENGLISH]


def speak(code: str) -> None:
    """Go on in the language that a person chose; with an empty or unknown code, as before."""
    now, language = reader.get(), languages().get(code)
    if isinstance(now, PageReader) and language is not None:
        now.speak(language)


@contextmanager
def reading(language: Language) -> Iterator[PageReader]:
    """What is written within is for a reader of `language`."""
    now = PageReader(language)
    token = reader.set(now)
    try:
        yield now
    finally:
        reader.reset(token)


# Numbers and times. In English they are written as Illume always wrote them.


def number(value: float, digits: int = 0) -> str:
    """A number in the reader's language, with so many digits after the point."""
    language = current()
    if language.code == ENGLISH:
        return f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", "\u2212")
    pattern = "#,##0" + ("." + "0" * digits if digits else "")
    return str(format_decimal(value, format=pattern, locale=language.locale)).replace("-", "\u2212")


def isolated(text: str) -> str:
    """A number with a sign, or an English sentence, in its own order also where the language has another."""
    return f"\u2066{text}\u2069" if current().direction == "rtl" else text


def day(at: datetime) -> str:
    """A day in the reader's language, in short."""
    language = current()
    return at.strftime("%-d %b %Y") if language.code == ENGLISH else str(format_date(at, "medium", language.locale))


def day_of_month(at: date) -> str:
    """A day without its year in the reader's language, in short."""
    language = current()
    return f"{at:%-d %b}" if language.code == ENGLISH else str(format_skeleton("MMMd", at, locale=language.locale))


def day_and_time(at: datetime) -> str:
    """A day and a time in the reader's language, in short and in the time zone of `at`."""
    language = current()
    if language.code == ENGLISH:
        return at.strftime("%-d %b %Y, %H:%M")
    return f"{format_date(at, 'medium', language.locale)}, {format_time(at, 'short', locale=language.locale)}"
