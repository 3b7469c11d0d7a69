"""Tabs that only wait: 'nothing is new' is answered from a mark of the project, without making the page for it."""

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

LIVE_PATHS = re.compile(r"/admin/projects/([^/]+)(?:/rounds|/rounds/\d+|/versions|/comparisons/\d+|/imports/\d+)?")
MAX_PAGES = 512
"""So many pages are kept; each is some tens of kilobytes."""
MAX_AGE = 20.0
"""So long a page may be taken to be as it was made: 'a minute ago' becomes 'two minutes ago' without any change."""

Key = tuple[str, bytes, str]
"""A path, a query and the hash of a session."""


@dataclass(frozen=True, slots=True)
class CachedPage:
    """A page as it was made: its tag, what the database and the project were just before, and until when it serves.

    `content` is None where only the tag is known.
    """

    etag: str
    content: bytes | None
    moment: str | None
    mark: str | None
    until: float


@dataclass(frozen=True, slots=True)
class Freshness:
    """What was found before the page is made; `same` says that it need not be."""

    moment: str | None
    mark: str | None
    same: bool


class LivePageCache:
    """ASGI middleware that answers 304 to a live page's question where nothing that it shows has changed."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.seen: OrderedDict[Key, CachedPage] = OrderedDict()
        self.making: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on and keep what comes of it."""
        found = LIVE_PATHS.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "GET" else None
        request = Request(scope, receive) if found else None
        cookie = request.cookies.get(SESSION_COOKIE) if request and request.headers.get("hx-request") else None
        if found is None or request is None or not cookie:
            await self.app(scope, receive, send)
            return
        key = (scope["path"], scope["query_string"], hash_secret(cookie))
        # Of tabs that ask at once one has the page made, and the others get what it got.
        async with self.making.setdefault(key, asyncio.Lock()):
            look = await run_sync(check_freshness, scope["app"].state.sessions, found[1], key[2], self._fresh(key))
            answer = self._answer(key, look, request.headers.get("if-none-match"))
            if answer is None:
                await self.app(scope, receive, self._keeping(send, key, look))
                return
        await answer(scope, receive, send)

    def _fresh(self, key: Key) -> CachedPage | None:
        known = self.seen.get(key)
        return known if known is not None and known.until >= time.monotonic() else None

    def _answer(self, key: Key, look: Freshness, theirs: str | None) -> Response | None:
        """The answer to who knows the page by the tag `theirs`; None where it must be made."""
        known = self.seen.get(key)
        if known is None or not look.same:
            return None
        self._keep(key, replace(known, moment=look.moment, mark=look.mark))
        headers = {"ETag": known.etag, "Cache-Control": "no-store"}
        if theirs == known.etag:
            return Response(status_code=304, headers=headers)
        return None if known.content is None else HTMLResponse(known.content, headers=headers)

    def _keeping(self, send: Send, key: Key, look: Freshness) -> Send:
        """`send`, keeping a page that is sent, or its tag."""
        etag: str | None = None
        content = bytearray()

        async def passing(message: Message) -> None:
            nonlocal etag
            if message["type"] == "http.response.start":
                found = dict(message["headers"]).get(b"etag")
                etag = found.decode() if found and message["status"] in (200, 304) and look.mark is not None else None
            elif etag is not None:
                content.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    self._note(key, look, etag, bytes(content))
            await send(message)

        return passing

    def _note(self, key: Key, look: Freshness, etag: str, content: bytes) -> None:
        """Keep what was made; what was only compared is as it was, if that is still known."""
        before = self.seen.get(key)
        same = before.content if before is not None and before.etag == etag else None
        kept = content or same
        self._keep(key, CachedPage(etag, kept, look.moment, look.mark, time.monotonic() + MAX_AGE))

    def _keep(self, key: Key, seen: CachedPage) -> None:
        self.seen[key] = seen
        self.seen.move_to_end(key)
        while len(self.seen) > MAX_PAGES:
            self.seen.popitem(last=False)


def check_freshness(sessions: OpenSession, slug: str, session_hash: str, known: CachedPage | None) -> Freshness:
    """Look whether all is as it was when `known` was made."""
    with sessions() as session:
        moment = change_tokens.database_token(session)
        if known is not None and moment is not None and moment == known.moment:
            return Freshness(moment, known.mark, same=True)
        mark = change_tokens.project_token(session, slug, session_hash)
        return Freshness(moment, mark, same=known is not None and mark is not None and mark == known.mark)
