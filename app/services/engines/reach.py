"""Which addresses model servers may have, and connections to them."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.models import Engine
from app.services.engines.keys import open_key
from app.services.integrations.safe_http import Reach
from app.services.integrations.server_pool import open_pool
from app.settings import get_settings, names_in
from illume.engines.client import Client


@dataclass(frozen=True, slots=True)
class Connection:
    """What it takes to talk to a server, read from its row. The key is left out where it is printed."""

    url: str
    in_flight: int
    key: str

    def __repr__(self) -> str:
        """The connection without its key."""
        return f"Connection({self.url!r})"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Client]:
        """A client of the server, within one event loop."""
        async with open_pool(self.url, key=self.key, reach=reach_of_engines(), connections=self.in_flight) as send:
            yield Client(send, in_flight=self.in_flight)


def connection_of(engine: Engine) -> Connection:
    """What it takes to talk to a server. Raises `Conflict` for a key that cannot be read any more."""
    return Connection(engine.base_url, engine.in_flight, open_key(engine))


def reach_of_engines() -> Reach:
    """Public addresses over https, and those of the networks that the settings list, by http too."""
    networks = tuple(ipaddress.ip_network(name) for name in names_in(get_settings().engine_addresses))
    return Reach(networks=networks)
