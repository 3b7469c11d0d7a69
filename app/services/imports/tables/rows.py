"""The rows of a table, and what is allowed in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Any

from app.errors import Invalid
from app.services.kernel.text_rules import MAX_DEPTH, text_problem
from illume.phrases import Number, _

MAX_LINE = 4 * 1024 * 1024
MAX_ROWS = 20_000_000
MAX_COLUMNS = 500
MAX_COLUMN_NAME = 200
SKIPPED_ROWS = 1000
TOO_MANY_ROWS = _("at most %(most)s are imported at once.", most=Number(MAX_ROWS))

OpenTable = Callable[[], AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row: its line, or its position in a format without lines, and its values by column or what is wrong."""

    number: int
    values: dict[str, Any] | Invalid


def check_column(name: str) -> None:
    """Raise `Invalid` for the name of a column that is far too long or cannot be stored."""
    problem = column_problem(name)
    if problem:
        raise Invalid(problem, field="file")


def column_problem(name: str) -> str:
    """What is wrong with the name of a column; empty where nothing is."""
    if len(name) > MAX_COLUMN_NAME:
        return _(
            "The name of the column '%(name)s' has over %(most)s characters.",
            name=f"{name[:60]}…",
            most=MAX_COLUMN_NAME,
        )
    reason = text_problem(name)
    if not reason:
        return ""
    return _("The name of the column '%(name)s' %(reason)s.", name=name[:60].replace("\0", "?"), reason=reason)


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
