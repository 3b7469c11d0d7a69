"""Model servers in the database, with what the probe of the one in this process finds; and real ones as programs."""

from __future__ import annotations

import os
import socket
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.models import Engine, EngineState
from illume.engines.capabilities import Capabilities
from tests import factories
from tests.model_server import MODEL, ModelServer
from tests.worker import loop

FOUND = Capabilities(
    n=True,
    seeds=True,
    logprobs="before",
    pictures=2,
    order="kept",
    json_schema=True,
    adapters=True,
    overrides=True,
    root=MODEL,
    max_tokens=4096,
)


def make_engine(session: Session, server: ModelServer | None = None, **values: Any) -> Engine:
    """A model server that was probed."""
    given = {
        "name": "gpu",
        "base_url": "https://8.8.8.8" if server is None else server.url,
        "model": MODEL,
        "state": EngineState.ready,
        "capabilities": FOUND.as_json(),
        **values,
    }
    made = factories.add(session, Engine(**given))
    session.refresh(made)
    return made


@contextmanager
def serving(
    command: Sequence[str], log: Path, *, seconds: float, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The address of a model server that a command starts, without its `--port`, once it answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    with log.open("wb") as file:
        child = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=file,
            stderr=file,
            env={**os.environ, **(environment or {})},
        )

        def is_up() -> bool:
            assert child.poll() is None, log.read_text()
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
            except OSError:
                return False

        try:
            loop.wait_until(is_up, seconds=seconds)
            yield f"http://127.0.0.1:{port}"
        finally:
            child.terminate()
            child.wait(60)
