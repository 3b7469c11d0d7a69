"""Reading foreign text takes time in proportion to its length: twice the text takes three times as long at most."""

from __future__ import annotations

import gc
import io
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress

import orjson
import pytest
from starlette.requests import Request

from app.errors import DomainError
from app.http.door import drop_escaped_cookies
from app.services.accounts import users
from app.services.imports.files import is_web_address
from app.services.imports.layouts import guess_target, make_plan, row_to_prompt
from app.services.imports.names import NameIndex, coco_names, escapes_folder
from app.services.imports.tables.encodings import guess_encoding
from app.services.imports.tables.lines import parse_object
from app.services.imports.tables.table import Table, TableKind
from app.services.integrations.safe_http import Reach, find_place
from app.services.kernel.actors import SYSTEM
from app.services.kernel.text_rules import check_storable
from app.web.admin.rounds.side_by_side import mark_differences
from illume.parts import defuse
from tests.app.services.imports.tables.tables import as_workbook

LENGTH = 8_000
FLOOR = 0.25
"""Seconds of computing that are not looked at: what takes less is noise, and harmless at any growth."""


def read_table(kind: TableKind) -> Callable[[str], object]:
    """Read a table of this kind completely."""
    return lambda text: list(Table(kind, lambda: nullcontext(io.BytesIO(text.encode()))).rows())


def plan_row(text: str) -> object:
    """Make a prompt from a row of CSV with this text in several fields."""
    columns = ["image", "question", "answer", "reference", "metadata", "more"]
    return row_to_prompt(make_plan(TableKind.csv, columns), dict.fromkeys(columns, text))


def add_user(email: str) -> object:
    """Add a person with a bad address; the database is not reached."""
    return users.add_user(None, SYSTEM, email=email, role=None)  # type: ignore[arg-type]


def read_sheet(text: str) -> object:
    """Read a workbook whose first sheet is this XML."""
    return list(Table(TableKind.xlsx, lambda: nullcontext(io.BytesIO(as_workbook(text)))).rows())


def guess(text: str) -> object:
    """Guess the encoding of a text that is not UTF-8."""
    return guess_encoding(lambda: nullcontext(io.BytesIO(text.encode("cp1252"))))


def read_cookies(text: str) -> object:
    """Read the cookies of a request."""
    scope = {"type": "http", "headers": [(b"cookie", text.encode())]}
    drop_escaped_cookies(scope)
    return Request(scope).cookies


