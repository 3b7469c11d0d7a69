"""The two calls that critics make all day, claim and verdict, without what FastAPI does around a route.

Both are a few statements, and finding the route, solving its dependencies and changing threads three times took longer
than running them. Here a request is taken by its path, and all its work is done in one thread. What it does is the
route's own function; a request that is in any way unusual is left to the route, which says what is wrong with it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from fastapi.routing import APIRoute
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app import problems
from app.api import assignments
from app.deps import Sessions, bearer_of, bearer_token
from app.errors import DomainError
from app.gate import is_upload, replay, small_body, take
from app.services.actors import Actor
from app.services.verdicts import VerdictIn

CLAIM = re.compile(r"/api/v1/projects/([^/]+)/assignments")
VERDICT = re.compile(r"/api/v1/assignments/([^/]+)/verdict")
ROUTES = {route.name: route for route in assignments.router.routes if isinstance(route, APIRoute)}

Deed = Callable[[Session, Actor], Response]


class Direct:
    """ASGI middleware that answers claims and verdicts, in `threads` threads of its own.

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
        deed, receive = (None, receive) if token is None else await deed_of(request, receive)
        if token is None or deed is None:
            await self.app(scope, receive, send)
            return
        work = partial(do, scope, token, deed)
        await take(self.free, self.wait)
        try:
            response = await asyncio.get_running_loop().run_in_executor(self.threads, work)
        except (DomainError, DBAPIError, PoolTimeout) as error:
            response = problems.answer_to(request, error)
        finally:
            self.free.release()
        await response(scope, receive, send)


async def deed_of(request: Request, receive: Receive) -> tuple[Deed | None, Receive]:
    """What the request asks for, None where that is for others to find out; and what its body is to be read from."""
    scope = request.scope
    if found := CLAIM.fullmatch(scope["path"]):
        scope["route"] = ROUTES["claim"]
        return partial(assignments.claim, slug=found[1]), receive
    found = VERDICT.fullmatch(scope["path"])
    if found is None or request.headers.get("content-type") != "application/json" or is_upload(scope):
        return None, receive
    messages = await small_body(scope, receive)
    try:
        body = VerdictIn.model_validate_json(b"".join(message.get("body", b"") for message in messages))
    except ValidationError:
        return None, replay(messages, receive)
    scope["route"] = ROUTES["give_verdict"]
    key = request.headers.get("idempotency-key")
    return partial(assignments.give_verdict, assignment_id=found[1], body=body, idempotency_key=key), receive


def do(scope: Scope, token: str, deed: Deed) -> Response:
    """Do all of it, and commit before anybody is told."""
    sessions: Sessions = scope["app"].state.sessions
    with sessions() as session:
        return deed(session, bearer_of(scope, session, token, reads_only=False))
