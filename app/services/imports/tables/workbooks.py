"""Tables in Excel workbooks: the first sheet, as Excel shows it. Runs where `app/services/imports/opened.py` does."""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from app.errors import Invalid
from app.services.imports.tables.headers import is_too_long, read_header, row_values
from app.services.imports.tables.rows import MAX_COLUMN_NAME, SKIPPED_ROWS, OpenTable, TableRow
from illume.phrases import Number, _, ngettext

MAX_SHEET_ROWS = 1_048_576
MAX_SHEET_COLUMNS = 16_384
MAX_CELLS = 100_000_000
EXACT = 10**15
"""Excel keeps 15 digits of a number."""
LARGEST = 10**300
VISIBLE = "visible"
NAMELESS = _("The first sheet has no header with the names of its columns.")
ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")
NUMBER_FORMAT = re.compile(r"(?P<whole>#,##0|#|0+)(?:\.(?P<fraction>0+))?(?P<percent>%?)")
"""The formats of numbers that are followed; others show a number as it is."""


@contextmanager
def opened(open_table: OpenTable) -> Iterator[Any]:
    """A workbook. Raises `Invalid` for one that cannot be opened."""
    from openpyxl import load_workbook

    with open_table() as source:
        try:
            book = load_workbook(source, read_only=True, data_only=True, keep_links=False)
        except MemoryError:
            raise
        except Exception as error:  # of whatever class; its words may name files of this machine
            cause = error.__cause__ or error.__context__ or error
            raise Invalid(
                _("The Excel file cannot be read: %(name)s.", name=type(cause).__name__), field="file"
            ) from error
        try:
            yield book
        finally:
            book.close()


def shown_sheets(book: Any) -> list[Any]:
    """The sheets of a workbook that are not hidden. Raises `Invalid` where there is none."""
    sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == VISIBLE]
    if not sheets:
        raise Invalid(_("The Excel file has no sheet with cells."), field="file")
    return sheets


def list_sheets(open_table: OpenTable) -> tuple[str, ...]:
    """The names of the sheets, of which the first is read. Raises `Invalid`."""
    with opened(open_table) as book:
        return tuple(str(sheet.title)[:MAX_COLUMN_NAME] for sheet in shown_sheets(book))


def sheet_rows(open_table: OpenTable) -> Generator[TableRow | None, None, None]:
    """The rows of the first sheet below its header, the first row with something in it; now and then None meanwhile.

    Empty rows and columns are skipped. Raises `Invalid`, and what openpyxl raises for a broken file.
    """
    with opened(open_table) as book:
        header = None
        for number, cells in numbered_rows(shown_sheets(book)[0]):
            if number % SKIPPED_ROWS == 0:
                yield None
            fields = [show(cell) for cell in cells]
            if all(one in (None, "") for one in fields):
                continue
            if header is None:
                header = read_header(["" if one is None else str(one) for one in fields], NAMELESS)
            elif is_too_long(fields, header):
                used = max(place for place, one in enumerate(fields, 1) if one not in (None, ""))
                yield TableRow(
                    number,
                    Invalid(
                        ngettext(
                            "The row has %(num)s cell, the header has %(width)s.",
                            "The row has %(num)s cells, the header has %(width)s.",
                            used,
                            width=header.width,
                        )
                    ),
                )
            elif (broken := find_error(cells, header.columns)) is not None:
                column, error = broken
                yield TableRow(
                    number,
                    Invalid(
                        _("%(column)s: the cell shows the error %(error)s.", column=column[:60], error=error),
                        field=column,
                    ),
                )
            else:
                yield TableRow(number, row_values(fields, header))
        if header is None:
            read_header([], NAMELESS)


def numbered_rows(sheet: Any) -> Iterator[tuple[int, Sequence[Any]]]:
    """The rows of a sheet as wide as they are, with their numbers. Raises `Invalid` for too many rows or cells."""
    sheet.reset_dimensions()  # what a file says about its size is not believed
    total = 0
    for number, cells in enumerate(sheet.iter_rows(), 1):
        total += len(cells)
        if number > MAX_SHEET_ROWS or len(cells) > MAX_SHEET_COLUMNS:
            raise Invalid(_("The sheet has more rows or columns than Excel allows."), field="file")
        if total > MAX_CELLS:
            raise Invalid(
                _("The sheet has over %(max_cells)s cells: save it as CSV.", max_cells=Number(MAX_CELLS)), field="file"
            )
        yield number, cells


def find_error(cells: Sequence[Any], columns: Any) -> tuple[str, str] | None:
    """The first cell in a column whose formula ended in an error: its column, and the error."""
    for place, name in columns.items():
        if place < len(cells) and cells[place].data_type == "e":
            return name, str(cells[place].value)[:20]
    return None


def show(cell: Any) -> Any:
    """The value of a cell as Excel shows it: a text where it can be one.

    It is a float where what is shown is not what was typed in: a number of over 15 digits, or one written as `1E+05`.
    Times stay times.
    """
    value = cell.value
    if value is None or isinstance(value, str):
        return None if value is None else unescape(value)
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, datetime):
        return value.date() if value.time() == time() else value
    if isinstance(value, date | time):
        return value
    if isinstance(value, timedelta):
        return str(value)
    if isinstance(value, int | float):
        return show_number(value, str(cell.number_format))
    return str(value)


def unescape(text: str) -> str:
    """A text with the characters that Excel writes as `_x000D_`, and with line feeds for line breaks."""
    if "_x" in text:
        text = ESCAPED.sub(lambda found: chr(int(found.group(1), 16)), text)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def show_number(value: float, number_format: str) -> str | float:
    """A number as its format shows it, without separators of thousands; a float where digits of it may be missing."""
    if abs(value) >= EXACT or value != value or "E+" in number_format.upper():
        return float(value) if abs(value) < LARGEST else math.inf
    exact = Decimal(format(value, ".15g") if isinstance(value, float) else value)
    known = NUMBER_FORMAT.fullmatch(number_format.partition(";")[0])
    if known is None:
        return plain(exact)
    if known["percent"]:
        exact *= 100
    text = format(exact, f".{len(known['fraction'] or '')}f")
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    whole, point, fraction = digits.partition(".")
    padded = whole.zfill(len(known["whole"])) if "#" not in known["whole"] else whole
    return f"{sign}{padded}{point}{fraction}{known['percent']}"


def plain(number: Decimal) -> str:
    """A number without an exponent, and without zeros at the end of its fraction."""
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