csv_table, ndjson_table, json_table = map(read_table, (TableKind.csv, TableKind.ndjson, TableKind.json))
READERS: dict[str, tuple[Callable[[int], str], Callable[[str], object]]] = {
    "a column of digits": (lambda size: "7" * size + "x", guess_target),
    "many columns": (
        lambda size: ",".join(f"c{one}" for one in range(size)),
        lambda text: make_plan(TableKind.csv, text.split(",")),
    ),
    # Just below the longest header, 128 kB.
    "a header of many names": (lambda size: ",".join(f"c{one}" for one in range(5 * size // 8)), csv_table),
    "a header of one name": (lambda size: "a," * size, csv_table),
    "unclosed quotes": (lambda size: "a,b\n" + '1,"x\n' * (size // 4), csv_table),
    "quotes that stay open": (lambda size: 'a,b\n1,"x\n' + '""\n' * (size // 4), csv_table),
    "a field of quotes": (lambda size: 'a,b\n1,"' + '""' * size, csv_table),
    "separators that none fits": (lambda size: "a,b;c|d\te\n" + ",;|\t" * size, csv_table),
    "rows of many separators": (lambda size: "a,b\n" + "1,2" + "," * size + "\n", csv_table),
    "carriage returns": (lambda size: "a,b\r" + "1,2\r" * (size // 4), csv_table),
    "quotes and carriage returns": (lambda size: 'a,b\r1,"' + "\r" * size, csv_table),
    "a long line of no encoding": (lambda size: "a,b\n1," + "é" * size, guess),
    "many lines of no encoding": (lambda size: "a,b\n" + "é\n" * size, guess),
    "a row of many cells": (lambda size: "<row>" + "<c><v>1</v></c>" * size + "</row>", read_sheet),
    "many rows of a sheet": (
        lambda size: "<row><c><v>1</v></c></row>" * (size // 8) + "<row><c><v>2</v></c></row>" * (size // 8),
        read_sheet,
    ),
    "rows that are missing": (lambda size: f'<row r="{size}"><c><v>1</v></c></row>', read_sheet),
    "a long text in a cell": (
        lambda size: (
            "<row><c t='inlineStr'><is><t>a</t></is></c></row>"
            f"<row><c t='inlineStr'><is><t>{'_x000D_x_' * size}</t></is></c></row>"
        ),
        read_sheet,
    ),
    "short lines": (lambda size: "a,b\n" + "1\n" * size, csv_table),
    "lines of JSON": (lambda size: '{"a": NaN}\n' * (size // 10), ndjson_table),
    "open brackets": (lambda size: '{"a": ' + "[" * size, ndjson_table),
    "nested lists": (
        lambda size: '{"a": ' + "[" * size + "NaN" + "]" * size + "}",
        lambda text: parse_object(text.encode()),
    ),
    "a long number": (lambda size: '{"a": [NaN, ' + "7" * size + "]}", ndjson_table),
    "many keys": (lambda size: "[{" + ", ".join(f'"{one}": 1' for one in range(size)) + "}]", json_table),
    "columns of a document": (lambda size: '{"a": [' + "1, " * size + "1]}", json_table),
    "broken documents": (lambda size: "[" * size, json_table),
    "a cell that begins a list": (lambda size: "[" * size, plan_row),
    "a cell like a list": (lambda size: "[" + "'a', " * size + "]", plan_row),
    "a cell of JSON": (lambda size: "[" + '"a", ' * size + '"a"]', plan_row),
    "metadata in a cell": (lambda size: '{"a":' * size + "1" + "}" * size, plan_row),
    "wide metadata": (lambda size: "[" + "[[1]]," * size + "1]", lambda text: check_storable(orjson.loads(text))),
    "the name of an image": (lambda size: "a" * size + ".png", NameIndex(["a.png"]).find),
    "a name of accents": (lambda size: "a" + "\u0316\u0301" * size, NameIndex(["a.png"]).find),
    "many names": (
        lambda size: "\n".join(f"{one}/A{one}.png" for one in range(size)),
        lambda text: NameIndex(text.split("\n")).find("a7.png"),
    ),
    "many like names": (
        lambda size: "\n".join(f"{one}/a.png" for one in range(size)),
        lambda text: NameIndex(text.split("\n")).find("A.png"),
    ),
    "a path": (lambda size: "a/" * size, escapes_folder),
    "a number as a name": (lambda size: "7" * size, coco_names),
    "a scheme": (lambda size: "a+" * size, is_web_address),
    "an address": (lambda size: "https://" + "a." * size, lambda text: find_place(text, Reach(resolve=lambda *_: []))),
    "an e-mail address of dots": (lambda size: "a@" + "." * size + "@", add_user),
    "an e-mail address of letters": (lambda size: "a" * size, add_user),
    "cookies": (lambda size: "a=b;" * size, read_cookies),
    "a cookie of escapes": (lambda size: 'a="' + "\\0" * size + '"', read_cookies),
    "a cookie of quotes": (lambda size: "a=" + '"' * size, read_cookies),
    "placeholders": (lambda size: "<|" * size, defuse),
    "two texts of the same words": (
        lambda size: "x y " * (size // 10),
        lambda text: mark_differences([text], ["y x x " * (len(text) // 4)]),
    ),
}


def seconds(read: Callable[[str], object], text: str) -> float:
    """The seconds of computing that reading takes, the least of several times. What is wrong with the text is fine."""
    taken = []
    gc.disable()  # how long it takes depends on everything else that is in memory
    try:
        for _ in range(3):
            began = time.thread_time()
            with suppress(DomainError):
                read(text)
            taken.append(time.thread_time() - began)
            if taken[-1] < FLOOR:
                break
    finally:
        gc.enable()
    return min(taken)


@pytest.mark.parametrize("name", READERS)
def test_twice_the_text_takes_three_times_as_long_at_most(name: str) -> None:
    make, read = READERS[name]
    limit = 9 * seconds(read, make(LENGTH)) + FLOOR  # twice the text twice: quadratic work takes 16 times as long
    assert any(seconds(read, make(4 * LENGTH)) <= limit for _ in range(3))


def test_long_texts_are_shown_without_differences() -> None:
    [old], [new] = mark_differences(["a b " * 2000], ["c " * 4000])
    assert not any(differs for _, differs in (*old, *new))
    [old], [new] = mark_differences(["a red kite"], ["a blue kite"])
    assert [word for word, differs in (*old, *new) if differs] == ["red", "blue"]
