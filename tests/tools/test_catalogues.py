"""The catalogues of the pages: everything that is said is translated into each language, with its values and tags."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from babel.messages.catalog import Catalog, Message

from app.languages import languages, read_catalogue
from app.settings import ROOT
from tests.literal_texts import all_found
from tools import catalogues

VALUE = re.compile(r"%\((\w+)\)s")
TAG = re.compile(r"</?[a-z][^>]*>")
TEXTS = {"_": 1, "ngettext": 2, "pgettext": 2, "npgettext": 3}
"""Functions of gettext, with how many of their arguments are texts."""
CODES = [code for code in languages() if code != "en"]


@pytest.fixture(scope="module")
def said() -> Catalog:
    """All messages of pages, scripts and programs."""
    return catalogues.said()


def pairs(message: Message) -> Iterator[tuple[str, str]]:
    """Each translation of a message, with the English text that says most of it."""
    if isinstance(message.id, str):
        yield message.id, str(message.string)
    else:
        for form in message.string or ():
            yield message.id[1], str(form)


def test_no_page_says_what_no_catalogue_can_know() -> None:
    assert [str(one) for one in all_found()] == []


def test_there_are_the_languages_that_are_promised() -> None:
    assert {"ar", "de", "es", "zh_Hans"} <= set(CODES)


@pytest.mark.parametrize("code", CODES)
class TestEachLanguage:
    def test_everything_that_is_said_is_translated_and_nothing_else(self, code: str, said: Catalog) -> None:
        known = {(message.id, message.context) for message in read_catalogue(code) if message.id}
        assert known == {(message.id, message.context) for message in said if message.id}
        assert [message.id for message in catalogues.untranslated(read_catalogue(code))] == []

    def test_values_and_tags_stay(self, code: str) -> None:
        wrong = []
        for message in read_catalogue(code):
            if not message.id:
                continue
            plural = not isinstance(message.id, str)
            for number, (text, told) in enumerate(pairs(message), start=1):
                values, expected = set(VALUE.findall(told)), set(VALUE.findall(text))
                # "One prompt" may leave its number out; the last form is that of any number.
                leaves_out = plural and number < len(message.string or ())
                if values - expected or (values != expected and not leaves_out):
                    wrong.append((text, told))
                if sorted(TAG.findall(told)) != sorted(TAG.findall(text)):
                    wrong.append((text, told))
                if "%" in VALUE.sub("", told).replace("%%", ""):
                    wrong.append((text, told))
        assert wrong == []


def test_messages_are_constants() -> None:
    wrong = []
    for file in [*(ROOT / "app").rglob("*.py"), *(ROOT / "illume").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in TEXTS:
                texts = node.args[: TEXTS[node.func.id]]
                if not all(isinstance(one, ast.Constant) for one in texts):
                    wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []
