"""A model server in this process, and a client of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest

from app.services.integrations.safe_http import Reach
from app.services.integrations.server_pool import open_pool
from illume.engines import client
from illume.engines.client import Client
from illume.engines.sampling import run_watched
from tests.model_server import ModelServer, running_server

Result = TypeVar("Result")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    monkeypatch.setattr(client, "PAUSE", 0.01)
    with running_server() as found:
        yield found


def with_client(
    server: ModelServer,
    use: Callable[[Client], Awaitable[Result]],
    *,
    watch: Callable[[], None] = lambda: None,
    key: str = "",
    **options: Any,
) -> Result:
    """The result of `use` with a client of the server."""

    async def work() -> Result:
        async with open_pool(server.url, key=key, reach=Reach(("http",), private=True), connections=16) as send:
            return await use(Client(send, **options))

    return run_watched(work(), watch)
