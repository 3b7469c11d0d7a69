"""What is wrong with pictures, columns and parts is said in the reader's language."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from app import languages
from app.errors import DomainError, Invalid
from app.services.imports.files import about
from app.services.imports.layouts import find_missing, make_plan
from app.services.imports.tables.delimited import NAMELESS
from app.services.imports.tables.headers import read_header
from app.services.imports.tables.lines import parse_document
from app.services.imports.tables.rows import check_column
from app.services.imports.tables.table import TableKind
from app.services.kernel.isolated import Unreadable
from app.services.kernel.text_rules import refuse_unstorable
from app.services.prompts.decoding import decode
from app.services.prompts.prompts import parse_prompt
from illume.phrases import Phrase, _
from tests.app.services.prompts.test_images import png_that_claims


def columns(*names: str) -> None:
    """Import a table with these columns."""
    raise Invalid(find_missing(make_plan(TableKind.csv, names)))


def picture(width: int, height: int) -> None:
    """Import a picture of this size under a name."""
    with about("a.png"):
        decode(png_that_claims(width, height))


def broken() -> None:
    """Import a picture that takes too long."""
    with about("a.png"):
        raise Unreadable(_("it took over %(seconds)s s", seconds="60"))


@pytest.mark.parametrize(
    ("fail", "english", "german"),
    [
        (
            lambda: picture(8000, 8000),
            "a.png: The image has 8,000 x 8,000 pixels (64.0 megapixels); at most 40 megapixels are taken. "
            "The import can scale such images down.",
            "höchstens 40 Megapixel sind möglich. Der Import kann solche Bilder verkleinern.",
        ),
        (
            lambda: picture(30_000, 1),
            "a.png: The image has 30,000 x 1 pixels (0.0 megapixels); at most 20,000 pixels a side are taken. "
            "The import can scale such images down.",
            "Das Bild hat 30.000 × 1 Pixel (0,0 Megapixel); höchstens 20.000 Pixel pro Seite sind möglich.",
        ),
        (
            lambda: read_header([f"c{n}" for n in range(1001)], NAMELESS),
            "The header has 1,001 columns; at most 500 are read.",
            "1.001 Spalten",
        ),
        (
            lambda: read_header([""], NAMELESS),
            "The CSV file has no header with the names of its columns.",
            "In der CSV-Datei fehlt eine Kopfzeile",
        ),
        (broken, "a.png: The image is broken: it took over 60 s.", "a.png: Das Bild ist beschädigt: das Lesen dauerte"),
        (lambda: columns("question"), "Choose the column that names the images.", "Wählen Sie die Spalte, die die"),
        (
            lambda: columns("image"),
            "Choose the column with the question, or enter a question for rows without one.",
            "Wählen Sie die Spalte mit der Frage",
        ),
        (
            lambda: check_column("a\0"),
            "The name of the column 'a?' holds a NUL character.",
            "Der Name der Spalte „a?“ enthält ein NUL-Zeichen.",
        ),
        (
            lambda: parse_document(b"[1, 2"),
            "The file is not valid JSON: unexpected end of data (line 1).",
            "Die Datei ist kein gültiges JSON",
        ),
        (
            lambda: refuse_unstorable({"a": [1 << 70]}),
            "a.0: holds an integer of over 64 bits.",
            "a.0: enthält eine ganze Zahl von mehr als 64 Bit.",
        ),
        (
            lambda: parse_prompt({"parts": [{"type": "text", "text": "Why?"}]}),
            "parts: a prompt needs at least one picture.",
            "parts: eine Aufgabe braucht mindestens ein Bild.",
        ),
        (
            lambda: parse_prompt({"parts": [{"type": "text", "text": " "}]}),
            "parts.0.text: must be a text that is not empty.",
            "parts.0.text: muss ein nicht leerer Text sein.",
        ),
    ],
)
def test_in_english_and_german(fail: Callable[[], object], english: str, german: str) -> None:
    with pytest.raises(DomainError) as caught:
        fail()
    detail = caught.value.detail
    assert detail == english
    assert isinstance(detail, Phrase)
    with languages.reading(languages.languages()["de"]):
        assert german in detail.told()
