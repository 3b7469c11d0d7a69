"""Which models a server lists, and loading and unloading adapters while it runs, as vLLM does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from illume.engines.client import Client
from illume.engines.errors import EngineAway, EngineError, EngineRefused, KeyRefused
from illume.phrases import _

MODELS, LOAD, UNLOAD = "/v1/models", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
LOAD_SECONDS = 120.0
LIST_SECONDS = 60.0
"""How long an adapter that was loaded may take to be listed."""


class CannotSwap(EngineError):
    """The server loads no adapters while it runs."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A model that a server lists: `root` is the model or folder that it was loaded from, `parent` of an adapter."""

    name: str
    root: str | None = None
    parent: str | None = None
    max_tokens: int | None = None


async def list_models(client: Client) -> dict[str, Listed]:
    """The models that a server lists, by name. Raises EngineError."""
    data = await client.get(MODELS)
    found = data.get("data") if isinstance(data, Mapping) else None
    if not isinstance(found, list):
        raise EngineError(_("the server's list of models has another shape: is this the address of its interface?"))
    return {
        one["id"]: _read_listed(one) for one in found if isinstance(one, Mapping) and isinstance(one.get("id"), str)
    }


def _read_listed(data: Mapping[str, Any]) -> Listed:
    def text(name: str) -> str | None:
        return data[name] if isinstance(data.get(name), str) else None

    most = data.get("max_model_len")
    return Listed(str(data["id"]), text("root"), text("parent"), most if isinstance(most, int) else None)


async def list_if_possible(client: Client) -> dict[str, Listed]:
    """As `list_models`; none from a server that fails to list them, such as `transformers serve` without a cache."""
    try:
        return await list_models(client)
    except EngineRefused as error:
        if error.status < 500:
            raise
        return {}


def is_itself(listed: Mapping[str, Listed], name: str) -> bool:
    """Whether a server lists a name for what it serves itself, and not for an adapter beside that.

    Where a server answers under any name, only its list says what answers: no request chooses an adapter by its name.
    """
    return name in listed and listed[name].parent is None


async def loads_adapters(client: Client) -> bool:
    """Whether the server loads adapters while it runs: it misses the fields of an empty request to do so."""
    try:
        await client.post_text(LOAD, {}, seconds=20)
    except KeyRefused:
        return False
    except EngineRefused as error:
        return error.status in (400, 422)
    return False


async def load(client: Client, name: str, path: str) -> None:
    """Load the adapter in a folder, as the server sees it, under a name, and wait until the server lists it.

    Loading it a second time is no error. Raises CannotSwap, and EngineError with what the server says.
    """
    if name in await list_if_possible(client):
        return
    try:
        await client.post_text(LOAD, {"lora_name": name, "lora_path": path}, seconds=LOAD_SECONDS)
    except EngineRefused as error:
        if error.status in (404, 405, 501) and not await loads_adapters(client):
            raise CannotSwap(_("the server loads no adapters while it runs")) from error
        # A load that was cut off may have been done: asking again is refused as a double then.
        if not (error.status == 400 and "already" in str(error)):
            raise
    await wait_until_listed(client, name)


async def wait_until_listed(client: Client, name: str, *, seconds: float = LIST_SECONDS, pause: float = 0.5) -> None:
    """Wait until the server lists a name. Raises EngineAway."""
    until = time.monotonic() + seconds
    while name not in await list_models(client):
        if time.monotonic() > until:
            raise EngineAway(
                _("the server does not list '%(name)s' after %(seconds)s s", name=name, seconds=f"{seconds:g}")
            )
        await asyncio.sleep(pause)


async def unload(client: Client, name: str) -> bool:
    """Unload an adapter; that it is not there is no error. Returns whether the server has it no longer.

    One that was loaded by hand may stay: not every server unloads adapters while it runs. Raises EngineError.
    """
    try:
        await client.post_text(UNLOAD, {"lora_name": name}, seconds=LOAD_SECONDS)
    except EngineRefused as error:
        if error.status not in (400, 404, 405, 501):
            raise
        return name not in await list_if_possible(client)
    return True
