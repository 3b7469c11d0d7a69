"""The values of a table's cells: the same ones mean the same in every kind of file.

Null, NaN and empty texts are absent. Numbers are taken as text where a text is wanted. A cell of CSV can hold a list or
an object, as JSON or as Python writes it; it stays text otherwise.
"""

from __future__ import annotations

import ast
import math
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import orjson

from app.errors import Invalid
from app.services.imports.tables.rows import is_missing
from illume.phrases import _

MAX_JSON_CELL = 1024 * 1024
MAX_PYTHON_CELL = 20_000
MISSING_WORDS = ("NaN", "nan", "null")
IMAGE_PARTS = {"bytes", "path"}
"""The fields of an image in Parquet; without both there is none."""
SEPARATORS = "\x1c\x1d\x1e\x1f"
"""What Python takes for white space, and Unicode does not."""


def is_absent(value: Any, *, flat: bool) -> bool:
    """Whether a value means that there is none; `flat`: in a table of texts, where words stand for it too."""
    if isinstance(value, dict):
        return value.keys() <= IMAGE_PARTS and all(is_missing(part) for part in value.values()) and bool(value)
    if not isinstance(value, str):
        return is_missing(value)
    empty = not value or (value.isspace() and not any(letter in value for letter in SEPARATORS))
    return empty or (flat and value in MISSING_WORDS)


def parse_cell(value: Any) -> Any:
    """The list or object that a cell of CSV holds, or else its text."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] + text[-1:] not in ("[]", "{}") or len(text) > MAX_JSON_CELL:
        return value
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return parse_python(text) if len(text) <= MAX_PYTHON_CELL else value


def parse_python(text: str) -> Any:
    """The list or object that Python writes as `text`, as pandas does into CSV; else the text itself."""
    try:
        found = ast.literal_eval(text)
        return found if repr(found) == text else text  # ['a' 'b'] of NumPy would be read as one word
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text


def to_list(value: Any, *, flat: bool) -> list[Any]:
    """A value as a list of texts and other things, without what is absent."""
    several = value if isinstance(value, list | tuple) else [value]
    return [to_text(one, flat=flat) for one in several if not is_absent(one, flat=flat)]


def to_text(value: Any, *, flat: bool) -> Any:
    """A number or time as text, whole numbers without a fraction; everything else as it is.

    In a `flat` table `7.0` is a whole number in a column that pandas made one of fractions, for want of some values.
    """
    if flat and isinstance(value, str) and value.endswith(".0") and len(value) < 18:
        whole = value.removesuffix(".0")
        return whole if whole.removeprefix("-").isdecimal() and whole.isascii() else value
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        value = int(value)
    return format(value, "f") if isinstance(value, Decimal) else str(value) if isinstance(value, int | float) else value


def to_json_value(value: Any, column: str) -> Any:
    """Convert a value of a table to JSON. Raises `Invalid` for bytes.

    Fields of objects that are null are left out: Parquet gives every row the fields of all rows.
    """
    if isinstance(value, dict):
        return {str(key): to_json_value(part, column) for key, part in value.items() if not is_missing(part)}
    if isinstance(value, list | tuple):
        return [to_json_value(part, column) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes | bytearray):
        raise Invalid(
            _("%(column)s: bytes cannot be stored as metadata: leave the column out.", column=column[:60]),
            field=column[:200],
        )
    return value
