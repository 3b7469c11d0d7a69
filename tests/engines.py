"""Model servers in the database, of the server in this process, with what its probe finds."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from app.models import Engine, EngineState
from illume.engines.capabilities import Capabilities
from tests import factories
from tests.model_server import MODEL, ModelServer

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
