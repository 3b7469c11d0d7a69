"""Derivatives: images at smaller widths, made when they are first asked for and kept in the store."""

from __future__ import annotations

import asyncio
import functools
import logging
from concurrent.futures import ThreadPoolExecutor

from app.errors import Unavailable
from app.services.kernel import isolated
from app.services.kernel.store import DerivativeWidth, get_store
from app.services.prompts.decoding import shrink

log = logging.getLogger(__name__)
# Half of the places of child processes: imports and uploads go on while a page of new photographs is opened.
MAX_MAKERS = max(1, isolated.MAX_CALLS // 2)


def find(sha256: str, width: DerivativeWidth) -> bytes | None:
    """The derivative of an image, None where it was not made yet."""
    return get_store().read_derivative(sha256, width)


async def make(sha256: str, width: DerivativeWidth) -> bytes | None:
    """Make the derivative of an image in a thread, and keep it. Returns None where the image itself has to do.

    Those who ask wait in a queue of their own, not for the threads of other requests. Raises `NotFound` for an image
    that is gone.
    """
    return await asyncio.get_running_loop().run_in_executor(_makers(), _make, sha256, width)


def _make(sha256: str, width: DerivativeWidth) -> bytes | None:
    """Make a derivative, unless somebody else has meanwhile."""
    store = get_store()
    made = store.read_derivative(sha256, width)
    if made is not None:
        return made
    try:
        made = isolated.call(shrink, store.read_bytes(sha256), int(width))
    except (isolated.Unreadable, Unavailable) as error:
        log.warning("image %s was not made %d px wide: %s", sha256, width, error.detail)
        return None
    store.put_derivative(sha256, width, made)
    return made


@functools.cache
def _makers() -> ThreadPoolExecutor:
    """The threads that wait for child processes."""
    return ThreadPoolExecutor(MAX_MAKERS, thread_name_prefix="derivative")
