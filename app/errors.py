"""Domain errors. Each carries an HTTP status and a sentence a person can act on. They are rendered in one place."""

from __future__ import annotations

from typing import Any

from illume.phrases import _


def printable(text: str) -> str:
    """`text` with lone surrogates written out, so that it can be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()
    return text


class DomainError(Exception):
    """Base class of all errors that a person can do something about."""

    status = 500
    title = _("Error")

    def __init__(self, detail: str, *, field: str | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = printable(detail)
        self.field = None if field is None else printable(field)
        self.extra = extra


class Unauthenticated(DomainError):
    """Nobody is signed in, or the token is not valid."""

    status = 401
    title = _("Not signed in")


class Forbidden(DomainError):
    """The caller is authenticated but lacks the right that `detail` names."""

    status = 403
    title = _("Forbidden")


class NotFound(DomainError):
    """The object does not exist, or the caller may not see it."""

    status = 404
    title = _("Not found")


class Conflict(DomainError):
    """The state of the object does not allow this."""

    status = 409
    title = _("Conflict")


class TooLarge(DomainError):
    """An upload is over its limit."""

    status = 413
    title = _("Too large")


class Invalid(DomainError):
    """The input is invalid; `field` names the place."""

    status = 422
    title = _("Invalid")


class TooMany(DomainError):
    """A rate limit was reached; the caller may try again after `retry_after` seconds."""

    status = 429
    title = _("Too many requests")

    def __init__(self, detail: str, *, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class Unavailable(DomainError):
    """A service we depend on is unavailable at the moment."""

    status = 503
    title = _("Unavailable")

    def __init__(self, detail: str, *, retry_after: int = 2) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
