"""One type for each column of exported JSON lines, from the first line on.

Readers such as `datasets` infer the type of a column from the first lines. JSON has no typed null, and no whole number
that is a float, so absent values are written as values that cannot occur, and floats with a decimal point.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import orjson

TEXTS = (
    "external_id",
    "answer",
    "answer_source",
    "critic",
    "version",
    "served_model",
    "candidate",
    "rejected_candidate",
    "seed",
    "rationale",
    "edited_from",
    "reason",
    "comment",
    "supersedes",
    "model",
    "blind",
    "accepted",
    "gold",
    "policy",
    "judge",
)
ABSENT: Mapping[str, Any] = MappingProxyType(
    {
        **dict.fromkeys(TEXTS, ""),
        "version_number": -1,  # the base model is version 0
        "seconds": -1.0,
        "temperature": -1.0,
        "mean_logprob": 1.0,  # the logarithm of a probability is never positive
        **dict.fromkeys(("helpfulness", "verifier"), -1e9),  # differences of logarithms of probabilities
    }
)
# A quote inside a text is escaped, and PostgreSQL writes a space after the colons of `metadata`: neither can match.
_NULLS = [(f'"{name}":null'.encode(), f'"{name}":{json.dumps(value)}'.encode()) for name, value in ABSENT.items()]
_WHOLE_FLOAT = re.compile(
    rb'"(?:seconds|temperature|mean_logprob|helpfulness|verifier|critic_weight)":-?[0-9]+(?=[,}])'
)


def give_types(lines: bytes) -> bytes:
    """Write absent values and whole floats in lines of JSON in the type of their column."""
    for null, absent in _NULLS:
        if null in lines:
            lines = lines.replace(null, absent)
    return _WHOLE_FLOAT.sub(rb"\g<0>.0", lines)


def read_row(line: bytes) -> dict[str, Any]:
    """Parse a line of JSON, typed or not, into a row with None for absent values."""
    row: dict[str, Any] = orjson.loads(line)
    return without_absent(row)


def without_absent(row: dict[str, Any]) -> dict[str, Any]:
    """A row with None where `give_types` wrote that a value is absent, also in its candidates."""
    found = _replace_absent(row)
    candidates = row.get("candidates")
    if isinstance(candidates, list):
        found["candidates"] = [_replace_absent(one) if isinstance(one, dict) else one for one in candidates]
    return found


def _replace_absent(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _replace_absent(value)
        if name == "scores" and isinstance(value, dict)
        else None
        if name in ABSENT and value == ABSENT[name]
        else value
        for name, value in values.items()
    }
