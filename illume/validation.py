"""Plain data, as JSON gives it, read as one of the library's dataclasses. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    return f"{where} {describe_problem(error)}, not {error['input']!r}"


KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "bytes": "text"}
KINDS |= dict.fromkeys(("list", "tuple", "set"), "a list") | dict.fromkeys(("dict", "model", "dataclass"), "an object")
BOUNDS = {
    "less_than_equal": ("at most", "le"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "greater_than": ("more than", "gt"),
}
LENGTHS = {
    "string_too_short": ("at least", "min_length", "character"),
    "string_too_long": ("at most", "max_length", "character"),
    "too_short": ("at least", "min_length", "item"),
    "too_long": ("at most", "max_length", "item"),
}
SENTENCES = {
    "missing": "is missing",
    "extra_forbidden": "is not a known field",
    "timezone_aware": "must have a time zone",
}


def describe_problem(error: Mapping[str, Any]) -> str:
    """What is wrong with a value, of an error of pydantic: it follows the name of the field, without a full stop."""
    kind, context = str(error["type"]), error.get("ctx", {})
    if kind in BOUNDS:
        words, name = BOUNDS[kind]
        bound = context[name]
        return f"must be {words} {f'{bound:g}' if isinstance(bound, float) else bound}"
    if kind in LENGTHS:
        words, length, unit = LENGTHS[kind]
        return f"must have {words} {context[length]} {unit}{'' if context[length] == 1 else 's'}"
    if kind in ("literal_error", "enum"):
        return f"must be {context['expected']}"
    if kind.startswith("datetime"):
        return "must be a time in ISO 8601, such as 2026-01-31T12:00:00Z"
    if kind in SENTENCES:
        return SENTENCES[kind]
    value, _, ending = kind.partition("_")
    if value in KINDS and ending in ("type", "parsing", "from_float", "attributes_type"):
        return f"must be {KINDS[value]}"
    said = str(error["msg"]).removeprefix("Value error, ")
    what, should, rest = said.partition(" should ")
    return f"must {rest}" if should and what.isalpha() else said
