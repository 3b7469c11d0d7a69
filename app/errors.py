"""Domain errors. Each carries its HTTP status and a sentence a person can act on; one place renders them."""

from __future__ import annotations

from typing import Any


class DomainError(Exception):
    """Base of all errors that a person can do something about."""

    status = 500
    title = "Error"

    def __init__(self, detail: str, *, field: str | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.extra = extra


class Unauthenticated(DomainError):
    """Nobody is signed in, or the token is not valid."""

    status = 401
    title = "Not signed in"


class Forbidden(DomainError):
    """Somebody is known, but lacks a right, which `detail` names."""

    status = 403
    title = "Forbidden"


class NotFound(DomainError):
    """There is no such thing, or it is not for this person to see."""

    status = 404
    title = "Not found"


class Conflict(DomainError):
    """The thing's state does not allow this."""

    status = 409
    title = "Conflict"


class TooLarge(DomainError):
    """An upload is over its limit."""

    status = 413
    title = "Too large"


class Invalid(DomainError):
    """Input that cannot be taken; `field` names where."""

    status = 422
    title = "Invalid"


class TooMany(DomainError):
    """A limit on how often was reached; `retry_after` seconds say when to come back."""

    status = 429
    title = "Too many requests"

    def __init__(self, detail: str, *, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class Unavailable(DomainError):
    """Something we stand on is away for the moment."""

    status = 503
    title = "Unavailable"

    def __init__(self, detail: str, *, retry_after: int = 2) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
