"""Plain data, as JSON gives it, read as one of the library's dataclasses. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from illume.phrases import Phrase, _, ngettext, said_by

Record = TypeVar("Record")


class FieldError(ValueError):
    """A value that cannot be used: `place` names its field, and `problem` says what is wrong, without a full stop.

    As a text it is both, with `sign` between them.
    """

    def __init__(self, place: str, problem: str, *, sign: str = ": ") -> None:
        super().__init__(f"{place}{sign}{problem}")
        self.place, self.problem, self.sign = place, problem, sign

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes."""
        return partial(FieldError, sign=self.sign), (self.place, self.problem)


def place_of(field: str, error: ValueError) -> tuple[str, str]:
    """The place within `field` that an error is about, and what is wrong there: the phrase that it was raised with.

    An empty `field` contains all places.
    """
    if isinstance(error, FieldError) and f"{error.place}.".startswith(f"{field}." if field else ""):
        return error.place, error.problem
    return split_place(field, said_by(error))


def read_record(kind: type[Record], data: Any, *, name: str) -> Record:
    """`data` as a `kind`. Raises ValueError with a sentence about the first field that cannot be used.

    `name` is what the sentence calls the data. Nothing is converted: a text is not taken for a number.
    """
    try:
        # As JSON, since an object or a list of Python is no dataclass or tuple in strict mode.
        # mypy takes classes for unhashable where they are a type variable's.
        found: Record = _adapter(kind).validate_json(json.dumps(data), strict=True)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ValueError(_sentence(error.errors(include_url=False)[0], name)) from error
    return found


@cache
def _adapter(kind: type[Record]) -> TypeAdapter[Record]:
    """What reads records of a kind. Making one takes longer than reading with it."""
    return TypeAdapter(kind)


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


_KINDS = {
    "int": _("must be a whole number"),
    "float": _("must be a number"),
    "bool": _("must be true or false"),
    **dict.fromkeys(("string", "bytes"), _("must be text")),
    **dict.fromkeys(("list", "tuple", "set"), _("must be a list")),
    **dict.fromkeys(("dict", "model", "dataclass"), _("must be an object")),
}
_SENTENCES = {
    "missing": _("is missing"),
    "extra_forbidden": _("is not a known field"),
    "timezone_aware": _("must have a time zone"),
    "finite_number": _("must be a finite number"),
}


def split_place(field: str, said: str) -> tuple[str, str]:
    """A place within `field` that a sentence about it begins with, and the rest; else the field and the sentence."""
    found = re.match(rf"{re.escape(field)}(?:\.\w+)*(?=[: ])", said)
    return (field, said) if found is None else (found[0], said[found.end() :].lstrip(": "))


def describe_problem(error: Mapping[str, Any]) -> str:
    """What is wrong with a value, of an error of pydantic: it follows the name of the field, without a full stop.

    A phrase, unless only pydantic knows the words.
    """
    kind, context = str(error["type"]), error.get("ctx", {})
    if (known := _describe_limit(kind, context)) is not None:
        return known
    if kind in ("literal_error", "enum"):
        return _("must be %(expected)s", expected=context["expected"])
    if kind.startswith("datetime"):
        return _("must be a time in ISO 8601, such as 2026-01-31T12:00:00Z")
    if kind in _SENTENCES:
        return _SENTENCES[kind]
    value, _sign, ending = kind.partition("_")
    if value in _KINDS and ending in ("type", "parsing", "from_float", "attributes_type"):
        return _KINDS[value]
    if isinstance(context.get("error"), ValueError):
        return said_by(context["error"])
    said = str(error["msg"]).removeprefix("Value error, ")
    what, should, rest = said.partition(" should ")
    return f"must {rest}" if should and what.isalpha() else said


def _describe_limit(kind: str, context: Mapping[str, Any]) -> str | None:
    """Which bound a number or a length goes beyond; None for another kind of error."""
    match kind:
        case "less_than_equal":
            return _("must be at most %(bound)s", bound=_bound(context["le"]))
        case "greater_than_equal":
            return _("must be at least %(bound)s", bound=_bound(context["ge"]))
        case "less_than":
            return _("must be less than %(bound)s", bound=_bound(context["lt"]))
        case "greater_than":
            return _("must be more than %(bound)s", bound=_bound(context["gt"]))
        case "string_too_short":
            n = context["min_length"]
            return ngettext("must have at least %(num)s character", "must have at least %(num)s characters", n)
        case "string_too_long":
            n = context["max_length"]
            return ngettext("must have at most %(num)s character", "must have at most %(num)s characters", n)
        case "too_short":
            n = context["min_length"]
            return ngettext("must have at least %(num)s item", "must have at least %(num)s items", n)
        case "too_long":
            n = context["max_length"]
            return ngettext("must have at most %(num)s item", "must have at most %(num)s items", n)
    return None


def _bound(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def name_problem(field: str, problem: str) -> Phrase:
    """A sentence of the name of a field and what `describe_problem` says of it."""
    return _("%(field)s: %(problem)s.", field=field, problem=problem)
