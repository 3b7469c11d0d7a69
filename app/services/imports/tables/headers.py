"""The header of a table of texts, and the rows below it: the same for CSV and for a sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import Invalid
from app.services.imports.tables.rows import MAX_COLUMNS, check_column
from illume.phrases import Number, _


@dataclass(frozen=True, slots=True)
class Header:
    """The columns by place, and how many fields a row has. Columns without a name are left out."""

    columns: Mapping[int, str]
    width: int


def read_header(names: Sequence[str], nameless: str) -> Header:
    """Read the header of a table. Raises `Invalid`: `nameless` if it names no columns, or if one twice, or too many."""
    named = {place: name.strip() for place, name in enumerate(names) if name.strip()}
    if not named:
        raise Invalid(nameless, field="file")
    if len(named) > MAX_COLUMNS:
        raise Invalid(
            _(
                "The header has %(count)s columns; at most %(max_columns)s are read.",
                count=Number(len(named)),
                max_columns=MAX_COLUMNS,
            ),
            field="file",
        )
    seen: set[str] = set()
    for name in named.values():
        if name in seen:
            raise Invalid(_("The header has the column '%(name)s' twice.", name=name[:60]), field="file")
        check_column(name)
        seen.add(name)
    return Header(named, max(named) + 1)


def is_too_long(fields: Sequence[Any], header: Header) -> bool:
    """Whether a row has values to the right of the header's last column."""
    return len(fields) > header.width and any(one not in (None, "") for one in fields[header.width :])


def row_values(fields: Sequence[Any], header: Header) -> dict[str, Any]:
    """The values of a row by column; None where the row is shorter than the header."""
    return {name: fields[place] if place < len(fields) else None for place, name in header.columns.items()}
