"""The gate: no more requests at the database than it has connections for, ahead of everything else."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import DomainError
from app.http.bodies import BODIES_PER_ADDRESS, UPLOADS_PER_ADDRESS, Arrivals, ClientLeft, timed
from app.http.minimum_rate import MinimumRate
from app.services.kernel import traffic
from app.settings import path_in_app
from illume.phrases import _

FREE = re.compile(r"/(static|help)/.*|/healthz|/readyz|/favicon\.ico|/api/v1/openapi\.json")
IMAGES = re.compile(r"/api/v1/images/[^/]*")
JUDGING = re.compile(
    r"/api/v1/projects/[^/]+/assignments|/api/v1/assignments/[^/]+/verdict"
    r"|/annotate/[^/]+/next|/annotate/[^/]+/assignments/[^/]+/verdict"
)
STREAMS = re.compile(r"/api/v1/projects/[^/]+/dataset|/api/v1/imports/[^/]+/problems|/admin/projects/[^/]+/publish")
SCRAPES = re.compile(r"/metrics")
SMALL_BODY = 256 * 1024
LARGEST_JSON = 16 * 1024 * 1024
LARGEST_BODY = 32 * 1024 * 1024
LARGEST_IMPORT = 2 * 1024 * 1024 * 1024 + SMALL_BODY
UPLOADS: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"/api/v1/projects/[^/]+/imports|/admin/projects/[^/]+/imports(/.*)?"), LARGEST_IMPORT),
    (re.compile(r"/api/v1/images|/admin/projects/[^/]+/prompts(/.*)?"), LARGEST_BODY),
    (re.compile(r"/api/v1/projects/[^/]+/prompts|/api/v1/prompts/[^/]+"), LARGEST_JSON),
)
"""The paths that take more than `SMALL_BODY`, and how much. Their routes read the body before the database."""

Kind = Literal["requests", "judging", "images", "uploads", "streams", "callers", "scrapes"]
BUSY = _("The server is busy: try again in a few seconds.")
OTHERS_DOWNLOAD = _("Too many downloads are running: try again in a few minutes.")

Refuse = Callable[[Request, int, str], Response]
"""Makes the answer to a refused request: of a request, a status and a sentence."""
Identify = Callable[[Request], Awaitable[object]]
"""Finds out by a request's headers who sends it. Raises `DomainError` where nobody is known."""


@dataclass(frozen=True, slots=True)
class Places:
    """How many requests of a kind may be in flight, and how many seconds others wait; those beyond get `status`."""

    size: int
    wait: float
    status: int = 503


