"""Tables of text with separated fields: CSV, TSV and their like."""

from __future__ import annotations

import csv
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import IO

from app.errors import Invalid
from app.services.imports.tables.encodings import UTF_8, is_text, not_encoded, text_lines
from app.services.imports.tables.headers import Header, is_too_long, read_header, row_values
from app.services.imports.tables.rows import MAX_LINE, OpenTable, TableRow
from illume.phrases import _, ngettext

MAX_RECORD_LINES = 1000
OVERLONG = "\udcff a line that was cut off"
NAMELESS = _("The CSV file has no header with the names of its columns.")
DELIMITERS = ",;\t|"
SAMPLED_LINES = 200
MOST_SAMPLED = 256 * 1024
NAMED_DELIMITER = re.compile(r'"?sep=([,;\t|:^~#!&$*])"?[\r\n]*', re.IGNORECASE)
"""The first line by which Excel is told the separator."""


@dataclass(frozen=True, slots=True)
class Start:
    """How a file begins: its separator, how many lines lie above the header, and all lines from the header on.

    `by_return`: lines end with a carriage return alone, as once on the Mac.
    """

    delimiter: str
    above: int
    lines: Iterator[str]
    by_return: bool


def csv_rows(open_table: OpenTable, encoding: str = UTF_8) -> Generator[TableRow, None, None]:
    """The rows of a file of separated fields with a header."""
    with open_table() as source:
        start = read_start(source, encoding)
        records = CsvRecords(start.lines, start.delimiter, start.above)
        _rest, header = next(records, (1, []))
        if isinstance(header, Invalid):
            raise Invalid(
                _("The header of the CSV file cannot be read: %(detail)s", detail=header.detail), field="file"
            )
        if not is_text("".join(header)):
            raise Invalid(_("The header %(encoding)s", encoding=not_encoded(encoding)), field="file")
        for row in csv_body_rows(records, read_header(header, NAMELESS), encoding):
            yield with_line_feeds(row) if start.by_return else row


def with_line_feeds(row: TableRow) -> TableRow:
    """A row whose line breaks are line feeds, of a file where they are carriage returns."""
    if isinstance(row.values, Invalid):
        return row
    return TableRow(row.number, {name: text.replace("\r", "\n") for name, text in row.values.items()})


def find_delimiter(open_table: OpenTable, encoding: str = UTF_8) -> str:
    """The separator of a file. Raises `Invalid` where the file has no header."""
    with open_table() as source:
        return read_start(source, encoding).delimiter


def read_start(source: IO[bytes], encoding: str) -> Start:
    """Read the first lines of a file, and find its separator. Raises `Invalid` for a header that is far too long."""
    lines = csv_lines(source, encoding)
    first = next(lines, "")
    named = NAMED_DELIMITER.fullmatch(first)
    sample = [next(lines, "") if named else first]
    if len(sample[0]) > csv.field_size_limit():
        raise Invalid(_("The first line is far too long for the header of a CSV file."), field="file")
    by_return = first.endswith("\r")
    if named:
        return Start(named.group(1), 1, chain(sample, lines), by_return)
    size = len(first)
    try:
        while size < MOST_SAMPLED and len(sample) < SAMPLED_LINES and (line := next(lines, "")):
            sample.append(line)
            size += len(line)
    except Exception as error:  # noqa: BLE001 - the rows before the place where the file breaks off are read first
        lines = broken_off(error)
    return Start(max(DELIMITERS, key=lambda one: fitness(sample, one)), 0, chain(sample, lines), by_return)


def broken_off(error: Exception) -> Iterator[str]:
    """No lines, but what ended the reading of them."""
    yield from ()
    raise error


def fitness(lines: list[str], delimiter: str) -> tuple[float, int, float]:
    """How well a separator fits the first lines: by the columns that rows fill as the header says.

    Where no row does, it is by the columns of the header.
    """
    records = CsvRecords(iter(lines), delimiter)
    _, names = next(records, (1, []))
    if isinstance(names, Invalid):
        return 0.0, 1 + lines[0].count(delimiter), 0.0
    width = max((place for place, name in enumerate(names, 1) if name.strip()), default=0)
    header = Header({}, width)
    records.width = width
    rows = [fields for _, fields in records if isinstance(fields, Invalid) or any(fields)]
    if rows and isinstance(rows[-1], Invalid) and len(rows) > 1:
        rows.pop()  # it may go on behind the sample
    fitting = sum(not isinstance(row, Invalid) and is_row(row, header) for row in rows)
    share = fitting / len(rows) if rows else 1.0
    return share * (width - 1), width, share


