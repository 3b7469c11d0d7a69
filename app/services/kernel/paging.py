"""Pages of lists, and their cursors."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from app.errors import Invalid
from app.services.kernel.text_rules import check_storable
from illume.phrases import _

T = TypeVar("T")
MAX_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items of a list; `next` is the cursor of the following page, None at the end."""

    items: Sequence[T]
    next: str | None = None


def encode_cursor(*parts: int | str) -> str:
    """Return an opaque cursor for the position `parts`."""
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, *kinds: type) -> tuple[Any, ...]:
    """Return the position in `cursor`, one part per type in `kinds`. Raises `Invalid` for a cursor that is not ours."""
    try:
        parts = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        check_storable(parts)
    except (binascii.Error, ValueError, RecursionError):
        parts = None
    fits = isinstance(parts, list) and len(parts) == len(kinds)
    if not fits or any(type(part) is not kind for part, kind in zip(parts or (), kinds, strict=True)):
        raise Invalid(_("This cursor is not valid: start again without one."), field="cursor")
    return tuple(parts or ())


def slice_page(items: Sequence[T], key: Callable[[T], int], *, limit: int, cursor: str | None) -> Page[T]:
    """Return the page behind `cursor` of a short, complete list, in the order of `key`."""
    after = None if cursor is None else decode_cursor(cursor, int)[0]
    ordered = sorted(items, key=key)
    rest = [item for item in ordered if after is None or key(item) > after]
    found = rest[: check_limit(limit)]
    return Page(found, encode_cursor(key(found[-1])) if len(rest) > limit else None)


def check_limit(limit: int) -> int:
    """Return `limit`. Raises `Invalid` outside 1 to 1,000."""
    if not 1 <= limit <= MAX_LIMIT:
        raise Invalid(_("limit must be from 1 to %(max_limit)s.", max_limit=MAX_LIMIT), field="limit")
    return limit
