"""Pages of lists, and the cursors between them."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from app.errors import Invalid

T = TypeVar("T")
MAX_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items of a list; `next` is the cursor of the following page, None at the end."""

    items: Sequence[T]
    next: str | None = None


def encode_cursor(*parts: int | str) -> str:
    """An opaque cursor for the position `parts`."""
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, *kinds: type) -> tuple[Any, ...]:
    """The position in `cursor`, one part for each of `kinds`. Raises `Invalid` for anything we did not make."""
    try:
        parts = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        parts = None
    fits = isinstance(parts, list) and len(parts) == len(kinds)
    if not fits or any(type(part) is not kind for part, kind in zip(parts or (), kinds, strict=True)):
        raise Invalid("This cursor is not one of ours: start again without it.", field="cursor")
    return tuple(parts or ())


def slice_page(items: Sequence[T], key: Callable[[T], int], *, limit: int, cursor: str | None) -> Page[T]:
    """A page of a short list that is there as a whole, in the order of `key`: what comes behind `cursor`."""
    after = None if cursor is None else decode_cursor(cursor, int)[0]
    ordered = sorted(items, key=key)
    rest = [item for item in ordered if after is None or key(item) > after]
    found = rest[: check_limit(limit)]
    return Page(found, encode_cursor(key(found[-1])) if len(rest) > limit else None)


def check_limit(limit: int) -> int:
    """`limit` itself. Raises `Invalid` outside 1 to 1,000."""
    if not 1 <= limit <= MAX_LIMIT:
        raise Invalid(f"limit must be from 1 to {MAX_LIMIT}.", field="limit")
    return limit
