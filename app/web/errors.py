"""Errors as HTML: a page for a person, a toast for a fragment's asker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

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
    sign_in: str = ""


def wants_fragment(request: Request) -> bool:
    """Whether a script of a page is asking, not a person by a link, an address or a form."""
    return request.headers.get("hx-request") == "true"


def render(
    request: Request, status: int, title: str, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer to a request that failed.

    A fragment's asker gets a toast that is put among the page's messages, so that nothing typed is overwritten.
    Who is not signed in and opens a page is sent to sign in, and back to it afterwards; who sends a form is told so.
    """
    sign_in = f"/sign-in?{urlencode({'next': came_from(request)})}" if status == 401 else ""
    view = ErrorView(status, title, detail, wants_fragment(request), sign_in)
    if view.as_toast:
        to_messages = {"HX-Retarget": "#toasts", "HX-Reswap": "beforeend", **(headers or {})}
        return fragment("error.html", "toast", shell=Shell(title=title), view=view, status=status, headers=to_messages)
    if status == 401 and request.method == "GET":
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/sign-in?{urlencode({'next': here})}", status_code=303)
    response = page("error.html", shell=Shell(title=title), view=view, status=status)
    response.headers.update(headers or {})
    return response


def came_from(request: Request) -> str:
    """The page of ours that a form was sent from; the start page where that is not known."""
    referer = urlsplit(request.headers.get("referer", ""))
    if referer.netloc != request.headers.get("host") or not referer.path.startswith("/"):
        return "/"
    return referer.path + (f"?{referer.query}" if referer.query else "")
