"""What the child process does with an imported file: open it, read its rows, find and decode its pictures.

`app/services/imports/files.py` asks for it. The imports are few, because every child makes them.
"""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath

from app.errors import Invalid
from app.services.imports.archives import Archive, check_workbook
from app.services.imports.elsewhere.potato import is_judgement
from app.services.imports.names import coco_names, escapes_folder
from app.services.imports.tables.lines import ndjson_rows
from app.services.imports.tables.rows import (
    MAX_COLUMNS,
    MAX_ROWS,
    TOO_MANY_ROWS,
    OpenTable,
    TableRow,
    column_problem,
    measure_depth,
)
from app.services.imports.tables.table import Table, TableForm, TableKind, detect_kind, find_encoding
from app.services.kernel.text_rules import MAX_DEPTH
from app.services.prompts.decoding import MAX_BYTES, EncodedImage, decode
from illume.phrases import Number, _

CHUNK_ROWS = 64
CHUNK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """The files of an import on this machine: one of prompts, called `name`, and perhaps a zip of pictures.

    `encoding` is how a table of text is read; it is guessed where it is empty.
    """

    path: Path
    name: str
    images_path: Path | None = None
    encoding: str = ""


class OpenedFile:
    """A table, and the archives where its pictures may be."""

    def __init__(self, source: Source) -> None:
        """Raises `Invalid` if the file as a whole cannot be imported."""
        self.archives: list[Archive] = []
        self.folder: PurePosixPath | None = None
        self.encoding = source.encoding
        with source.path.open("rb") as file:
            first = file.read(64)
        if first.startswith(b"PK\x03\x04") or (
            source.name.lower().endswith(".zip") and zipfile.is_zipfile(source.path)
        ):
            archive = Archive(source.path)
            if archive.is_workbook:
                archive.zip.close()
                self.table = Table(TableKind.xlsx, lambda: source.path.open("rb"), source.path)
            else:
                self.archives.append(archive)
                self.table = self._table_in(archive)
        else:
            self.table = self._table(source.name, first, lambda: source.path.open("rb"), source.path)
        if source.images_path is not None:
            self.archives.append(Archive(source.images_path))

    def _table_in(self, archive: Archive) -> Table:
        found = archive.tables()
        judged = judgements_in(archive, found) if len(found) == 2 else None
        if judged is not None:
            found.remove(judged)
        if len(found) != 1:
            listed = f": {', '.join(found[:5])}" if found else ""
            raise Invalid(
                _(
                    "The zip must hold one table (.jsonl, .csv, .json or .xlsx); it holds %(count)s%(listed)s.",
                    count=len(found),
                    listed=listed,
                ),
                field="file",
            )
        self.folder = PurePosixPath(found[0]).parent
        with archive.open(found[0]) as file:
            first = file.read(64)
        table = self._table(found[0], first, lambda: archive.open(found[0]))
        return table if judged is None else replace(table, judgements=lambda: archive.open(judged))

    def _table(self, name: str, first: bytes, open_table: OpenTable, path: Path | None = None) -> Table:
        kind = detect_kind(name, first)
        if kind is TableKind.xlsx:
            check_workbook(open_table)
        guess = find_encoding(kind, open_table)
        return Table(kind, open_table, path, (self.encoding if guess else "") or guess, guess)

    def find(self, name: str) -> tuple[Archive, str] | None:
        """Find a picture in the archives. Raises `Invalid` if several have its name."""
        for archive in self.archives:
            beside = [str(self.folder / name)] if archive is self.archives[0] and self.folder is not None else []
            for one in dict.fromkeys([*beside, name, *coco_names(name)]):
                found = archive.find(one)
                if found is not None:
                    return archive, found
        return None


def judgements_in(archive: Archive, names: Sequence[str]) -> str | None:
    """The file among these tables that has the judgements of Potato on the items of another one."""
    for name in names:
        if name.lower().endswith((".jsonl", ".ndjson")):
            with closing(ndjson_rows(lambda name=name: archive.open(name))) as rows:  # type: ignore[misc]
                first = next(rows, None)
            if first is not None and isinstance(first.values, dict) and is_judgement(first.values):
                return name
    return None


def open_file(source: Source) -> OpenedFile:
    """Open a file, or return it as it was opened last. Raises `Invalid`."""
    paths = (source.path, *(() if source.images_path is None else (source.images_path,)))
    return _open_file(
        source, tuple((found.st_ino, found.st_size, found.st_mtime_ns) for found in map(Path.stat, paths))
    )


