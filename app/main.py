"""The web application: routers, static files, error handlers and middleware. No logic."""

from __future__ import annotations

import contextlib
import gc
import re
import threading
from collections.abc import AsyncIterator

import anyio.to_thread
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app import api, queue, web
from app.api import health
from app.api.openapi import description
from app.db import engine
from app.db.judging_pool import JudgingPool
from app.http import problems
from app.http.dependencies import identify, session_in_thread
from app.http.door import Door, HeadRequests, Hosts, SubPath
from app.http.forms import MAPPING_BYTES
from app.http.gate import LARGEST_BODY, Gate, Kind, Places
from app.http.headers import SecurityHeaders
from app.http.live_pages import LivePageCache
from app.http.metrics import RequestMetrics
from app.http.storable import CHECK_REQUEST
from app.services.kernel import secret_key
from app.settings import ROOT, Settings, get_settings
from app.web import errors
from app.web.guide import Guide
from app.web.readers import Readers

FOREVER = "public, max-age=31536000, immutable"
VERSIONED = re.compile(r"^at-[0-9a-f]{12}/")


class Static(StaticFiles):
    """Static files. A file requested with a version, in its query or as a path prefix, never changes."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the file, with a header that says how long it may be cached."""
        address = VERSIONED.sub("", path)
        response = await super().get_response(address, scope)
        if response.status_code in (200, 304):
            versioned = b"v=" in scope["query_string"] or address != path
            response.headers["Cache-Control"] = FOREVER if versioned else "public, max-age=300"
        return response


def create_app() -> FastAPI:
    """Create the application from the settings of this process."""
    settings = get_settings()
    app = FastAPI(
        title="Illume",
        version="1",
        summary="Critics pick the rationales that fit; their picks tune the model that wrote them.",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        max_body_size=LARGEST_BODY,
        form_limits={"max_files": 2, "max_fields": 20, "max_part_size": MAPPING_BYTES},
        middleware=[
            Middleware(SubPath),
            Middleware(HeadRequests),
            Middleware(Readers),
            Middleware(SecurityHeaders),
            Middleware(RequestMetrics),
            Middleware(Door, hosts=Hosts.of(settings), refuse=problems.refusal_response),
            Middleware(Gate, places=places(settings), refuse=problems.refusal_response, identify=identify),
            Middleware(LivePageCache),
        ],
    )
    # Routes are tried in this order: those that critics use all day come first.
    app.include_router(web.critics_router, include_in_schema=False, dependencies=CHECK_REQUEST)
    app.include_router(api.router, prefix="/api/v1", dependencies=CHECK_REQUEST)
    app.include_router(health.router)
    app.include_router(web.router, include_in_schema=False, dependencies=CHECK_REQUEST)
    # Only static files are compressed: a page holds its reader's tokens, which compression could leak.
    app.mount("/static", GZipMiddleware(Static(directory=ROOT / "static")), name="static")
    app.mount("/help", GZipMiddleware(Guide()), name="help")
    app.state.sessions = session_in_thread
    app.state.judging = JudgingPool(settings.database_url, size=engine.ASYNC_CONNECTIONS, wait=settings.gate_wait)
    app.state.readiness = health.Readiness()
    problems.install(app, error_page=errors.render)
    app.openapi = lambda: description.describe(app)  # type: ignore[method-assign]
    return app


def places(settings: Settings) -> dict[Kind, Places]:
    """How many requests of each kind run at once. In all, as many as connections, less one for health checks."""
    return {
        "requests": Places(settings.pool_size, settings.gate_wait),
        "judging": Places(engine.JUDGING_CONNECTIONS, settings.gate_wait),
        "images": Places(engine.IMAGE_CONNECTIONS, 5 * settings.gate_wait),
        "uploads": Places(engine.UPLOAD_CONNECTIONS, 5 * settings.gate_wait),
        "streams": Places(engine.STREAM_SLOTS, 0.05, status=429),
        "callers": Places(engine.CALLER_CONNECTIONS, settings.gate_wait),
        "scrapes": Places(engine.SCRAPE_CONNECTIONS, settings.gate_wait),
    }


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Allow as many threads as the gate has places, store a check of the secret key, and have what is due picked up."""
    settings = get_settings()
    limiter = anyio.to_thread.current_default_thread_limiter()
    limiter.total_tokens = max(limiter.total_tokens, settings.pool_size + engine.EXTRA_CONNECTIONS + 8)
    await anyio.to_thread.run_sync(secret_key.store_check)
    await anyio.to_thread.run_sync(queue.send_now, queue.SWEEP)
    if threading.current_thread() is threading.main_thread():  # a process of its own: tests have many applications
        # What has been loaded by now stays: the garbage collector need not scan it again for each export's rows.
        gc.collect()
        gc.freeze()
    await app.state.judging.open()
    try:
        yield
    finally:
        await app.state.judging.close()
