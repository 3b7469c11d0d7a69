"""The gate: no more requests at the database than it has connections for, ahead of everything else."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.services.kernel import traffic

FREE = re.compile(r"/static/.*|/healthz|/readyz|/metrics|/favicon\.ico|/api/v1/openapi\.json")
IMAGES = re.compile(r"/api/v1/images/[^/]*")
JUDGING = re.compile(
    r"/api/v1/projects/[^/]+/assignments|/api/v1/assignments/[^/]+/verdict"
    r"|/annotate/[^/]+/next|/annotate/[^/]+/assignments/[^/]+/verdict"
)
STREAMS = re.compile(r"/api/v1/projects/[^/]+/dataset|/api/v1/imports/[^/]+/problems")
IMPORTS = re.compile(r"/(api/v1|admin)/projects/[^/]+/imports")
SMALL_BODY = 256 * 1024
LARGEST_BODY = 32 * 1024 * 1024
LARGEST_IMPORT = 2 * 1024 * 1024 * 1024 + SMALL_BODY

Kind = Literal["requests", "judging", "images", "uploads", "streams"]
BUSY = "The server is busy at this moment: try again in a few seconds."

Refuse = Callable[[Request, int, str], Response]
"""Makes the answer to a refused request: of a request, a status and a sentence."""


@dataclass(frozen=True, slots=True)
class Places:
    """How many requests of a kind may be in flight, and how many seconds others wait; those beyond get `status`."""

    size: int
    wait: float
    status: int = 503


class Gate:
    """ASGI middleware that lets as many requests in as there are connections for.

    Judging, images, uploads and streams have places of their own, so that nothing else holds up the critics. A place is
    taken when a small body is there, so that a slow sender holds none, and given back when the answer begins (a
    stream's when it ends), so that a slow reader holds none.
    """

    def __init__(self, app: ASGIApp, *, places: Mapping[Kind, Places], refuse: Refuse) -> None:
        self.app = app
        self.refuse = refuse
        self._kinds = {kind: (of_kind, asyncio.Semaphore(of_kind.size)) for kind, of_kind in places.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on once there is a place for it."""
        kind = kind_of(scope)
        if kind is None:
            await self.app(scope, receive, send)
            return
        largest = LARGEST_IMPORT if IMPORTS.fullmatch(scope["path"]) else LARGEST_BODY
        if body_length(scope) > largest:
            await self.refuse(Request(scope), 413, f"The request has over {largest >> 20} MB.")(scope, receive, send)
            return
        places, free = self._kinds[kind]
        try:
            body = await small_body(scope, receive)
            counted = traffic.streams if kind == "streams" else traffic.requests
            async with place(free, places.wait, counted) as leave:
                await self.app(scope, replay(body, receive), send if kind == "streams" else leaving(send, leave))
        except NoPlaceError:
            detail = "Others are downloading: try again when they are done." if kind == "streams" else BUSY
            response = self.refuse(Request(scope), places.status, detail)
            response.headers["Retry-After"] = "2"
            await response(scope, receive, send)
        except ClientLeftError:
            return


class NoPlaceError(Exception):
    """No place became free in time."""


class ClientLeftError(Exception):
    """The client went away before its request was complete."""


def kind_of(scope: Scope) -> Kind | None:
    """Which places a request needs; None when it needs none."""
    if scope["type"] != "http" or FREE.fullmatch(scope["path"]):
        return None
    if scope["method"] in ("GET", "HEAD"):
        if IMAGES.fullmatch(scope["path"]):
            return "images"
        if STREAMS.fullmatch(scope["path"]):
            return "streams"
    if is_upload(scope):
        return "uploads"
    return "judging" if scope["method"] == "POST" and JUDGING.fullmatch(scope["path"]) else "requests"


def is_upload(scope: Scope) -> bool:
    """Whether the request's body is large, or does not say how large it is."""
    return b"transfer-encoding" in dict(scope["headers"]) or body_length(scope) > SMALL_BODY


def body_length(scope: Scope) -> int:
    """How long the request says its body is; 0 where it says nothing."""
    length = dict(scope["headers"]).get(b"content-length", b"")
    return int(length) if length.isdigit() else 0


async def take(free: asyncio.Semaphore, wait: float) -> None:
    """Take one of the places that are free, or become so within `wait` seconds. Raises `NoPlaceError`."""
    if not free.locked():
        await free.acquire()  # at once: mostly there is one, and a timer for each request took its time
        return
    try:
        async with asyncio.timeout(wait):
            await free.acquire()
    except TimeoutError as error:
        raise NoPlaceError from error


@contextlib.asynccontextmanager
async def place(free: asyncio.Semaphore, wait: float, counted: traffic.Traffic) -> AsyncIterator[Callable[[], None]]:
    """Hold a place while the block runs, or until the function that it gets is called. Raises `NoPlaceError`."""
    await take(free, wait)
    held = True
    counted.inside += 1

    def leave() -> None:
        nonlocal held
        if held:
            held = False
            counted.inside -= 1
            free.release()

    try:
        yield leave
    finally:
        leave()


def leaving(send: Send, leave: Callable[[], None]) -> Send:
    """`send`, calling `leave` when the answer begins: its work at the database is done then."""

    async def passing(message: Message) -> None:
        if message["type"] == "http.response.start":
            leave()
        await send(message)

    return passing


async def small_body(scope: Scope, receive: Receive) -> deque[Message]:
    """The messages of a small body, read whole; those of an upload are left to whoever reads it."""
    messages: deque[Message] = deque()
    if is_upload(scope) or body_length(scope) == 0:
        return messages
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientLeftError
        messages.append(message)
        if not message.get("more_body", False):
            return messages


def replay(messages: deque[Message], receive: Receive) -> Receive:
    """`receive`, giving out `messages` first."""

    async def replaying() -> Message:
        return messages.popleft() if messages else await receive()

    return replaying
