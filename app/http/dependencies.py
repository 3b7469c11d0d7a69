"""Dependencies of routes: the database session and the actor."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import Annotated, Any, TypeVar

from anyio import CancelScope
from fastapi import Depends, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope as RequestScope

from app.db.judging_pool import JudgingPool, Transaction
from app.db.sessions import session_factory
from app.errors import DomainError, Invalid, TooLarge, Unauthenticated
from app.http import problems, rate_limits
from app.http.forms import FormRequest
from app.http.gate import is_upload
from app.models import Scope
from app.services.accounts import credentials, sessions, users
from app.services.judging.rows import start_round_if_due
from app.services.kernel.actors import Actor, require_scope
from app.services.kernel.rights import Right
from app.services.projects import projects
from illume.phrases import _

log = logging.getLogger(__name__)
SESSION_COOKIE = "illume_session"
SEND_A_CREDENTIAL = _("Send a token: Authorization: Bearer TOKEN.")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


async def get_session(request: Request) -> AsyncIterator[Session]:
    """A session for one request, committed when its route returns and before the response leaves.

    Only calls to the database run in a thread; creating a session does not.
    """
    session = request.state.session = session_factory()()
    try:
        yield session
        await run_in_threadpool(session.commit)
    finally:
        if session.in_transaction():
            with CancelScope(shield=True):
                await run_in_threadpool(session.close)
        else:
            session.close()


@contextlib.contextmanager
def session_in_thread() -> Iterator[Session]:
    """The same, for a request that does all its work in one thread."""
    with session_factory()() as session:
        yield session
        session.commit()


OpenSession = Callable[[], contextlib.AbstractContextManager[Session]]


def sessions_of(request: Request) -> OpenSession:
    """What makes sessions for work in a thread of its own, each of which commits at its end."""
    sessions: OpenSession = request.app.state.sessions
    return sessions


SessionDep = Annotated[Session, Depends(get_session, scope="function")]


def bearer_token(request: Request) -> str | None:
    """Return the token of the Authorization header."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token.strip() else None


# Declares the authentication in the OpenAPI description; `bearer_token` reads the header.
bearer_scheme = HTTPBearer(
    auto_error=False, description="A token, created on the account page or with `illume token add`."
)


def authenticate_bearer(scope: RequestScope, session: Session, token: str, *, reads_only: bool) -> Actor:
    """Return the bearer of a token.

    Raises `Unauthenticated`, `TooMany`, and `Forbidden` for a write with a token that may only read.
    """
    actor = users.actor_for_token(session, token)
    rate_limits.count_use(scope, actor)
    if not reads_only:
        require_scope(actor, Scope.write)
    return actor


def get_actor(request: Request, session: SessionDep, _: Annotated[object, Security(bearer_scheme)]) -> Actor:
    """Return the bearer of the request's token. For reads, a browser's session works too.

    Raises `Unauthenticated`, `TooMany`, and `Forbidden` for a write with a token that may only read.
    """
    reads_only = request.method in SAFE_METHODS
    token = bearer_token(request)
    if token is not None:
        return authenticate_bearer(request.scope, session, token, reads_only=reads_only)
    cookie = request.cookies.get(SESSION_COOKIE)
    found = sessions.actor_for_cookie(session, cookie) if cookie and reads_only else None
    if found is None:
        raise Unauthenticated(SEND_A_CREDENTIAL)
    return found[0]


ActorDep = Annotated[Actor, Depends(get_actor, scope="function")]


# Claims and verdicts: a transaction of the judging pool, on the event loop


async def judging_pool(request: Request) -> JudgingPool:
    """The judging pool of this process."""
    pool: JudgingPool = request.app.state.judging
    return pool


JudgingPoolDep = Annotated[JudgingPool, Depends(judging_pool)]


async def get_judge(request: Request, _: Annotated[object, Security(bearer_scheme)]) -> Actor:
    """The bearer of the request's token, looked up on the event loop.

    Raises `Unauthenticated`, `TooMany`, and `Forbidden` where the token may only read.
    """
    async with request.app.state.judging.reading() as transaction:
        return await authenticate_judge(request, transaction)


