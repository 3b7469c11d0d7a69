"""What can go wrong between a script and the server. Each error is one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """Base class of the client's errors."""


class Refused(ClientError):
    """The server answered with an error.

    `detail` is its reason, `field` the place in the request if it names one, `problem` the whole answer (RFC 9457).
    `retry_after` is how many seconds to wait before the same request may succeed, None where waiting does not help.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        field: str | None = None,
        problem: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.field = field
        self.problem = dict(problem or {})
        self.retry_after = retry_after


class Unreachable(ClientError):
    """No answer arrived."""


class RoundFailed(ClientError):
    """A round ended without a new version: `state` is `failed` or `cancelled`, `error` the reason the server gives."""

    def __init__(self, number: int, state: str, error: str | None) -> None:
        super().__init__(f"Round {number} was {state}." if error is None else f"Round {number} {state}: {error}")
        self.number = number
        self.state = state
        self.error = error
