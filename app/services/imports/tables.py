"""Tables in files, read row by row: NDJSON, CSV, JSON documents, Parquet."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, Any

import orjson

from app.errors import Invalid
from app.services.kernel.text_rules import MAX_DEPTH

MAX_LINE = 4 * 1024 * 1024
MAX_DOCUMENT = 256 * 1024 * 1024
MAX_ROW_GROUP = 2 * 1024 * 1024 * 1024
MAX_ROWS = 20_000_000
MAX_COLUMNS = 500
MAX_COLUMN_NAME = 200
MAX_RECORD_LINES = 1000
SKIPPED_ROWS = 1000
PARQUET_ROWS = 16
KEY_COLUMN = "key"
"""In a JSON document of named rows, the column that holds each row's name."""

TOO_MANY_ROWS = f"at most {MAX_ROWS:,} are imported at once."

OVERLONG = "\udcff a line that was cut off"

OpenTable = Callable[[], AbstractContextManager[IO[bytes]]]


class TableKind(StrEnum):
    """The format of a table."""

    ndjson = "ndjson"
    csv = "csv"
    json = "json"
    parquet = "parquet"


SUFFIXES = {
    ".jsonl": TableKind.ndjson,
    ".ndjson": TableKind.ndjson,
    ".csv": TableKind.csv,
    ".tsv": TableKind.csv,
    ".json": TableKind.json,
    ".parquet": TableKind.parquet,
}
UTF_16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row: its line, or its position in a format without lines, and its values by column or what is wrong."""

    number: int
    values: dict[str, Any] | Invalid


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be read repeatedly. `path` is set if it is a file of its own."""

    kind: TableKind
    open: OpenTable
    path: Path | None = None

    def rows(self, after: int = 0, *, columns: Sequence[str] | None = None) -> Generator[TableRow | None, None, None]:
        """Yield the rows after the first `after`, with at least the columns `columns`; now and then None meanwhile.

        Raises `Invalid` if the file as a whole cannot be read.
        """
        if self.kind is TableKind.parquet:
            yield from parquet_rows(self, after, columns)
            return
        reading = {TableKind.ndjson: ndjson_rows, TableKind.csv: csv_rows, TableKind.json: json_rows}[self.kind]
        with closing(reading(self.open)) as rows:
            for place, row in enumerate(rows):
                if place >= after:
                    yield row
                elif place % SKIPPED_ROWS == 0:
                    yield None


def detect_kind(name: str, first: bytes) -> TableKind:
    """Detect the format of a file from its name and first bytes. Raises `Invalid` for an unknown one."""
    if first.startswith(b"PAR1"):
        return TableKind.parquet
    known = SUFFIXES.get(PurePosixPath(name.lower()).suffix)
    if known is not None:
        return known
    if b"\x00" in first and not first.startswith(UTF_16_OR_32):
        raise Invalid("The file is neither a table (.jsonl, .csv, .json, .parquet) nor a zip.", field="file")
    return TableKind.json if first.lstrip()[:1] == b"[" else TableKind.ndjson


# Lines


def check_encoding(first: bytes) -> None:
    """Raise `Invalid` if the file starts like UTF-16 or UTF-32."""
    if first.startswith(UTF_16_OR_32):
        raise Invalid("The file is UTF-16 or UTF-32: save it as UTF-8.", field="file")
    if b"\x00" in first[:4] and not first.startswith(b"PAR1"):
        raise Invalid("The file is not a text file: its first bytes contain NUL.", field="file")


