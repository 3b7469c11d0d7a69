"""Responses that are not models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response


class Json(Response):
    """A JSON response. Bytes are sent as they are."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return `content` as bytes."""
        return content if isinstance(content, bytes) else orjson.dumps(content)


class Problem(Response):
    """An error in the format of RFC 9457. `detail` says what a person can do about it."""

    media_type = "application/problem+json"

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        *,
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        problem = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        problem = {**problem, **(extra or {}), **problem}  # RFC 9457's own members come first and cannot be overridden
        super().__init__(orjson.dumps(problem, default=str), status_code=status, headers=dict(headers or {}))
