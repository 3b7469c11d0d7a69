"""Error responses: problem+json for programs, pages for people."""

from __future__ import annotations

import errno
import http
import logging
from collections.abc import Callable, Mapping
from typing import Any

import psycopg.errors
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.errors import DomainError, Invalid, NotFound, TooLarge, TooMany, Unauthenticated, Unavailable, printable
from app.http.headers import HEADERS
from app.http.responses import Problem
from app.settings import path_in_app
from illume.phrases import _
from illume.validation import describe_problem, name_problem, split_place

log = logging.getLogger(__name__)
ErrorPage = Callable[[Request, int, str, str, Mapping[str, str]], Response]
"""Renders an error for a person: request, status, title, detail, headers."""
MACHINE_PATHS = ("/api/", "/metrics", "/healthz", "/readyz")
API_PAGE = "/api/docs"
"""The one page for people among the paths of programs."""
DATABASE_UNREACHABLE = Unavailable(_("The database cannot be reached at the moment: try again in a few seconds."))
DISK_FULL = Unavailable(
    _("The server's disk is full. Nothing was changed. Please tell the administrator."),
    retry_after=30,
)
TITLES = {413: TooLarge.title, 414: _("Address too long"), 421: _("Unknown host"), 503: Unavailable.title}
CONTENTION = Unavailable(_("Someone else is changing this at the moment: try again."), retry_after=1)


def render(request: Request, error: DomainError) -> Response:
    """Render a domain error."""
    headers = {}
    if isinstance(error, TooMany | Unavailable):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    extra = dict(error.extra) if error.field is None else {"field": error.field, **error.extra}
    return error_response(request, error.status, error.title, error.detail, extra=extra, headers=headers)


def error_response(
    request: Request,
    status: int,
    title: str,
    detail: str,
    *,
    extra: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return an error as problem+json for a program, or as a page or a toast for a person."""
    path = path_in_app(request.scope["path"])
    if path.startswith(MACHINE_PATHS) and path != API_PAGE:
        return Problem(status, title, detail, extra=extra, headers=headers)
    kept = {name: value for name, value in (headers or {}).items() if name != "WWW-Authenticate"}
    error_page: ErrorPage = request.app.state.error_page
    return error_page(request, status, title, detail, kept)


def refusal_response(request: Request, status: int, detail: str) -> Response:
    """The response to a request that the gate refused."""
    return error_response(request, status, title_of(status), detail)


def title_of(status: int) -> str:
    """The title of an error that no domain error stands for."""
    return TITLES.get(status) or http.HTTPStatus(status).phrase.capitalize()


def to_domain_error(error: Exception) -> DomainError | None:
    """Translate a database error for the caller. Return None for a fault of ours."""
    if isinstance(error, PoolTimeout):
        return CONTENTION
    if not isinstance(error, DBAPIError):
        return None
    cause = error.orig
    crowded = (
        psycopg.errors.LockNotAvailable,
        psycopg.errors.DeadlockDetected,
        psycopg.errors.QueryCanceled,
        psycopg.errors.TransactionTimeout,
    )
    if isinstance(cause, crowded):
        return CONTENTION
    if isinstance(cause, psycopg.errors.DiskFull):
        return DISK_FULL
    if isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated:
        return DATABASE_UNREACHABLE
    if isinstance(error, DataError):
        return Invalid(_("Something in the request cannot be stored: a character or a number is out of range."))
    if isinstance(error, IntegrityError) and isinstance(cause, psycopg.errors.UniqueViolation):
        return CONTENTION
    return None


def response_for(request: Request, error: DomainError | DBAPIError | PoolTimeout) -> Response:
    """Render a domain error or a database error. Raises it again if it is a fault of ours."""
    if isinstance(error, DomainError):
        return render(request, error)
    known = to_domain_error(error)
    if known is None:
        raise error
    log.warning("%s %s: %s", request.method, path_in_app(request.scope["path"]), str(error).splitlines()[0])
    return render(request, known)


def install(app: FastAPI, *, error_page: ErrorPage) -> None:
    """Install the error handlers of `app`. `error_page` renders errors for people."""
    app.state.error_page = error_page

    @app.exception_handler(DomainError)
    @app.exception_handler(DBAPIError)
    @app.exception_handler(PoolTimeout)
    def on_known_error(request: Request, error: DomainError | DBAPIError | PoolTimeout) -> Response:
        return response_for(request, error)

    @app.exception_handler(OSError)
    def on_system_error(request: Request, error: OSError) -> Response:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise error
        log.error("%s %s: the disk is full: %s", request.method, path_in_app(request.scope["path"]), error)
        return render(request, DISK_FULL)

    @app.exception_handler(RequestValidationError)
    def on_invalid(request: Request, error: RequestValidationError) -> Response:
        return render(request, to_invalid(error))

    @app.exception_handler(HTTPException)
    def on_http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return render(
                request, NotFound(_("There is no such page.") if error.detail == "Not Found" else error.detail)
            )
        detail = str(error.detail)
        if error.status_code == 405 and detail == http.HTTPStatus(405).phrase:
            detail = _("This address takes no %(method)s requests.", method=request.method)
        return error_response(request, error.status_code, title_of(error.status_code), detail, headers=error.headers)

    @app.exception_handler(Exception)
    def on_fault(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, path_in_app(request.scope["path"]), exc_info=error)
        detail = _("Something went wrong on the server, and the error has been logged. Nothing was changed.")
        response = error_response(request, 500, _("Internal error"), detail)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response


def to_invalid(error: RequestValidationError) -> Invalid:
    """Report the first error of a request, naming its field, and all of them as `errors`."""
    found = []
    for one in error.errors():
        where = [str(part) for part in one["loc"] if part not in ("body", "query", "path", "header")]
        field = ".".join(where) or str(one["loc"][0])
        reason = _("is not valid JSON") if one["type"] == "json_invalid" else describe_problem(one)
        field = "body" if one["type"] == "json_invalid" else printable(field)
        field, reason = split_place(field, reason)
        found.append({"field": field, "detail": printable(reason)})
    first = found[0]
    return Invalid(name_problem(first["field"], first["detail"]), field=first["field"], errors=found)
