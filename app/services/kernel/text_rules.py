"""Rules for text and JSON that come from outside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator


def check_storable(value: Any) -> Any:
    """Return `value`, a text or JSON. Raises ValueError for NUL, lone surrogates, NaN and infinities."""
    if isinstance(value, str):
        if "\x00" in value:
            raise ValueError("holds a NUL character")
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError("holds half a surrogate pair")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("holds a number that is not finite")
    elif isinstance(value, dict):
        for key, part in value.items():
            check_storable(key)
            check_storable(part)
    elif isinstance(value, list | tuple):
        for part in value:
            check_storable(part)
    return value


Storable = AfterValidator(check_storable)
Text = Annotated[str, Storable]
JsonObject = Annotated[dict[str, Any], Storable]


def validation_message(problem: Mapping[str, object]) -> str:
    """Return the message of a pydantic error without its prefix."""
    return str(problem["msg"]).removeprefix("Value error, ")
