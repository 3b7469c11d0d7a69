"""Errors as HTML: a page where a person navigated, a toast where a script asked for a fragment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from fastapi import Request
from fastapi.responses import RedirectResponse, Response

from app.settings import path_in_app, path_to
from app.web.rendering import Shell, fragment, page


@dataclass(frozen=True, slots=True)
class ErrorView:
    """What went wrong, in words that a person can act on."""

    status: int
    title: str
    detail: str
    as_toast: bool
    sign_in: str = ""


def wants_fragment(request: Request) -> bool:
    """Whether a script of a page sent the request, rather than a link, an address or a form."""
    return request.headers.get("hx-request") == "true"


def render(
    request: Request, status: int, title: str, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The response to a request that failed.

    A script gets a toast that htmx adds to the page's messages, so that nothing a person typed is overwritten. A person
    who opens a page without being signed in is redirected to the sign-in form, and from there back to the page. A
    person who sends a form without being signed in gets an error page with a link to sign in.
    """
    sign_in = f"/sign-in?{urlencode({'next': came_from(request)})}" if status == 401 else ""
    view = ErrorView(status, title, detail, wants_fragment(request), sign_in)
    if view.as_toast:
        to_messages = {"HX-Retarget": "#toasts", "HX-Reswap": "beforeend", **(headers or {})}
        return fragment("error.html", "toast", shell=Shell(title=title), view=view, status=status, headers=to_messages)
    if status == 401 and request.method == "GET":
        query = request.scope["query_string"].decode("latin-1")
        here = path_in_app(request.scope["path"]) + (f"?{query}" if query else "")
        return RedirectResponse(f"/sign-in?{urlencode({'next': here})}", status_code=303)
    response = page("error.html", shell=Shell(title=title), view=view, status=status)
    response.headers.update(headers or {})
    return response


def came_from(request: Request) -> str:
    """The path of our page that a form was sent from; the start page where it is unknown."""
    try:
        referer = urlsplit(request.headers.get("referer", ""))
    except ValueError:  # such as `http://[`
        return "/"
    if referer.netloc != request.headers.get("host") or not referer.path.startswith(path_to("/")):
        return "/"
    return path_in_app(referer.path) + (f"?{referer.query}" if referer.query else "")
