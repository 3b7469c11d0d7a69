"""Tables written as people's programs write them, and what is read from them."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path
from typing import Any, Literal

import openpyxl

from app.errors import DomainError
from app.services.imports.files import ImportFile
from app.services.imports.imports import list_columns
from app.services.imports.layouts import make_plan
from app.services.imports.opened import Source
from app.services.imports.reading import parse_row
from tests.app.services.imports.importing import archive

IMAGE = "0123456789abcdef" * 4
COLUMNS = ["external_id", "image", "question", "answer", "source"]


def as_csv(rows: list[list[str]], delimiter: str = ",", ending: str = "\n", *, trailing: bool = False) -> str:
    """The rows below a header as CSV; `trailing`: each line ends with two separators more."""
    file = io.StringIO()
    # Where lines end in a carriage return, the writer takes a line feed for a letter.
    quoting: Literal[0, 1] = csv.QUOTE_ALL if ending == "\r" else csv.QUOTE_MINIMAL
    writer = csv.writer(file, delimiter=delimiter, lineterminator=ending, quoting=quoting)
    writer.writerows([*row, "", ""] if trailing else row for row in [COLUMNS, *rows])
    return file.getvalue()


def as_xlsx(*sheets: list[list[Any]], titles: tuple[str, ...] = ("Prompts", "More", "Notes")) -> bytes:
    """A workbook of these sheets; a cell is a value, or a value and its number format."""
    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for title, rows in zip(titles, sheets, strict=False):
        sheet = book.create_sheet(title)
        for number, row in enumerate(rows, 1):
            for place, given in enumerate(row, 1):
                value, form = given if isinstance(given, tuple) else (given, "General")
                cell = sheet.cell(number, place)
                cell.value, cell.number_format = value, form
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


SHEET = "xl/worksheets/sheet1.xml"
STRINGS = "xl/sharedStrings.xml"
MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
KIND = "application/vnd.openxmlformats-officedocument.spreadsheetml"


def as_workbook(rows: str, texts: tuple[str, ...] = ()) -> bytes:
    """A workbook as Excel writes it, of one sheet: the XML of its rows, and the texts that cells name by number."""
    parts = {"workbook": "sheet.main", "worksheets/sheet1": "worksheet", "sharedStrings": "sharedStrings"}
    overrides = "".join(
        f'<Override PartName="/xl/{name}.xml" ContentType="{KIND}.{part}+xml"/>' for name, part in parts.items()
    )

    def links(**targets: str) -> str:
        one = '<Relationship Id="{0}" Type="{1}/{0}" Target="{2}"/>'
        inner = "".join(one.format(name, RELATIONS, target) for name, target in targets.items())
        return f'<Relationships xmlns="{PACKAGE}/relationships">{inner}</Relationships>'

    files = {
        "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types"><Default Extension="rels" '
        f'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>{overrides}</Types>',
        "_rels/.rels": links(officeDocument="xl/workbook.xml"),
        "xl/workbook.xml": f'<workbook xmlns="{MAIN}" xmlns:r="{RELATIONS}"><sheets>'
        '<sheet name="Prompts" sheetId="1" r:id="worksheet"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": links(worksheet="worksheets/sheet1.xml", sharedStrings="sharedStrings.xml"),
        SHEET: f'<worksheet xmlns="{MAIN}"><sheetData>{rows}</sheetData></worksheet>',
        STRINGS: f'<sst xmlns="{MAIN}">{"".join(f"<si><t>{text}</t></si>" for text in texts)}</sst>',
    }
    return archive({name: text.encode() for name, text in files.items()}, method=zipfile.ZIP_DEFLATED)


def as_excel_writes(rows: list[list[str]]) -> bytes:
    """A workbook of texts, which lie in a file of their own."""
    numbers = iter(range(sum(map(len, rows))))
    cells = ["".join(f'<c t="s"><v>{next(numbers)}</v></c>' for _ in row) for row in rows]
    return as_workbook("".join(f"<row>{row}</row>" for row in cells), tuple(text for row in rows for text in row))


def opened(folder: Path, data: bytes, name: str, encoding: str = "") -> ImportFile:
    """A file of these bytes, opened."""
    path = folder / "file"
    path.write_bytes(data)
    return ImportFile(Source(path, name, encoding=encoding), fetch=lambda _: b"")


def read(folder: Path, data: bytes, name: str, encoding: str = "") -> list[Any]:
    """The prompts of a file, as id, question, answer and metadata; what is wrong with a row in place of its prompt."""
    file = opened(folder, data, name, encoding)
    plan = make_plan(file.kind, list_columns(file.first(100)), loose=True)
    parsed = [parse_row(file, plan, row) for row in file.rows()]
    return [
        one.detail if isinstance(one, DomainError) else (one.external_id, one.question, one.answer, one.metadata)
        for one in parsed
    ]
