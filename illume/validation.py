"""Plain data, as JSON gives it, read as one of the library's dataclasses. No torch."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

Record = TypeVar("Record")


def read_record(kind: type[Record], data: Any, *, name: str) -> Record:
    """`data` as a `kind`. Raises ValueError with a sentence about the first field that cannot be used.

    `name` is what the sentence calls the data. Nothing is converted: a text is not taken for a number.
    """
    try:
        # As JSON, since an object or a list of Python is no dataclass or tuple in strict mode.
        return TypeAdapter(kind).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise ValueError(_sentence(error.errors(include_url=False)[0], name)) from error


def _sentence(error: ErrorDetails, name: str) -> str:
    *parents, field = [name, *map(str, error["loc"])]
    parent, where = ".".join(parents), ".".join([*parents, field])
    match error["type"]:
        case "dataclass_type":
            return f"{where} must be an object"
        case "unexpected_keyword_argument":
            return f"{parent} has an unknown field: {field}"
        case "missing":
            return f"{parent} is incomplete: the field {field} is missing"
        case "value_error":
            return f"{where}: {error['ctx']['error']}"
    return f"{where} {error['msg'].removeprefix('Input ')}, not {error['input']!r}"
