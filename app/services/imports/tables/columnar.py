"""Tables in Parquet files. Runs where `app/services/imports/opened.py` does."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from app.errors import Invalid
from app.services.imports.tables.rows import (
    MAX_COLUMNS,
    MAX_ROWS,
    SKIPPED_ROWS,
    TOO_MANY_ROWS,
    TableRow,
    check_column,
)
from illume.phrases import Number, _

MAX_ROW_GROUP = 2 * 1024 * 1024 * 1024
PARQUET_ROWS = 16


def parquet_rows(
    path: Path | None, after: int, columns: Sequence[str] | None
) -> Generator[TableRow | None, None, None]:
    """The rows of a Parquet file, a few at a time. Row groups before `after` are skipped.

    Of a row group that breaks off, the rows that are left are rejected, and the groups behind it are read.
    """
    import pyarrow as arrow
    from pyarrow import parquet

    if path is None:
        raise Invalid(_("A Parquet file cannot be inside a zip: import it as it is."), field="file")
    try:
        with parquet.ParquetFile(path) as file:
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
                    lost = Invalid(
                        _(
                            "Rows %(value)s to %(end)s of the Parquet file cannot be read: %(error)s.",
                            value=Number(number + 1),
                            end=Number(end),
                            error=why(error),
                        )
                    )
                    for number in range(number + 1, end + 1):  # noqa: B020 - goes on from where it was
                        yield TableRow(number, lost) if number > after else None
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Invalid(_("The Parquet file cannot be read: %(error)s.", error=why(error)), field="file") from error


def why(error: Exception) -> str:
    """What a reader of Parquet says is wrong."""
    return str(error).splitlines()[0][:200] if str(error) else _("it is broken")


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
            return Invalid(
                _("%(name)s: the value of type %(type)s is out of range.", name=name[:60], type=column.type),
                field=name[:200],
            )
    return values


def choose_groups(metadata: Any, after: int) -> tuple[list[int], int]:
    """The row groups with rows after the first `after`, and the number of rows before them. Raises `Invalid`.

    What a footer says about rows and bytes is not believed: it only refuses a file early.
    """
    if metadata.num_rows > MAX_ROWS:
        raise Invalid(
            _(
                "The Parquet file says that it has %(num_rows)s rows: %(too_many_rows)s",
                num_rows=Number(metadata.num_rows),
                too_many_rows=TOO_MANY_ROWS,
            ),
            field="file",
        )
    groups: list[int] = []
    before = 0
    for group in range(metadata.num_row_groups):
        about = metadata.row_group(group)
        if about.total_byte_size > MAX_ROW_GROUP:
            raise Invalid(_("A row group of the Parquet file is over 2 GB: write smaller ones."), field="file")
        if not groups and before + about.num_rows <= after:
            before += about.num_rows
        else:
            groups.append(group)
    return groups, before


def columns_to_read(file: Any, columns: Sequence[str] | None) -> list[str] | None:
    """The columns to read of a Parquet file: to count its rows takes the smallest. Raises `Invalid` for too many."""
    names = list(file.schema_arrow.names)
    if len(names) > MAX_COLUMNS:
        raise Invalid(
            _(
                "The Parquet file has %(count)s columns; at most %(max_columns)s are read.",
                count=Number(len(names)),
                max_columns=MAX_COLUMNS,
            ),
            field="file",
        )
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