class Gate:
    """ASGI middleware that lets as many requests in as there are connections for.

    Judging, images, uploads and streams have places of their own, so that nothing else holds up the critics. A place is
    taken when the body is there, so that a slow sender holds none, and given back when the answer begins (a stream's
    when it ends), so that a slow reader holds none. A large body is read only for somebody who is known.
    """

    def __init__(self, app: ASGIApp, *, places: Mapping[Kind, Places], refuse: Refuse, identify: Identify) -> None:
        self.app = app
        self.refuse = refuse
        self.identify = identify
        self._kinds = {kind: (of_kind, asyncio.Semaphore(of_kind.size)) for kind, of_kind in places.items()}
        self._arrivals = Arrivals()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on once there is a place for it."""
        kind = kind_of(scope)
        if kind is None:
            await self.app(scope, receive, send)
            return
        place = self._place(kind)
        try:
            largest = largest_body(scope)
            if body_length(scope) > largest:
                raise HTTPException(413, f"The request is larger than {in_units(largest)}.")
            if kind == "uploads":
                await self._upload(scope, receive, send, place)
                return
            body = await self._small_body(scope, receive)
            await place.enter()
            await self.app(scope, replay(body, receive), send if kind == "streams" else leaving(send, place.leave))
        except ClientLeft:
            return
        except DomainError as error:
            await self.refuse(Request(scope), error.status, error.detail)(scope, receive, send)
        except HTTPException as error:
            response = self.refuse(Request(scope), error.status_code, error.detail)
            response.headers.update(error.headers or {})
            await response(scope, receive, send)
        finally:
            place.leave()

    def _place(self, kind: Kind) -> Place:
        """A place of this kind, not taken yet."""
        of_kind, free = self._kinds[kind]
        return Place(free, of_kind, traffic.streams if kind == "streams" else traffic.requests)

    async def _upload(self, scope: Scope, receive: Receive, send: Send, place: Place) -> None:
        """Pass an upload on at once; its place is taken when the last piece of its body is there."""
        caller = self._place("callers")
        try:
            await caller.enter()
            await self.identify(Request(scope))
        finally:
            caller.leave()
        with contextlib.ExitStack() as arriving:
            arriving.enter_context(self._arrivals.one(scope, limit=UPLOADS_PER_ADDRESS))
            next_piece = timed(receive, MinimumRate())
            complete = False

            async def receiving() -> Message:
                nonlocal complete
                if complete:
                    return await receive()
                message = await next_piece()
                complete = not message.get("more_body", False)
                if complete:
                    arriving.close()
                    await place.enter()
                return message

            await self.app(scope, receiving, leaving(send, place.leave))

    async def _small_body(self, scope: Scope, receive: Receive) -> deque[Message]:
        """The messages of a small body, read whole. Raises `HTTPException`."""
        messages: deque[Message] = deque()
        if not has_body(scope):
            return messages
        left = SMALL_BODY
        with self._arrivals.one(scope, limit=BODIES_PER_ADDRESS):
            next_piece = timed(receive, MinimumRate())
            while True:
                message = await next_piece()
                messages.append(message)
                left -= len(message.get("body", b""))
                if left < 0:
                    raise HTTPException(413, f"The request is larger than {in_units(SMALL_BODY)}.")
                if not message.get("more_body", False):
                    return messages


class Place:
    """One of the places of a kind: taken by `enter`, given back by `leave`."""

    def __init__(self, free: asyncio.Semaphore, of_kind: Places, counted: traffic.Traffic) -> None:
        self._free = free
        self._of_kind = of_kind
        self._counted = counted
        self._held = False

    async def enter(self) -> None:
        """Take a place that is free, or becomes so in time. Raises `HTTPException`."""
        if not self._free.locked():
            await self._free.acquire()  # at once: mostly there is one, and a timer for each request took its time
        else:
            try:
                async with asyncio.timeout(self._of_kind.wait):
                    await self._free.acquire()
            except TimeoutError as error:
                detail = OTHERS_DOWNLOAD if self._of_kind.status == 429 else BUSY
                raise HTTPException(self._of_kind.status, detail, headers={"Retry-After": "2"}) from error
        self._held = True
        self._counted.inside += 1

    def leave(self) -> None:
        """Give the place back, if it is held."""
        if self._held:
            self._held = False
            self._counted.inside -= 1
            self._free.release()


def kind_of(scope: Scope) -> Kind | None:
    """Which places a request needs; None when it needs none."""
    if scope["type"] != "http" or FREE.fullmatch(path_in_app(scope["path"])):
        return None
    path = path_in_app(scope["path"])
    if SCRAPES.fullmatch(path):
        return "scrapes"
    if scope["method"] == "GET":
        if IMAGES.fullmatch(path):
            return "images"
        if STREAMS.fullmatch(path):
            return "streams"
    if is_upload(scope):
        return "uploads"
    return "judging" if scope["method"] == "POST" and JUDGING.fullmatch(path) else "requests"


def is_upload(scope: Scope) -> bool:
    """Whether the body may be too large to be read into memory: it is, or it does not say how large it is."""
    if body_length(scope) <= SMALL_BODY and b"transfer-encoding" not in dict(scope["headers"]):
        return False
    return scope["method"] in ("POST", "PUT", "PATCH") and largest_body(scope) > SMALL_BODY


def largest_body(scope: Scope) -> int:
    """How many bytes the body of a request to this path may have."""
    return next((largest for paths, largest in UPLOADS if paths.fullmatch(path_in_app(scope["path"]))), SMALL_BODY)


def body_length(scope: Scope) -> int:
    """How long the request says its body is; 0 where it says nothing."""
    length = dict(scope["headers"]).get(b"content-length", b"")
    return int(length) if length.isdigit() and len(length) < 20 else 0


def has_body(scope: Scope) -> bool:
    """Whether the request says that it has a body."""
    return body_length(scope) > 0 or b"transfer-encoding" in dict(scope["headers"])


def in_units(size: int) -> str:
    """A size in megabytes, or in kilobytes where it is smaller."""
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} kB"


def leaving(send: Send, leave: Callable[[], None]) -> Send:
    """`send`, calling `leave` when the answer begins: its work at the database is done then."""

    async def passing(message: Message) -> None:
        if message["type"] == "http.response.start":
            leave()
        await send(message)

    return passing


def replay(messages: deque[Message], receive: Receive) -> Receive:
    """`receive`, giving out `messages` first."""

    async def replaying() -> Message:
        return messages.popleft() if messages else await receive()

    return replaying
