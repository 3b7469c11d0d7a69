"""The two calls that critics make all day, claim and verdict, without what FastAPI does around a route.

Both are a few statements, and finding the route, solving its dependencies and changing threads three times took longer
than running them. Here a request is taken by its path. The short way (`app/fast_path/quick.py`) answers it on the event
loop;
what that leaves is done in one thread, by the route's own function. A request that is in any way odd is left to the
route itself, which says what is wrong with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from fastapi.routing import APIRoute
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import assignments
from app.errors import DomainError
from app.fast_path.quick import Quick
from app.http import problems
from app.http.dependencies import OpenSession, authenticate_bearer, bearer_token
from app.http.gate import NoPlaceError, is_upload, replay, small_body, take
from app.services.judging.give import VerdictIn
from app.services.judging.rows import start_round_if_due
from app.services.kernel.actors import Actor

CLAIM = re.compile(r"/api/v1/projects/([^/]+)/assignments")
VERDICT = re.compile(r"/api/v1/assignments/([^/]+)/verdict")
log = logging.getLogger(__name__)
ROUTES = {route.name: route for route in assignments.router.routes if isinstance(route, APIRoute)}

Done = TypeVar("Done")
Deed = Callable[[Session, Actor], Response]
"""What a request asks for, on the long way."""


class Direct:
    """ASGI middleware that answers claims and verdicts: on the short way, else in one of `threads` threads of its own.

    Who waits over `wait` seconds for one is refused by the gate, behind which it stands.
    """

    def __init__(self, app: ASGIApp, *, threads: int, wait: float) -> None:
        self.app = app
        self.wait = wait
        self.free = asyncio.Semaphore(threads)
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="judging")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        token = bearer_token(request)
        answer = None
        try:
            if token is not None and (found := CLAIM.fullmatch(scope["path"])):
                answer = await self._claim(scope, token, found[1])
            elif token is not None and (found := VERDICT.fullmatch(scope["path"])):
                body, receive = await verdict_of(request, receive)
                answer = None if body is None else await self._give(request, token, found[1], body)
        except (DomainError, DBAPIError, PoolTimeout) as error:
            answer = problems.response_for(request, error)
        await (answer or self.app)(scope, receive, send)

    async def _claim(self, scope: Scope, token: str, slug: str) -> Response:
        scope["route"] = ROUTES["claim"]
        quick = quick_of(scope)
        answer = None if quick is None else await quick.claim(scope, token, slug)
        return answer or await self._do(scope, token, partial(assignments.claim, slug=slug))

    async def _give(self, request: Request, token: str, assignment: str, body: VerdictIn) -> Response:
        scope, key = request.scope, request.headers.get("idempotency-key")
        scope["route"] = ROUTES["give_verdict"]
        quick, answer = quick_of(scope), None
        if quick is not None:
            answer = await quick.give(scope, token, assignment, body, key, partial(self._start_round, scope))
        deed = partial(assignments.give_verdict, assignment_id=assignment, body=body, idempotency_key=key)
        return answer or await self._do(scope, token, deed)

    async def _do(self, scope: Scope, token: str, deed: Deed) -> Response:
        return await self._in_thread(partial(do, scope, token, deed))

    async def _start_round(self, scope: Scope, project_id: int) -> None:
        with contextlib.suppress(NoPlaceError):  # the verdict stands, and the sweep looks again
            await self._in_thread(partial(start_round, scope, project_id))

    async def _in_thread(self, work: Callable[[], Done]) -> Done:
        await take(self.free, self.wait)
        try:
            return await asyncio.get_running_loop().run_in_executor(self.threads, work)
        finally:
            self.free.release()


async def verdict_of(request: Request, receive: Receive) -> tuple[VerdictIn | None, Receive]:
    """The verdict in a request's body, None where it is odd; and what the body is to be read from by others."""
    if request.headers.get("content-type") != "application/json" or is_upload(request.scope):
        return None, receive
    messages = await small_body(request.scope, receive)
    try:
        return VerdictIn.model_validate_json(b"".join(message.get("body", b"") for message in messages)), receive
    except ValidationError:
        return None, replay(messages, receive)


def quick_of(scope: Scope) -> Quick | None:
    """The short way of this process; an application that nobody started has none."""
    quick: Quick | None = scope["app"].state.quick
    return quick


def do(scope: Scope, token: str, deed: Deed) -> Response:
    """Do all of it on the long way, and commit before anybody is told."""
    sessions: OpenSession = scope["app"].state.sessions
    with sessions() as session:
        actor = authenticate_bearer(scope, session, token, reads_only=False)
        answer = deed(session, actor)
    if quick := quick_of(scope):
        quick.remember(token, actor)
    return answer


def start_round(scope: Scope, project_id: int) -> None:
    """Start a project's round if one is due. The verdict by which it is stands, whatever comes of this."""
    sessions: OpenSession = scope["app"].state.sessions
    try:
        with sessions() as session:
            start_round_if_due(session, project_id)
    except (DBAPIError, PoolTimeout) as error:
        log.warning("no round of project %s was started, the sweep looks again: %s", project_id, error)
