"""Prometheus metrics: requests and their duration, over all web processes of this machine."""

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
    """ASGI middleware that counts and times requests by route. Unknown paths count as one route."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count it when its response begins."""
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
    """The counter with these labels, cached: looking it up took longer than counting."""
    return REQUESTS.labels(method, route, status)


@functools.lru_cache(maxsize=1000)
def duration_histogram(route: str) -> Histogram:
    """The histogram of a route."""
    return REQUEST_SECONDS.labels(route)


METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def render_metrics() -> tuple[bytes, str]:
    """Render the metrics of all web processes for Prometheus. Return them with their media type."""
    registry = REGISTRY
    # This variable is how the client library itself learns that several processes share a folder of metrics.
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST
