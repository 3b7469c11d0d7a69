"""Rules for text, JSON and times that come from outside."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator

from app.errors import Invalid
from illume.phrases import _
from illume.validation import name_problem

MAX_JSON_BYTES = 256 * 1024
MAX_DEPTH = 32
"""How deeply JSON may be nested."""
SMALLEST_INTEGER, LARGEST_INTEGER = -(2**63), 2**63 - 1
EARLIEST = datetime(1, 1, 2, tzinfo=UTC)
LATEST = datetime(9999, 12, 30, tzinfo=UTC)
"""Times that can be given in every time zone, a day earlier or later too."""


def check_storable(value: Any) -> Any:
    """Return `value`, a text or JSON.

    Raises ValueError for NUL, lone surrogates, NaN and infinities, integers of over 64 bits, and deep nesting.
    """
    for _path, reason in find_unstorable(value):
        raise ValueError(reason)
    return value


def find_unstorable(value: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """The parts of `value` that cannot be stored: the path to each, and the reason. Deep parts are not looked into."""
    rest: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while rest:
        path, part = rest.pop()
        if isinstance(part, str):
            reason = text_problem(part)
        elif isinstance(part, dict | list | tuple):
            reason = _("is nested too deeply") if len(path) >= MAX_DEPTH else ""
            if not reason:
                inner = list(part.items()) if isinstance(part, dict) else list(enumerate(part))
                rest += [((*path, str(key)), one) for key, one in reversed(inner)]
                rest += [(path, key) for key, _value in inner if isinstance(key, str) and text_problem(key)]
        else:
            reason = number_problem(part)
        if reason:
            yield path, reason


def refuse_unstorable(value: Any) -> None:
    """Raise `Invalid` with the place of the first part of some JSON that cannot be stored."""
    for path, reason in find_unstorable(value):
        place = ".".join(path) or "body"
        raise Invalid(name_problem(place, reason), field=place)


def text_problem(text: str) -> str:
    """Why a text cannot be stored; empty where it can."""
    if "\x00" in text:
        return _("holds a NUL character")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        return _("holds half a surrogate pair")
    return ""


def number_problem(value: object) -> str:
    """Why a number cannot be stored; empty where it can, and for what is no number."""
    if isinstance(value, float) and not math.isfinite(value):
        return _("holds a number that is not finite")
    if isinstance(value, int) and not SMALLEST_INTEGER <= value <= LARGEST_INTEGER:
        return _("holds an integer of over 64 bits")
    return ""


def check_time(value: datetime) -> datetime:
    """Return `value`. Raises ValueError for a time that not every time zone can express."""
    try:
        fits = EARLIEST <= (value if value.tzinfo else value.replace(tzinfo=UTC)) <= LATEST
    except OverflowError:
        fits = False
    if not fits:
        raise ValueError(
            _("must lie between %(first)s and %(last)s", first=str(EARLIEST.date()), last=str(LATEST.date()))
        )
    return value


def check_json_size(value: dict[str, Any]) -> dict[str, Any]:
    """Return `value`, which can be stored. Raises ValueError for an object of over 256 kB as JSON."""
    if len(orjson.dumps(value)) > MAX_JSON_BYTES:
        raise ValueError(_("has over %(size)s kB as JSON", size=MAX_JSON_BYTES >> 10))
    return value


Storable = AfterValidator(check_storable)
Text = Annotated[str, Storable]
JsonObject = Annotated[dict[str, Any], Storable, AfterValidator(check_json_size)]
Time = Annotated[datetime, AfterValidator(check_time)]
