"""A cache for pages that poll: 304 and repeated pages are answered from a change token, without rendering."""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.dependencies import SESSION_COOKIE, OpenSession
from app.services.accounts.passwords import hash_secret
from app.services.read_models import change_tokens
from app.settings import path_in_app

LIVE_PATHS = re.compile(r"/admin/projects/([^/]+)(?:/rounds|/rounds/\d+|/versions|/comparisons/\d+|/imports/\d+)?")
MAX_PAGES = 512
"""How many pages are kept; each has some tens of kilobytes."""
MAX_AGE = 20.0
"""How many seconds a page stays valid. Relative times such as 'a minute ago' grow old even without a change."""

Key = tuple[str, bytes, str]
"""A path, a query, and the hash of a session."""


@dataclass(frozen=True, slots=True)
class CachedPage:
    """A rendered page: its ETag, the change tokens from just before it was rendered, and until when it is valid.

    `content` is None if only the ETag is known.
    """

    etag: str
    content: bytes | None
    database: str | None
    project: str | None
    valid_until: float


@dataclass(frozen=True, slots=True)
class Freshness:
    """The current change tokens; `unchanged` says that the page need not be rendered again."""

    database: str | None
    project: str | None
    unchanged: bool


class LivePageCache:
    """ASGI middleware that answers a polling page with 304 if nothing that it shows has changed."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.pages: OrderedDict[Key, CachedPage] = OrderedDict()
        self.locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from the cache, or pass the request on and cache the response."""
        found = (
            LIVE_PATHS.fullmatch(path_in_app(scope["path"]))
            if scope["type"] == "http" and scope["method"] == "GET"
            else None
        )
        request = Request(scope, receive) if found else None
        cookie = request.cookies.get(SESSION_COOKIE) if request and request.headers.get("hx-request") else None
        if found is None or request is None or not cookie:
            await self.app(scope, receive, send)
            return
        key = (path_in_app(scope["path"]), scope["query_string"], hash_secret(cookie))
        # Of several tabs that ask at once, one has the page rendered and the others share the result.
        async with self.locks.setdefault(key, asyncio.Lock()):
            freshness = await run_sync(
                check_freshness, scope["app"].state.sessions, found[1], key[2], self._valid_page(key)
            )
            answer = self._answer(key, freshness, request.headers.get("if-none-match"))
            if answer is None:
                await self.app(scope, receive, self._wrap_send(send, key, freshness))
                return
        await answer(scope, receive, send)

    def _valid_page(self, key: Key) -> CachedPage | None:
        known = self.pages.get(key)
        return known if known is not None and known.valid_until >= time.monotonic() else None

    def _answer(self, key: Key, freshness: Freshness, client_etag: str | None) -> Response | None:
        """Answer a client that knows the page by `client_etag`. Return None if the page must be rendered."""
        known = self.pages.get(key)
        if known is None or not freshness.unchanged:
            return None
        self._store(key, replace(known, database=freshness.database, project=freshness.project))
        headers = {"ETag": known.etag, "Cache-Control": "no-store"}
        if client_etag == known.etag:
            return Response(status_code=304, headers=headers)
        return None if known.content is None else HTMLResponse(known.content, headers=headers)

    def _wrap_send(self, send: Send, key: Key, freshness: Freshness) -> Send:
        """Wrap `send` so that the page that is sent, or its ETag, is cached."""
        etag: str | None = None
        content = bytearray()

        async def send_and_store(message: Message) -> None:
            nonlocal etag
            if message["type"] == "http.response.start":
                found = dict(message["headers"]).get(b"etag")
                etag = (
                    found.decode()
                    if found and message["status"] in (200, 304) and freshness.project is not None
                    else None
                )
            elif etag is not None:
                content.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    self._store_response(key, freshness, etag, bytes(content))
            await send(message)

        return send_and_store

    def _store_response(self, key: Key, freshness: Freshness, etag: str, content: bytes) -> None:
        """Cache a new page. After a 304 the known content is kept, if its ETag is the same."""
        before = self.pages.get(key)
        same = before.content if before is not None and before.etag == etag else None
        kept = content or same
        self._store(key, CachedPage(etag, kept, freshness.database, freshness.project, time.monotonic() + MAX_AGE))

    def _store(self, key: Key, page: CachedPage) -> None:
        self.pages[key] = page
        self.pages.move_to_end(key)
        while len(self.pages) > MAX_PAGES:
            self.pages.popitem(last=False)


def check_freshness(sessions: OpenSession, slug: str, session_hash: str, known: CachedPage | None) -> Freshness:
    """Check whether anything has changed since `known` was rendered."""
    with sessions() as session:
        database = change_tokens.database_token(session)
        if known is not None and database is not None and database == known.database:
            return Freshness(database, known.project, unchanged=True)
        project = change_tokens.project_token(session, slug, session_hash)
        return Freshness(
            database, project, unchanged=known is not None and project is not None and project == known.project
        )
