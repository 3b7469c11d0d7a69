"""Connections to one server that an admin named, kept open between requests, each only to an address that was checked.

The server is resolved and checked by `safe_http` for every new connection, so that a later DNS response cannot redirect
it. Nothing is redirected, and answers are limited in size.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpcore

from app.errors import DomainError
from app.services.integrations.safe_http import Reach, find_place
from illume.engines.client import Reply
from illume.engines.errors import EngineAway, EngineSlow
from illume.phrases import _

LARGEST = 32 << 20
CONNECT_SECONDS = 10.0
POOL_SIZE = 8
"""Connections of one pool: for each request httpcore goes through all of them, and for each idle one again."""
HIDDEN = "***"
FAILED = (OSError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol)


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to an address of the server that is allowed, whatever the host name means by then."""

    def __init__(self, url: str, reach: Reach) -> None:
        self._url, self._reach = url, reach
        self._anyio = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - that of the URL
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve, check and connect."""
        place = await asyncio.to_thread(find_place, self._url, self._reach, seconds=timeout or CONNECT_SECONDS)
        return await self._anyio.connect_tcp(place.address, port, timeout, local_address, socket_options)


class ServerPool:
    """Requests below one address: `illume.engines.client.Send`."""

    def __init__(self, pools: Sequence[httpcore.AsyncConnectionPool], url: str, key: str) -> None:
        self._in_flight = dict.fromkeys(pools, 0)
        self._url, self._key = url, key

    async def __call__(self, method: str, path: str, body: bytes | None, *, seconds: float) -> Reply:
        """Send a request. Raises EngineAway, and EngineSlow where there is no answer within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                return await self._send(method, path, body)
        except (TimeoutError, httpcore.TimeoutException) as error:
            raise EngineSlow(
                _("the server at %(host)s did not answer within %(seconds)s s", host=self._host, seconds=f"{seconds:g}")
            ) from error
        except DomainError as error:
            raise EngineAway(error.detail) from error
        except FAILED as error:
            raise EngineAway(
                _(
                    "the server at %(host)s cannot be reached: %(reason)s",
                    host=self._host,
                    reason=str(error) or _("it hung up"),
                )
            ) from error

    @contextlib.contextmanager
    def _choose_pool(self) -> Iterator[httpcore.AsyncConnectionPool]:
        """The pool with the fewest requests, the first one of several."""
        pool = min(self._in_flight, key=self._in_flight.__getitem__)
        self._in_flight[pool] += 1
        try:
            yield pool
        finally:
            self._in_flight[pool] -= 1

    async def _send(self, method: str, path: str, body: bytes | None) -> Reply:
        headers = {"User-Agent": "Illume", "Accept": "application/json", "Accept-Encoding": "identity"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        timeouts = {"connect": CONNECT_SECONDS}
        with self._choose_pool() as pool:
            request = pool.stream(
                method, self._url + path, headers=list(headers.items()), content=body, extensions={"timeout": timeouts}
            )
            return await self._read(request)

    async def _read(self, request: AbstractAsyncContextManager[httpcore.Response]) -> Reply:
        async with request as response:
            data = bytearray()
            async for piece in response.aiter_stream():
                data += piece
                if len(data) > LARGEST:
                    raise EngineAway(
                        _(
                            "the answer of the server at %(host)s is over %(size)s MB",
                            host=self._host,
                            size=LARGEST >> 20,
                        )
                    )
        text = bytes(data)
        if response.status >= 400 and self._key:  # some servers repeat the key in what they say of it
            text = text.replace(self._key.encode(), HIDDEN.encode())
        return Reply(response.status, text, _retry_after(response))

    @property
    def _host(self) -> str:
        return urlsplit(self._url).netloc


def _retry_after(response: httpcore.Response) -> float | None:
    """The seconds that the server asks to wait, by a number or a date."""
    text = next((value.decode("latin-1") for name, value in response.headers if name.lower() == b"retry-after"), "")
    if text.strip().isdecimal():
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    return None


@asynccontextmanager
async def open_pool(url: str, *, key: str, reach: Reach, connections: int) -> AsyncIterator[ServerPool]:
    """Connections to the server at `url`, closed at the end with whatever is still in flight."""
    backend = CheckedBackend(url, reach)
    context = ssl.create_default_context() if url.startswith("https:") else None
    async with contextlib.AsyncExitStack() as stack:
        pools = []
        for begin in range(0, connections, POOL_SIZE):
            size = min(POOL_SIZE, connections - begin)
            pool = httpcore.AsyncConnectionPool(
                context, max_connections=size, max_keepalive_connections=size, network_backend=backend
            )
            pools.append(await stack.enter_async_context(pool))
        yield ServerPool(pools, url, key)
