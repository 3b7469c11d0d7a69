"""Liveness, readiness and metrics of the server."""

from __future__ import annotations

import asyncio
import ipaddress
import time

import redis
from fastapi import APIRouter, Request
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app import broker
from app.db.engine import get_engine
from app.db.sessions import session_scope
from app.errors import Forbidden
from app.http.dependencies import bearer_token
from app.http.metrics import render_metrics
from app.http.responses import Json
from app.services.accounts import users
from app.settings import get_settings

router = APIRouter(include_in_schema=False)


@router.get("/healthz")
async def healthz() -> Json:
    """Liveness: the process answers."""
    return Json({"status": "ok"})


@router.get("/readyz")
async def readyz(request: Request) -> Json:
    """Readiness of the database and the broker; 503 if one of them cannot be reached."""
    found: dict[str, str] = await request.app.state.readiness.states()
    ready = all(state == "ok" for state in found.values())
    return Json({"status": "ready" if ready else "not ready", **found}, status_code=200 if ready else 503)


class Readiness:
    """The states of what the server needs. One request at a time finds them out, for all that wait for it.

    So however many strangers ask, one connection is enough.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._states: dict[str, str] = {}
        self._began_at = 0.0

    async def states(self) -> dict[str, str]:
        """The state of the database and of the broker, found out since this was called."""
        asked_at = time.monotonic()
        async with self._lock:
            if self._began_at < asked_at:
                self._began_at = time.monotonic()
                self._states = await run_in_threadpool(find_states)
            return self._states


def find_states() -> dict[str, str]:
    """The state of the database and of the broker, at this moment."""
    return {"database": database_state(), "broker": broker_state()}


def database_state() -> str:
    """`ok`, or that the database cannot be reached."""
    try:
        with get_engine().connect() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return "cannot be reached"
    return "ok"


def broker_state() -> str:
    """`ok`, or that the broker cannot be reached."""
    url = get_settings().redis_url
    if not url:
        return "not configured"
    try:
        with broker.connect(url, seconds=1) as client:
            client.ping()
    except redis.RedisError:
        return "cannot be reached"
    return "ok"


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """Prometheus metrics, for this machine and for holders of a token."""
    token = bearer_token(request)
    if token is not None:
        with session_scope() as session:
            users.actor_for_token(session, token)
    elif not is_loopback(request):
        raise Forbidden("Metrics are available from this machine only: send a token.")
    content, media_type = render_metrics()
    return Response(content, media_type=media_type)


def is_loopback(request: Request) -> bool:
    """Whether the request came from this machine, and not through a proxy on it."""
    if request.client is None or "x-forwarded-for" in request.headers or "forwarded" in request.headers:
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