@functools.lru_cache(maxsize=1)
def _open_file(source: Source, _unchanged: tuple[tuple[int, int, int], ...]) -> OpenedFile:
    return OpenedFile(source)


def table_kind(source: Source) -> TableKind:
    """The kind of a file's table. Raises `Invalid` if the file as a whole cannot be imported."""
    return open_file(source).table.kind


def table_form(source: Source) -> TableForm:
    """How a file's table is read. Raises `Invalid` if the file as a whole cannot be imported."""
    return open_file(source).table.form()


def first_rows(source: Source, count: int) -> list[TableRow]:
    """The first rows of a file. Raises `Invalid`."""
    with closing(open_file(source).table.rows()) as rows:
        return [checked(row) for row in islice((row for row in rows if row is not None), count)]


def row_chunks(source: Source, after: int, columns: Sequence[str] | None) -> Generator[list[TableRow], None, None]:
    """The rows after the first `after`, some at a time; of these columns only, if they are given.

    Empty chunks come where nothing is there yet, so that each step is short. The rows before a place where the file
    breaks off are there before the error. Raises `Invalid`.
    """
    chunk: list[TableRow] = []
    size = 0
    count = after
    with closing(open_file(source).table.rows(after, columns=columns)) as rows:
        try:
            for found in rows:
                if found is not None:
                    count += 1
                    row = checked(found if columns is None else only(found, columns))
                    chunk.append(row)
                    size += size_of(row.values)
                if found is None or len(chunk) >= CHUNK_ROWS or size > CHUNK_BYTES:
                    yield chunk
                    chunk, size = [], 0
                if count > MAX_ROWS:
                    raise Invalid(
                        _("The file has too many rows: %(too_many_rows)s", too_many_rows=TOO_MANY_ROWS), field="file"
                    )
        except Exception:
            yield chunk
            raise
    yield chunk


def only(row: TableRow, columns: Sequence[str]) -> TableRow:
    """A row with these columns only."""
    values = row.values
    if isinstance(values, Invalid):
        return row
    return TableRow(row.number, {column: values[column] for column in columns if column in values})


def checked(row: TableRow) -> TableRow:
    """A row, or what is wrong with its columns."""
    if not isinstance(row.values, dict):
        return row
    if len(row.values) > MAX_COLUMNS:
        return TableRow(
            row.number,
            Invalid(
                _(
                    "The row has %(count)s columns; at most %(max_columns)s are read.",
                    count=Number(len(row.values)),
                    max_columns=MAX_COLUMNS,
                )
            ),
        )
    for column, value in row.values.items():
        if problem := column_problem(column):
            return TableRow(row.number, Invalid(problem))
        if measure_depth(value) > MAX_DEPTH:
            return TableRow(
                row.number, Invalid(_("%(column)s: it is nested too deeply.", column=column[:60]), field=column)
            )
    return row


def size_of(values: object) -> int:
    """About how many bytes the values of a row take."""
    if isinstance(values, str | bytes):
        return len(values)
    if isinstance(values, dict):
        return sum(size_of(value) for value in values.values() if isinstance(value, str | bytes | dict))
    return 0


def has_picture(source: Source, name: str) -> bool:
    """Whether the file holds a picture of this name. Raises `Invalid` if there are several."""
    return not escapes_folder(name) and open_file(source).find(name) is not None


def read_picture(source: Source, name: str, scale_down: bool = False) -> EncodedImage:
    """Find a picture by its name, and decode it. Raises `Invalid`, `TooLarge`, or what the decoder raises."""
    opened = open_file(source)
    if escapes_folder(name):
        raise Invalid(
            _("The path '%(name)s' points outside the file: name images by paths within it.", name=name[:100]),
            field="images",
        )
    if not opened.archives:
        raise Invalid(
            _(
                "There is no image '%(name)s'. Add a zip that holds it, or name an uploaded image by its sha256.",
                name=name[:100],
            ),
            field="images",
        )
    found = opened.find(name)
    if found is None:
        raise Invalid(_("There is no file '%(name)s' in the zip or folder.", name=name[:100]), field="images")
    archive, member = found
    with archive.open(member) as file:
        data = file.read(MAX_BYTES + 1)
    return decode(data, scale_down)
