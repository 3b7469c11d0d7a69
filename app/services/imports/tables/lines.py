"""Tables of JSON: a line a row, or one document."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from typing import IO, Any

import orjson

from app.errors import Invalid
from app.services.imports.tables.encodings import UTF_8, text_lines, to_utf8
from app.services.imports.tables.rows import MAX_LINE, OpenTable, TableRow
from illume.phrases import _

MAX_DOCUMENT = 256 * 1024 * 1024
KEY_COLUMN = "key"
"""In a JSON document of named rows, the column that holds each row's name."""


def read_lines(source: IO[bytes], encoding: str) -> Iterator[tuple[bytes, bool]]:
    """Yield the lines in UTF-8, each with whether it was truncated at 4 MB; a byte-order mark is dropped."""
    if encoding != UTF_8:
        for text, cut in text_lines(source, encoding):
            yield text.encode(errors="surrogateescape"), cut
        return
    first = True
    while line := source.readline(MAX_LINE):
        if first:
            line, first = line.removeprefix(b"\xef\xbb\xbf"), False
        rest = line
        cut = False
        while not rest.endswith(b"\n") and (rest := source.readline(MAX_LINE)):
            cut = True
        yield line, cut


def ndjson_rows(open_table: OpenTable, encoding: str = UTF_8) -> Generator[TableRow, None, None]:
    """The rows of a file with one JSON object per line; empty lines are skipped."""
    with open_table() as source:
        for number, (line, cut) in enumerate(read_lines(source, encoding), 1):
            if cut:
                yield TableRow(number, Invalid(_("The line is over %(value)s MB.", value=MAX_LINE >> 20)))
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
            return Invalid(_("The line is not UTF-8 (byte %(value)s): save the file as UTF-8.", value=wrong.start + 1))
        except (ValueError, RecursionError):
            return Invalid(
                _("The line is not valid JSON: %(msg)s (character %(value)s).", msg=error.msg, value=error.pos + 1)
            )
    return item if isinstance(item, dict) else Invalid(_("The line is not a JSON object."))


def parse_with_nan(data: bytes) -> Any:
    """Parse JSON with NaN and infinities, which Python and pandas write; they become null.

    Raises UnicodeDecodeError, ValueError, RecursionError.
    """
    return json.loads(data.decode("utf-8-sig"), parse_constant=lambda _: None)


def json_rows(open_table: OpenTable, encoding: str = UTF_8) -> Generator[TableRow, None, None]:
    """The rows of a JSON document: a list of rows, named rows, or a list of values per column."""
    with open_table() as source:
        data = source.read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        raise Invalid(
            _("A .json file may be at most %(value)s MB: use .jsonl for more.", value=MAX_DOCUMENT >> 20), field="file"
        )
    if encoding != UTF_8:
        data = to_utf8(data, encoding)
    document = parse_document(data)
    if document is None:  # NDJSON after all
        yield from ndjson_rows(open_table, encoding)
        return
    del data  # as large as the document made from it
    for number, values in enumerate(document_rows(document), 1):
        fine = isinstance(values, dict)
        yield TableRow(number, values if fine else Invalid(_("The row is not a JSON object.")))


def parse_document(data: bytes) -> Any:
    """Parse a JSON document; None if it is NDJSON. NaN, which pandas writes for missing values, becomes null."""
    try:
        return orjson.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        first, _break, rest = data.lstrip().partition(b"\n")
        if rest.strip() and isinstance(parse_object(first), dict):
            return None
        try:
            return parse_with_nan(data)
        except UnicodeDecodeError as wrong:
            raise Invalid(_("The file is not UTF-8: save it as UTF-8."), field="file") from wrong
        except (ValueError, RecursionError):
            reason = _("The file is not valid JSON: %(problem)s (line %(line)s).", problem=error.msg, line=error.lineno)
            raise Invalid(reason, field="file") from error


def document_rows(document: Any) -> Iterator[Any]:
    """The rows of a parsed document."""
    if isinstance(document, list):
        yield from document
        return
    if not isinstance(document, dict) or not document:
        raise Invalid(_("The JSON file contains no list of rows."), field="file")
    values = list(document.values())
    if all(isinstance(value, list) for value in values):
        yield from column_rows(document)
    elif all(isinstance(value, dict) for value in values):
        keys = [tuple(value) for value in values]
        by_column = len(values) > 1 and "question" in document
        if by_column:  # as pandas writes a data frame: by column, then by row
            if len({len(one) for one in keys}) != 1:
                raise Invalid(_("The columns of the JSON file have different lengths."), field="file")
            for key in keys[0]:
                yield {column: rows.get(key) for column, rows in document.items()}
        else:
            for key, row in document.items():
                yield {KEY_COLUMN: key, **row}
    else:
        raise Invalid(_("The JSON file contains neither a list of rows, nor named rows, nor columns."), field="file")


def column_rows(document: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """The rows of a document with a list of values per column."""
    lengths = {len(values) for values in document.values()}
    if len(lengths) != 1:
        raise Invalid(_("The columns of the JSON file have different lengths."), field="file")
    for row in zip(*document.values(), strict=True):
        yield dict(zip(document, row, strict=True))
