"""Recognising a table of another tool, and reading it as records. Runs in the child process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from typing import Any

from app.errors import Invalid
from app.services.imports.elsewhere import argilla, label_studio, potato
from app.services.imports.elsewhere.tasks import Origin, Task, rows_of
from app.services.imports.tables.rows import TableRow
from illume.phrases import _

HEAD = 64 * 1024
WORDS = (b'"annotations"', b'"data"', b'"fields"')
NAMES = {Origin.label_studio: "Label Studio", Origin.argilla: "Argilla", Origin.potato: "Potato"}


def could_be_foreign(head: bytes) -> bool:
    """Whether the beginning of a file has a word of such tables: whole documents are not parsed in vain."""
    plain = head.replace(b"\x00", b"")
    return any(word in plain for word in WORDS)


def find_origin(values: Mapping[str, Any]) -> Origin | None:
    """The tool that exported a row, by its shape."""
    if label_studio.is_label_studio(values):
        return Origin.label_studio
    return Origin.argilla if argilla.is_argilla(values) else None


def read_task(origin: Origin, row: TableRow, values: Mapping[str, Any], labels: list[str]) -> Task | None:
    """A row as a task; None where it is none of this tool."""
    if origin is Origin.potato:
        return potato.read(values, row.number)
    if find_origin(values) is not origin:
        return None
    if origin is Origin.label_studio:
        return label_studio.read(values, labels, row.number)
    return argilla.read(values, row.number)


def record_rows(
    origin: Origin, read_rows: Callable[[], Generator[TableRow | None, None, None]]
) -> Generator[TableRow | None, None, None]:
    """The rows of a table of another tool as rows of records, with the numbers of their tasks."""
    labels: list[str] = []
    if origin is Origin.label_studio:
        with closing(read_rows()) as rows:
            labels = label_studio.collect_labels(
                row.values for row in rows if row is not None and isinstance(row.values, dict)
            )
    with closing(read_rows()) as rows:
        for row in rows:
            if row is None or not isinstance(row.values, dict):
                yield row
                continue
            task = read_task(origin, row, row.values, labels)
            if task is None:
                reason = _("This is no record or task of %(tool)s, as the first one is.", tool=NAMES[origin])
                yield TableRow(row.number, Invalid(reason))
            else:
                yield from rows_of(task, row.number, origin)