def read_lines(source: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield the lines, each with whether it was truncated at 4 MB; a byte-order mark is dropped."""
    first = True
    while line := source.readline(MAX_LINE):
        if first:
            check_encoding(line[:4])
            line, first = line.removeprefix(b"\xef\xbb\xbf"), False
        rest = line
        cut = False
        while not rest.endswith(b"\n") and (rest := source.readline(MAX_LINE)):
            cut = True
        yield line, cut


def ndjson_rows(open_table: OpenTable) -> Generator[TableRow, None, None]:
    """The rows of a file with one JSON object per line; empty lines are skipped."""
    with open_table() as source:
        for number, (line, cut) in enumerate(read_lines(source), 1):
            if cut:
                yield TableRow(number, Invalid(f"The line has over {MAX_LINE >> 20} MB."))
            elif not line.isspace():
                yield TableRow(number, parse_object(line))


def parse_object(line: bytes) -> dict[str, Any] | Invalid:
    """Parse a JSON object, or return what is wrong with it. NaN becomes null, as in documents."""
    try:
        item = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            item = parse_with_nan(line)
        except UnicodeDecodeError as wrong:
            return Invalid(f"The line is not UTF-8 (byte {wrong.start + 1}): save the file as UTF-8.")
        except (ValueError, RecursionError):
            return Invalid(f"The line is not valid JSON: {error.msg} (character {error.pos + 1}).")
    return item if isinstance(item, dict) else Invalid("The line is not a JSON object.")


def parse_with_nan(data: bytes) -> Any:
    """Parse JSON with NaN and infinities, which Python and pandas write; they become null.

    Raises UnicodeDecodeError, ValueError, RecursionError.
    """
    return json.loads(data.decode("utf-8-sig"), parse_constant=lambda _: None)


def csv_rows(open_table: OpenTable) -> Generator[TableRow, None, None]:
    """The rows of a CSV file with a header; fields are separated by commas, semicolons or tabs."""
    with open_table() as source:
        lines = csv_lines(source)
        header_line = next(lines, "")
        if len(header_line) > csv.field_size_limit():
            raise Invalid("The first line is far too long for the header of a CSV file.", field="file")
        delimiter = max(",;\t", key=header_line.count)
        records = CsvRecords(chain([header_line], lines), delimiter)
        _, header = next(records, (1, []))
        if isinstance(header, Invalid):
            raise Invalid(f"The header of the CSV file cannot be read: {header.detail}", field="file")
        yield from csv_body_rows(records, read_header(header))


def csv_lines(source: IO[bytes]) -> Iterator[str]:
    """The lines of a CSV file; `OVERLONG` stands for one of over 4 MB."""
    for line, cut in read_lines(source):
        yield OVERLONG if cut else line.decode("utf-8", "surrogateescape")


class CsvRecords(Iterator[tuple[int, list[str] | Invalid]]):
    """The records of a CSV file, each with the number of the line where it begins.

    A quote that is never closed costs the line where it opens, not those below it: these are read again on their own.
    Each line is read three times at most, since the next line that opens a quote is the one that ends the attempt.
    """

    def __init__(self, lines: Iterator[str], delimiter: str) -> None:
        self._lines = lines
        self._ahead: list[str] = []
        self._delimiter = delimiter
        self._number = 0
        self.width: int | None = None
        """The number of fields that a record of several lines must have."""

    def __next__(self) -> tuple[int, list[str] | Invalid]:
        """The next record, or what is wrong with its first line."""
        number = self._number + 1
        if self._has(0) and self._ahead[0] is OVERLONG:
            self._number += 1
            del self._ahead[0]
            return number, Invalid(f"The line has over {MAX_LINE >> 20} MB.")
        found, used, more = self._parse(1)
        if more:
            found, used, _ = self._parse(MAX_RECORD_LINES)
            if not isinstance(found, list) or (self.width is not None and len(found) != self.width):
                found, used = Invalid("The line is not valid CSV: the quote that opens in it is not closed."), 1
        if not used:
            raise StopIteration
        self._number += used
        del self._ahead[:used]
        return number, Invalid("The line is not valid CSV.") if found is None else found

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
            wrong = None if more or used > 1 else Invalid(f"The line is not valid CSV: {error}.")
            return wrong, used, more

    def _has(self, place: int) -> bool:
        """Whether there is a line at this place ahead."""
        while len(self._ahead) <= place:
            line = next(self._lines, None)
            if line is None:
                return False
            self._ahead.append(line)
        return True


@dataclass(frozen=True, slots=True)
class Header:
    """The columns of a CSV file by place, and how many fields a line has. Columns without a name are left out."""

    columns: Mapping[int, str]
    width: int


def read_header(names: Sequence[str]) -> Header:
    """Read the first line of a CSV file. Raises `Invalid` if it names no columns, one twice, or too many."""
    named = {place: name.strip() for place, name in enumerate(names) if name.strip()}
    if not named:
        raise Invalid("The CSV file has no header with the names of its columns.", field="file")
    if len(named) > MAX_COLUMNS:
        raise Invalid(f"The header has {len(named):,} columns; at most {MAX_COLUMNS} are read.", field="file")
    if not all(is_utf8(name) for name in named.values()):
        raise Invalid("The header is not UTF-8: save the file as UTF-8.", field="file")
    seen: set[str] = set()
    for name in named.values():
        if name in seen:
            raise Invalid(f"The header has the column '{name[:60]}' twice.", field="file")
        check_column(name)
        seen.add(name)
    return Header(named, max(named) + 1)


def check_column(name: str) -> None:
    """Raise `Invalid` for the name of a column that is far too long."""
    if len(name) > MAX_COLUMN_NAME:
        raise Invalid(too_long(name), field="file")


def too_long(name: str) -> str:
    """What to say of the name of a column that is too long."""
    return f"The name of the column '{name[:60]}…' has over {MAX_COLUMN_NAME} characters."


def csv_body_rows(records: CsvRecords, header: Header) -> Iterator[TableRow]:
    """The rows below a header; `number` is the line where a row begins."""
    records.width = header.width
    for number, fields in records:
        if isinstance(fields, Invalid):
            yield TableRow(number, fields)
            continue
        if not any(fields):
            continue
        if len(fields) < header.width or any(fields[header.width :]):
            yield TableRow(number, Invalid(f"The line has {len(fields)} fields, the header has {header.width}."))
        elif not is_utf8("".join(fields)):
            yield TableRow(number, Invalid("The line is not UTF-8: save the file as UTF-8."))
        else:
            yield TableRow(number, {name: fields[place] for place, name in header.columns.items()})


def is_utf8(text: str) -> bool:
    """Whether a text decoded with `surrogateescape` was valid UTF-8."""
    return text.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in text)


# Documents


def json_rows(open_table: OpenTable) -> Generator[TableRow, None, None]:
    """The rows of a JSON document: a list of rows, named rows, or a list of values per column."""
    with open_table() as source:
        data = source.read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        raise Invalid(f"A .json file may have {MAX_DOCUMENT >> 20} MB at most: use .jsonl for more.", field="file")
    check_encoding(data[:4])
    document = parse_document(data)
    if document is None:  # NDJSON after all
        yield from ndjson_rows(open_table)
        return
    del data  # as large as the document made from it
    for number, values in enumerate(document_rows(document), 1):
        fine = isinstance(values, dict)
        yield TableRow(number, values if fine else Invalid("The row is not a JSON object."))


def parse_document(data: bytes) -> Any:
    """Parse a JSON document; None if it is NDJSON. NaN, which pandas writes for missing values, becomes null."""
    try:
        return orjson.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        first, _, rest = data.lstrip().partition(b"\n")
        if rest.strip() and isinstance(parse_object(first), dict):
            return None
        try:
            return parse_with_nan(data)
        except UnicodeDecodeError as wrong:
            raise Invalid("The file is not UTF-8: save it as UTF-8.", field="file") from wrong
        except (ValueError, RecursionError):
            reason = f"The file is not valid JSON: {error.msg} (line {error.lineno})."
            raise Invalid(reason, field="file") from error


def document_rows(document: Any) -> Iterator[Any]:
    """The rows of a parsed document."""
    if isinstance(document, list):
        yield from document
        return
    if not isinstance(document, dict) or not document:
        raise Invalid("The JSON file contains no list of rows.", field="file")
    values = list(document.values())
    if all(isinstance(value, list) for value in values):
        yield from column_rows(document)
    elif all(isinstance(value, dict) for value in values):
        keys = [tuple(value) for value in values]
        by_column = len(values) > 1 and "question" in document
        if by_column:  # as pandas writes a data frame: by column, then by row
            if len({len(one) for one in keys}) != 1:
                raise Invalid("The columns of the JSON file have different lengths.", field="file")
            for key in keys[0]:
                yield {column: rows.get(key) for column, rows in document.items()}
        else:
            for key, row in document.items():
                yield {KEY_COLUMN: key, **row}
    else:
        raise Invalid("The JSON file contains neither a list of rows, nor named rows, nor columns.", field="file")


def column_rows(document: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """The rows of a document with a list of values per column."""
    lengths = {len(values) for values in document.values()}
    if len(lengths) != 1:
        raise Invalid("The columns of the JSON file have different lengths.", field="file")
    for row in zip(*document.values(), strict=True):
        yield dict(zip(document, row, strict=True))


# Parquet


def parquet_rows(table: Table, after: int, columns: Sequence[str] | None) -> Generator[TableRow | None, None, None]:
    """The rows of a Parquet file, a few at a time. Row groups before `after` are skipped.

    Of a row group that breaks off, the rows that are left are rejected, and the groups behind it are read.
    """
    import pyarrow as arrow
    from pyarrow import parquet

    if table.path is None:
        raise Invalid("A Parquet file cannot be inside a zip: import it as it is.", field="file")
    try:
        with parquet.ParquetFile(table.path) as file:
            groups, number = choose_groups(file.metadata, after)
            wanted = columns_to_read(file, columns)
            size = PARQUET_ROWS if columns is None else SKIPPED_ROWS
            for group in groups:
                end = number + file.metadata.row_group(group).num_rows
                try:
                    batches = file.iter_batches(batch_size=size, row_groups=[group], columns=wanted, use_threads=False)
                    for batch in batches:
                        yield None
                        for values in batch_rows(batch):
                            number += 1
                            if number > after:
                                yield TableRow(number, values)
                except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
                    lost = Invalid(f"Rows {number + 1:,} to {end:,} of the Parquet file cannot be read: {why(error)}.")
                    for number in range(number + 1, end + 1):  # noqa: B020 - goes on from where it was
                        yield TableRow(number, lost) if number > after else None
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Invalid(f"The Parquet file cannot be read: {why(error)}.", field="file") from error


def why(error: Exception) -> str:
    """What a reader of Parquet says is wrong."""
    return str(error).splitlines()[0][:200] if str(error) else "it is broken"


def batch_rows(batch: Any) -> list[dict[str, Any] | Invalid]:
    """The rows of a batch; a value that Python cannot express, such as a time of the year 12000, rejects its row."""
    try:
        rows: list[dict[str, Any] | Invalid] = batch.to_pylist()
    except (ValueError, OverflowError):
        return [row_values(batch.slice(at, 1)) for at in range(batch.num_rows)]
    return rows


def row_values(row: Any) -> dict[str, Any] | Invalid:
    """The values of a batch of one row by column, or which column cannot be expressed."""
    values = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            values[name] = column[0].as_py()
        except (ValueError, OverflowError):
            return Invalid(f"{name[:60]}: the value of type {column.type} is out of range.", field=name[:200])
    return values


def choose_groups(metadata: Any, after: int) -> tuple[list[int], int]:
    """The row groups with rows after the first `after`, and the number of rows before them. Raises `Invalid`.

    What a footer says about rows and bytes is not believed: it only refuses a file early.
    """
    if metadata.num_rows > MAX_ROWS:
        raise Invalid(f"The Parquet file says that it has {metadata.num_rows:,} rows: {TOO_MANY_ROWS}", field="file")
    groups: list[int] = []
    before = 0
    for group in range(metadata.num_row_groups):
        about = metadata.row_group(group)
        if about.total_byte_size > MAX_ROW_GROUP:
            raise Invalid("A row group of the Parquet file is over 2 GB: write smaller ones.", field="file")
        if not groups and before + about.num_rows <= after:
            before += about.num_rows
        else:
            groups.append(group)
    return groups, before


def columns_to_read(file: Any, columns: Sequence[str] | None) -> list[str] | None:
    """The columns to read of a Parquet file: to count its rows takes the smallest. Raises `Invalid` for too many."""
    names = list(file.schema_arrow.names)
    if len(names) > MAX_COLUMNS:
        raise Invalid(f"The Parquet file has {len(names):,} columns; at most {MAX_COLUMNS} are read.", field="file")
    for name in names:
        check_column(name)
    if columns is None or columns or not file.metadata.num_row_groups:
        return None if columns is None else list(columns)
    group = file.metadata.row_group(0)
    sizes = dict.fromkeys(names, 0)
    for place in range(group.num_columns):
        part = group.column(place)
        top = part.path_in_schema.partition(".")[0]
        if top in sizes:
            sizes[top] += part.total_compressed_size
    return sorted(sizes, key=lambda name: sizes[name])[:1]


def is_missing(value: Any) -> bool:
    """Whether a value means that there is none."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def measure_depth(value: Any) -> int:
    """How deeply a value is nested, measured without recursion and no further than `MAX_DEPTH`."""
    depth, level = 0, [value]
    while depth <= MAX_DEPTH and (level := [one for one in level if isinstance(one, dict | list)]):
        depth += 1
        level = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
    return depth
