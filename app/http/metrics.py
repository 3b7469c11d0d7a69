"""Numbers for Prometheus: requests and how long they took, over all web processes of this machine."""

from __future__ import annotations

import functools
import os
import time

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUESTS = Counter("illume_requests_total", "Requests answered", ["method", "route", "status"])
REQUEST_SECONDS = Histogram(
    "illume_request_seconds",
    "Seconds until the answer began, waiting at the gate included",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)


class RequestMetrics:
    """ASGI middleware that counts and times requests by route; paths nobody knows are one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count it when its answer begins."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                method = scope["method"] if scope["method"] in METHODS else "other"
                request_counter(method, route, str(message["status"])).inc()
                duration_histogram(route).observe(time.perf_counter() - began)
            await send(message)

        await self.app(scope, receive, counting)


@functools.lru_cache(maxsize=1000)
def request_counter(method: str, route: str, status: str) -> Counter:
    """The counter of these labels; finding it took longer than counting."""
    return REQUESTS.labels(method, route, status)


@functools.lru_cache(maxsize=1000)
def duration_histogram(route: str) -> Histogram:
    """The histogram of a route."""
    return REQUEST_SECONDS.labels(route)


METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def render_metrics() -> tuple[bytes, str]:
    """The numbers of all web processes as Prometheus reads them, and their media type."""
    registry = REGISTRY
    # The client library itself is told by this variable that several processes share a folder of numbers.
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST
