"""The catalogues of the pages: everything that is said is translated into each language, with its values and tags."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from babel.messages.catalog import Catalog, Message

from app import errors
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


def calls(*folders: str) -> Iterator[tuple[str, ast.Call]]:
    """All calls in the programs of some folders, each with its place."""
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", node


def values_of_messages() -> Iterator[tuple[str, ast.expr]]:
    """What is put into messages. A `field` may be the name of one, which is the same in every language."""
    for place, call in calls("app", "illume", "worker"):
        if isinstance(call.func, ast.Name) and call.func.id in TEXTS:
            yield from ((place, given.value) for given in call.keywords if given.arg != "field")


def words_in(value: ast.expr) -> bool:
    """Whether words are written out in a value, as `"cells"` or `"cell" if n == 1 else "cells"`."""
    if isinstance(value, ast.IfExp):
        return words_in(value.body) or words_in(value.orelse)
    parts = value.values if isinstance(value, ast.JoinedStr) else [value]
    texts = [one.value for one in parts if isinstance(one, ast.Constant)]
    return any(re.search(r"[^\W\d_]", text) for text in texts if isinstance(text, str))


def writes_a_number(value: ast.expr) -> bool:
    """Whether a number is written with separators of thousands, which is English in every language."""
    holes = [one.format_spec for one in ast.walk(value) if isinstance(one, ast.FormattedValue)]
    return any("," in ast.unparse(spec) for spec in holes if spec is not None)


def test_values_of_messages_are_no_words_and_no_written_numbers() -> None:
    found = list(values_of_messages())
    assert len(found) > 300
    assert [place for place, value in found if words_in(value)] == []
    assert [place for place, value in found if writes_a_number(value)] == []  # `Number` of `illume.phrases` does it


def test_errors_of_pages_are_phrases() -> None:
    names = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Exception)}
    raised = [
        (place, call.args[0])
        for place, call in calls("app/http", "app/services", "app/web")
        if ast.unparse(call.func) in names and call.args
    ]
    assert len(raised) > 300
    assert [place for place, text in raised if isinstance(text, ast.JoinedStr | ast.BinOp) or words_in(text)] == []


def test_messages_are_constants() -> None:
    wrong = []
    for file in [*(ROOT / "app").rglob("*.py"), *(ROOT / "illume").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in TEXTS:
                texts = node.args[: TEXTS[node.func.id]]
                if not all(isinstance(one, ast.Constant) for one in texts):
                    wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []
