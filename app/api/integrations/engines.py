"""Model servers that projects may sample from."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter
from sqlalchemy.orm import Session

from app.api.schemas import EngineChange, EngineIn, EngineOut, Limit, ListOut
from app.http.dependencies import ActorDep, ApiRoute, SessionDep, before_body
from app.models import Engine
from app.services.engines import engines
from app.services.kernel.actors import Actor, parse_id, require_admin
from app.services.kernel.paging import slice_page

router = APIRouter(tags=["engines"], route_class=ApiRoute)


def known_engine(session: Session, actor: Actor, path: Mapping[str, str]) -> object:
    """A model server, for an admin of the installation. Raises `NotFound`, `Forbidden`."""
    return engines.get_engine(session, actor, parse_id(path["engine_id"]))


def engine_out(session: Session, engine: Engine) -> EngineOut:
    """A model server; never its key."""
    return EngineOut(
        id=str(engine.id),
        name=engine.name,
        kind="openai",
        base_url=engine.base_url,
        model=engine.model,
        revision=engine.revision,
        has_key=engine.sealed_key is not None,
        adapters_path=engine.adapters_path,
        in_flight=engine.in_flight,
        state=engine.state,
        error=engine.error,
        capabilities=engine.capabilities or None,
        projects=engines.projects_of(session, engine),
        probed_at=engine.probed_at,
        created_at=engine.created_at,
    )


@router.get("/engines")
def list_engines(
    session: SessionDep, actor: ActorDep, limit: Limit = 100, cursor: str | None = None
) -> ListOut[EngineOut]:
    """All model servers, for an admin of the installation."""
    found = sorted(engines.list_engines(session, actor), key=lambda one: one.id)
    page = slice_page(found, lambda one: one.id, limit=limit, cursor=cursor)
    return ListOut(items=[engine_out(session, one) for one in page.items], next=page.next)


@router.post("/engines", status_code=201)
@before_body(lambda _session, actor, _path: require_admin(actor))
def add_engine(session: SessionDep, actor: ActorDep, body: EngineIn) -> EngineOut:
    """Add a model server. A worker probes it: its `state` is `probing` until then."""
    return engine_out(session, engines.add_engine(session, actor, **body.model_dump(exclude={"kind"})))


@router.get("/engines/{engine_id}")
def get_engine(session: SessionDep, actor: ActorDep, engine_id: str) -> EngineOut:
    """A model server, with what its last probe found."""
    return engine_out(session, engines.get_engine(session, actor, parse_id(engine_id)))


@router.patch("/engines/{engine_id}")
@before_body(known_engine)
def change_engine(session: SessionDep, actor: ActorDep, engine_id: str, body: EngineChange) -> EngineOut:
    """Change a model server, and probe it again. An empty `api_key` removes the key."""
    changes = body.model_dump(exclude_unset=True)
    return engine_out(session, engines.change_engine(session, actor, parse_id(engine_id), changes))


@router.post("/engines/{engine_id}/probe", status_code=202)
def probe_engine(session: SessionDep, actor: ActorDep, engine_id: str) -> EngineOut:
    """Probe a model server again."""
    return engine_out(session, engines.request_probe(session, actor, parse_id(engine_id)))


@router.delete("/engines/{engine_id}", status_code=204)
def remove_engine(session: SessionDep, actor: ActorDep, engine_id: str) -> None:
    """Remove a model server that no project samples from; 409 names those that do."""
    engines.remove_engine(session, actor, parse_id(engine_id))
