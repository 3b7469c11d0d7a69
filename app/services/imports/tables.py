"""Tables in files, read row by row: NDJSON, CSV, JSON documents, Parquet."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import IO, Any

import orjson

from app.errors import Invalid

MAX_LINE = 4 * 1024 * 1024
MAX_DOCUMENT = 256 * 1024 * 1024
MAX_ROW_GROUP = 2 * 1024 * 1024 * 1024
MAX_COLUMNS = 500
PARQUET_ROWS = 16
KEY_COLUMN = "key"
"""In a JSON document of named rows, the column that holds each row's name."""

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

    def rows(self, after: int = 0, *, columns: Sequence[str] | None = None) -> Generator[TableRow, None, None]:
        """Yield the rows after the first `after`, with at least the columns `columns`.

        Raises `Invalid` if the file as a whole cannot be read.
        """
        if self.kind is TableKind.parquet:
            yield from parquet_rows(self, after, columns)
            return
        reading = {TableKind.ndjson: ndjson_rows, TableKind.csv: csv_rows, TableKind.json: json_rows}[self.kind]
        with closing(reading(self.open)) as rows:
            yield from islice(rows, after, None)

    def first(self, count: int) -> list[TableRow]:
        """The first rows. The file is closed at once. Raises as `rows`."""
        with closing(self.rows()) as rows:
            return list(islice(rows, count))


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
    """Parse a JSON object, or return what is wrong with it."""
    try:
        item = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode()
        except UnicodeDecodeError as wrong:
            return Invalid(f"The line is not UTF-8 (byte {wrong.start + 1}): save the file as UTF-8.")
        return Invalid(f"The line is not valid JSON: {error.msg} (character {error.pos + 1}).")
    return item if isinstance(item, dict) else Invalid("The line is not a JSON object.")


def csv_rows(open_table: OpenTable) -> Generator[TableRow, None, None]:
    """The rows of a CSV file with a header; fields are separated by commas, semicolons or tabs."""
    with open_table() as source:
        lines = (line.decode("utf-8", "surrogateescape") for line, _ in read_lines(source))
        header_line = next(lines, "")
        if len(header_line) > csv.field_size_limit():
            raise Invalid("The first line is far too long for the header of a CSV file.", field="file")
        delimiter = max(",;\t", key=header_line.count)
        reader = csv.reader(chain([header_line], lines), delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
        except csv.Error as error:
            raise Invalid(f"The header of the CSV file cannot be read: {error}.", field="file") from error
        check_header(header)
        yield from csv_body_rows(reader, header)


def check_header(header: Sequence[str]) -> None:
    """Raise `Invalid` for a header that names no columns, or one twice."""
    if not any(header):
        raise Invalid("The CSV file has no header with the names of its columns.", field="file")
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise Invalid(f"The header has the column '{twice[:60]}' twice.", field="file")
    if len(header) > MAX_COLUMNS or not is_utf8("".join(header)):
        raise Invalid("The header is not UTF-8, or has too many columns: save the file as UTF-8.", field="file")


def csv_body_rows(reader: Any, header: Sequence[str]) -> Iterator[TableRow]:
    """The rows below a header; `number` is the line where a row begins."""
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield TableRow(number, Invalid(f"The line is not valid CSV: {error}."))
            continue
        if not any(fields):
            continue
        if len(fields) != len(header):
            yield TableRow(number, Invalid(f"The line has {len(fields)} fields, the header has {len(header)}."))
        elif not is_utf8("".join(fields)):
            yield TableRow(number, Invalid("The line is not UTF-8: save the file as UTF-8."))
        else:
            yield TableRow(number, dict(zip(header, fields, strict=True)))


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
            return json.loads(data.decode("utf-8-sig"), parse_constant=lambda _: None)
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


def parquet_rows(table: Table, after: int, columns: Sequence[str] | None) -> Generator[TableRow, None, None]:
    """The rows of a Parquet file, a few at a time. Row groups before `after` are skipped."""
    import pyarrow as arrow
    from pyarrow import parquet

    if table.path is None:
        raise Invalid("A Parquet file cannot be inside a zip: import it as it is.", field="file")
    try:
        with parquet.ParquetFile(table.path) as file:
            groups: list[int] = []
            skip = after
            for group in range(file.num_row_groups):
                about = file.metadata.row_group(group)
                if about.total_byte_size > MAX_ROW_GROUP:
                    raise Invalid("A row group of the Parquet file is over 2 GB: write smaller ones.", field="file")
                if not groups and skip >= about.num_rows:
                    skip -= about.num_rows
                else:
                    groups.append(group)
            number = after - skip
            if columns is not None and not columns:
                yield from (TableRow(one, {}) for one in range(after + 1, file.metadata.num_rows + 1))
                return
            wanted = None if columns is None else list(columns)
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, row_groups=groups, columns=wanted):
                for values in batch_rows(batch):
                    number += 1
                    if number > after:
                        yield TableRow(number, values)
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else "it is broken"
        raise Invalid(f"The Parquet file cannot be read: {reason}.", field="file") from error


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


def is_missing(value: Any) -> bool:
    """Whether a value means that there is none."""
    return value is None or (isinstance(value, float) and math.isnan(value))
