"""Errors as HTML: a page for a person, a toast for a fragment's asker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import RedirectResponse, Response

from app.web.rendering import Shell, fragment, page


@dataclass(frozen=True, slots=True)
class ErrorView:
    """What went wrong, in words a person can act on."""

    status: int
    title: str
    detail: str
    as_toast: bool


def wants_fragment(request: Request) -> bool:
    """Whether a script of a page is asking, not a person by a link, an address or a form."""
    return request.headers.get("hx-request") == "true"


def render(
    request: Request, status: int, title: str, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer to a request that failed.

    A fragment's asker gets a toast that is put among the page's messages, so that nothing typed is overwritten.
    Who is not signed in and opens a page is sent to sign in, and back to it afterwards.
    """
    view = ErrorView(status, title, detail, as_toast=wants_fragment(request))
    if view.as_toast:
        to_messages = {"HX-Retarget": "#toasts", "HX-Reswap": "beforeend", **(headers or {})}
        return fragment("error.html", "toast", shell=Shell(title=title), view=view, status=status, headers=to_messages)
    if status == 401 and request.method == "GET":
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/sign-in?{urlencode({'next': here})}", status_code=303)
    response = page("error.html", shell=Shell(title=title), view=view, status=status)
    response.headers.update(headers or {})
    return response
