"""Probing a model server, in a worker."""

from __future__ import annotations

from sqlalchemy import update

from app.db.sessions import session_scope
from app.models import Engine, EngineState
from app.services.engines import probing
from app.services.engines.keys import seal
from tests.engines import FOUND, make_engine
from tests.model_server import ModelServer
from worker.process import WorkerProcess


def probed(worker: WorkerProcess, server: ModelServer, **values: object) -> Engine:
    """A server after its probe."""
    with session_scope() as session:
        engine_id = make_engine(session, server, **{"state": EngineState.probing, "capabilities": {}, **values}).id
    probing.probe_engine(engine_id, check=worker.check)
    with session_scope() as session:
        return session.get_one(Engine, engine_id)


def test_keeps_what_the_server_can_do(worker: WorkerProcess, server: ModelServer) -> None:
    server.behaviour.key = "right"
    found = probed(worker, server, sealed_key=seal("right"))
    assert (found.state, found.error) == (EngineState.ready, None)
    assert found.capabilities == FOUND.as_json()
    assert found.probed_at is not None


def test_a_wrong_key_is_final(worker: WorkerProcess, server: ModelServer) -> None:
    server.behaviour.key = "right"
    found = probed(worker, server, sealed_key=seal("wrong"))
    assert found.state is EngineState.failed
    assert "refuses the key" in (found.error or "")
    assert "wrong" not in (found.error or "")


def test_a_name_that_a_server_answers_under_but_does_not_list_is_refused(
    worker: WorkerProcess, server: ModelServer
) -> None:
    server.behaviour.any_name = True
    found = probed(worker, server, model="mistyped")
    assert (found.state, found.capabilities) == (EngineState.failed, {})
    assert (found.error or "").startswith("model: the server answers under any name")


def test_a_server_that_starts_slowly_is_tried_again(worker: WorkerProcess, server: ModelServer) -> None:
    url, server.url = server.url, "http://127.0.0.1:9"
    found = probed(worker, server)
    assert (found.state, "cannot be reached" in (found.error or "")) == (EngineState.probing, True)
    with session_scope() as session:
        session.get_one(Engine, found.id).base_url = url
    probing.probe_engine(found.id, check=worker.check)
    with session_scope() as session:
        assert session.get_one(Engine, found.id).state is EngineState.ready


def test_but_not_for_ever(worker: WorkerProcess, server: ModelServer) -> None:
    server.url = "http://127.0.0.1:9"
    found = probed(worker, server)
    with session_scope() as session:
        session.execute(update(Engine).values(requested_at=Engine.requested_at - probing.PATIENCE))
    probing.probe_engine(found.id, check=worker.check)
    with session_scope() as session:
        assert session.get_one(Engine, found.id).state is EngineState.failed
