"""A table in a file, of whichever format, read row by row."""

from __future__ import annotations

import functools
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath

from app.errors import Invalid
from app.services.imports.elsewhere import potato
from app.services.imports.elsewhere.converting import HEAD, could_be_foreign, find_origin, record_rows
from app.services.imports.elsewhere.tasks import Origin
from app.services.imports.tables.columnar import parquet_rows
from app.services.imports.tables.delimited import csv_rows, find_delimiter
from app.services.imports.tables.encodings import MARKS, UTF_8, guess_encoding, marked_encoding
from app.services.imports.tables.lines import json_rows, ndjson_rows
from app.services.imports.tables.rows import SKIPPED_ROWS, OpenTable, TableRow
from app.services.imports.tables.workbooks import list_sheets, sheet_rows
from illume.phrases import _

OLD_EXCEL = b"\xd0\xcf\x11\xe0"
TEXT_SUFFIXES = (".txt", ".text")
"""Excel saves "Unicode text" under this name."""


class TableKind(StrEnum):
    """The format of a table."""

    ndjson = "ndjson"
    csv = "csv"
    json = "json"
    parquet = "parquet"
    xlsx = "xlsx"


SUFFIXES = {
    ".jsonl": TableKind.ndjson,
    ".ndjson": TableKind.ndjson,
    ".csv": TableKind.csv,
    ".tsv": TableKind.csv,
    ".tab": TableKind.csv,
    ".psv": TableKind.csv,
    ".json": TableKind.json,
    ".parquet": TableKind.parquet,
    ".xlsx": TableKind.xlsx,
    ".xlsm": TableKind.xlsx,
}


@dataclass(frozen=True, slots=True)
class TableForm:
    """How a table is read: for a person to check.

    `guess` is the encoding that would be used if none were chosen; `origin` is the tool that exported the file. What
    does not apply is empty.
    """

    kind: TableKind
    encoding: str = ""
    guess: str = ""
    delimiter: str = ""
    sheets: tuple[str, ...] = ()
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be read repeatedly. `path` is set if it is a file of its own.

    `judgements` are the lines of Potato that judge its rows.
    """

    kind: TableKind
    open: OpenTable
    path: Path | None = None
    encoding: str = UTF_8
    guess: str = UTF_8
    judgements: OpenTable | None = None

    def rows(self, after: int = 0, *, columns: Sequence[str] | None = None) -> Generator[TableRow | None, None, None]:
        """Yield the rows after the first `after`, with at least the columns `columns`; now and then None meanwhile.

        Raises `Invalid` if the file as a whole cannot be read.
        """
        if self.kind is TableKind.parquet:
            yield from parquet_rows(self.path, after, columns)
            return
        place = 0
        with closing(self._all_rows()) as rows:
            for row in rows:
                if row is not None:
                    place += 1
                if row is None or place > after:
                    yield row
                elif place % SKIPPED_ROWS == 0:
                    yield None

    def origin(self) -> Origin | None:
        """The tool that exported the table; None for any other table."""
        if self.judgements is not None:
            return Origin.potato
        if self.kind not in (TableKind.ndjson, TableKind.json):
            return None
        with self.open() as source:
            if not could_be_foreign(source.read(HEAD)):
                return None
        with closing(self._plain_rows()) as rows:
            first = next((row for row in rows if row is not None), None)
        return None if first is None or not isinstance(first.values, dict) else find_origin(first.values)

    def _all_rows(self) -> Generator[TableRow | None, None, None]:
        if self.judgements is not None:
            return record_rows(Origin.potato, functools.partial(self._judged_rows, self.judgements))
        origin = self.origin()
        return self._plain_rows() if origin is None else record_rows(origin, self._plain_rows)

    def _judged_rows(self, open_judgements: OpenTable) -> Generator[TableRow | None, None, None]:
        with closing(self._plain_rows()) as items, closing(ndjson_rows(open_judgements)) as judgements:
            yield from potato.item_rows(items, judgements)

    def _plain_rows(self) -> Generator[TableRow | None, None, None]:
        if self.kind is TableKind.xlsx:
            return sheet_rows(self.open)
        reading = {TableKind.ndjson: ndjson_rows, TableKind.csv: csv_rows, TableKind.json: json_rows}[self.kind]
        return reading(self.open, self.encoding)

    def form(self) -> TableForm:
        """How the table is read. Raises `Invalid` if the file as a whole cannot be read."""
        if self.kind is TableKind.parquet:
            return TableForm(self.kind)
        if self.kind is TableKind.xlsx:
            return TableForm(self.kind, sheets=list_sheets(self.open))
        delimiter = find_delimiter(self.open, self.encoding) if self.kind is TableKind.csv else ""
        return TableForm(self.kind, self.encoding, self.guess, delimiter, origin=self.origin())


def find_encoding(kind: TableKind, open_table: OpenTable) -> str:
    """The encoding of a table of text, else nothing: JSON is always Unicode. Raises `Invalid` where it is not text."""
    if kind is TableKind.csv:
        return guess_encoding(open_table)
    if kind in (TableKind.ndjson, TableKind.json):
        with open_table() as source:
            return marked_encoding(source.read(4))
    return ""


def detect_kind(name: str, first: bytes) -> TableKind:
    """Detect the format of a file from its name and first bytes. Raises `Invalid` for an unknown one."""
    if first.startswith(b"PAR1"):
        return TableKind.parquet
    if first.startswith(OLD_EXCEL):
        raise Invalid(
            _("The file is an Excel file of an old kind (.xls), or has a password: save it as .xlsx without one."),
            field="file",
        )
    suffix = PurePosixPath(name.lower()).suffix
    known = SUFFIXES.get(suffix)
    if known is not None:
        return known
    marked = first.startswith(tuple(MARKS)) or suffix in TEXT_SUFFIXES
    if b"\x00" in first and not marked:
        raise Invalid(_("The file is neither a table (.jsonl, .csv, .json, .xlsx, .parquet) nor a zip."), field="file")
    start = first.decode(marked_encoding(first) if marked else UTF_8, "ignore").removeprefix("\ufeff").lstrip()[:1]
    if suffix in TEXT_SUFFIXES and start not in ("[", "{"):
        return TableKind.csv
    return TableKind.json if start == "[" else TableKind.ndjson
