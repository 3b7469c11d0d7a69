"""ASGI middleware that finds out in which language the reader of a page would like it."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from app import languages
from app.settings import path_in_app
from illume.phrases import reader

MACHINES = "/api/v1"
"""Programs read English."""


class Readers:
    """Tells what renders the answer for whom it is. A person's own choice comes later, with their session."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http" or path_in_app(scope["path"]).startswith(MACHINES):
            await self.app(scope, receive, send)
            return
        wishes = b",".join(value for name, value in scope["headers"] if name == b"accept-language")
        token = reader.set(languages.PageReader(languages.accepted(wishes.decode("latin-1"))))
        try:
            await self.app(scope, receive, send)
        finally:
            reader.reset(token)