def is_row(fields: list[str], header: Header) -> bool:
    """Whether a row has the fields of the header; empty ones may follow them."""
    return len(fields) >= header.width and not is_too_long(fields, header)


def csv_lines(source: IO[bytes], encoding: str) -> Iterator[str]:
    """The lines of a file; `OVERLONG` stands for one of over 4 MB."""
    for line, cut in text_lines(source, encoding):
        yield OVERLONG if cut else line


class CsvRecords(Iterator[tuple[int, list[str] | Invalid]]):
    """The records of a CSV file, each with the number of the line where it begins.

    A quote that is never closed costs the line where it opens, not those below it: these are read again on their own.
    Each line is read three times at most, since the next line that opens a quote is the one that ends the attempt.
    """

    def __init__(self, lines: Iterator[str], delimiter: str, number: int = 0) -> None:
        """`number`: how many lines were read before these."""
        self._lines = lines
        self._ahead: list[str] = []
        self._delimiter = delimiter
        self._number = number
        self.width: int | None = None
        """The number of fields that a record of several lines must have; empty ones may follow them."""

    def __next__(self) -> tuple[int, list[str] | Invalid]:
        """The next record, or what is wrong with its first line."""
        number = self._number + 1
        if self._has(0) and self._ahead[0] is OVERLONG:
            self._number += 1
            del self._ahead[0]
            return number, Invalid(_("The line is over %(value)s MB.", value=MAX_LINE >> 20))
        found, used, more = self._parse(1)
        if more:
            found, used, _rest = self._parse(MAX_RECORD_LINES)
            if not isinstance(found, list) or (self.width is not None and not is_row(found, Header({}, self.width))):
                found, used = Invalid(_("The line is not valid CSV: the quote that opens in it is not closed.")), 1
        if not used:
            raise StopIteration
        self._number += used
        del self._ahead[:used]
        return number, Invalid(_("The line is not valid CSV.")) if found is None else found

    def _parse(self, most: int) -> tuple[list[str] | Invalid | None, int, bool]:
        """Parse a record of up to `most` lines: its fields, the number of lines read, and whether it needs more."""
        used = 0
        more = False

        def feed() -> Iterator[str]:
            nonlocal used, more
            size = 0
            while used < most and size < MAX_LINE and self._has(used) and self._ahead[used] is not OVERLONG:
                used += 1
                size += len(self._ahead[used - 1])
                yield self._ahead[used - 1]
            more = used > 0

        try:
            return next(csv.reader(feed(), delimiter=self._delimiter, strict=True), []), used, more
        except csv.Error as error:
            wrong = None if more or used > 1 else Invalid(_("The line is not valid CSV: %(error)s.", error=error))
            return wrong, used, more

    def _has(self, place: int) -> bool:
        """Whether there is a line at this place ahead."""
        while len(self._ahead) <= place:
            line = next(self._lines, None)
            if line is None:
                return False
            self._ahead.append(line)
        return True


def csv_body_rows(records: CsvRecords, header: Header, encoding: str) -> Iterator[TableRow]:
    """The rows below a header; `number` is the line where a row begins."""
    records.width = header.width
    for number, fields in records:
        if isinstance(fields, Invalid):
            yield TableRow(number, fields)
        elif not any(fields):
            continue
        elif not is_row(fields, header):
            count = ngettext("%(num)s field", "%(num)s fields", len(fields))
            yield TableRow(
                number, Invalid(_("The line has %(count)s, the header has %(width)s.", count=count, width=header.width))
            )
        elif not is_text("".join(fields)):
            yield TableRow(number, Invalid(_("The line %(encoding)s", encoding=not_encoded(encoding))))
        else:
            yield TableRow(number, row_values(fields, header))