async def authenticate_judge(request: Request, transaction: Transaction, *, lock: bool = False) -> Actor:
    """The bearer of the request's token, in a transaction; `lock` takes their lock for claims with it.

    Raises `Unauthenticated`, `TooMany`, and `Forbidden` where the token may only read.
    """
    token = bearer_token(request)
    if token is None:
        raise Unauthenticated(SEND_A_CREDENTIAL)
    actor = await credentials.authenticate_token(transaction, token, lock=lock)
    rate_limits.count_use(request.scope, actor)
    require_scope(actor, Scope.write)
    return actor


async def authenticate_reader(request: Request, transaction: Transaction) -> Actor:
    """Return the bearer of the request's token, or the person behind its cookie, for a request that only reads.

    Raises `Unauthenticated`, `TooMany`.
    """
    token = bearer_token(request)
    if token is not None:
        actor = await credentials.authenticate_token(transaction, token)
        rate_limits.count_use(request.scope, actor)
        return actor
    cookie = request.cookies.get(SESSION_COOKIE)
    found = await credentials.authenticate_cookie(transaction, cookie) if cookie else None
    if found is None:
        raise Unauthenticated(SEND_A_CREDENTIAL)
    return found[0]


JudgeDep = Annotated[Actor, Depends(get_judge)]


async def identify(request: Request) -> Actor:
    """Return who sends a request by its headers alone, before its body is read.

    Raises `Unauthenticated`, `TooMany`, and `Unavailable` where the database does not answer.
    """
    pool = await judging_pool(request)
    try:
        async with pool.transaction() as transaction:
            return await authenticate_reader(request, transaction)
    except DBAPIError as error:
        raise problems.to_domain_error(error) or problems.DATABASE_UNREACHABLE from error


# Who may, before what is wrong with a body

Caller = Callable[[Session, Actor, Mapping[str, str]], object]
"""Checks a caller's rights by the parameters of the path alone. Raises what the route raises for lack of a right."""
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def before_body(check: Caller) -> Callable[[Endpoint], Endpoint]:
    """Say how a route checks its caller, so that nobody else learns what is wrong with the body that they sent."""

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.__dict__["check_caller"] = check
        return endpoint

    return mark


def in_project(*needs: Right) -> Caller:
    """The check of a route of one project."""
    return lambda session, actor, path: projects.get_project(session, actor, path["slug"], *needs)


class ApiRoute(APIRoute):
    """A route that reads forms by `read_form`, and refuses its caller before it says what is wrong with a body.

    A body is read and parsed before the route runs, which checks the caller. So where it is wrong, or so large that it
    is stored on its way, the caller is checked by `before_body` first; others are checked once, by their service.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of the route's requests."""
        handle = super().get_route_handler()
        check: Caller | None = getattr(self.endpoint, "check_caller", None)
        has_body = self.body_field is not None

        async def handle_checked(request: Request) -> Response:
            if has_body and is_upload(request.scope):
                await run_in_threadpool(check_caller, request, check)
            try:
                return await handle(FormRequest(request.scope, request.receive) if has_body else request)
            except (RequestValidationError, HTTPException, Invalid, TooLarge) as error:
                if has_body:
                    await run_in_threadpool(check_caller, request, check)
                if isinstance(error, HTTPException) and isinstance(error.__cause__, DomainError):
                    raise error.__cause__ from error  # FastAPI hides what a form's reader says
                raise

        return handle_checked


def check_caller(request: Request, check: Caller | None) -> None:
    """Raise what keeps the caller from using a route, if something does.

    It uses the session of the request, where there is one already: nobody waits for a connection while holding one.
    """
    held = getattr(request.state, "session", None)
    with sessions_of(request)() if held is None else contextlib.nullcontext(held) as session:
        actor = get_actor(request, session, None)
        if check is not None:
            check(session, actor, request.path_params)


def start_due_round(request: Request, project_id: int) -> None:
    """Start the round that is due by a verdict. Where that fails the verdict stands, and the sweep looks again."""
    try:
        with sessions_of(request)() as session:
            start_round_if_due(session, project_id)
    except (DBAPIError, PoolTimeout) as error:
        log.warning("no round of project %s was started, the sweep looks again: %s", project_id, error)
