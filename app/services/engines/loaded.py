"""What model servers have loaded for projects, and which of it is to be unloaded."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TypeVarTuple

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, update
from sqlalchemy.orm import Session

from app.db.base import phrased
from app.models import AdapterState, Engine, EngineAdapter, ModelVersion, Project, SettingRevision
from app.services.projects.choice import LOCAL
from illume.phrases import kept

Columns = TypeVarTuple("Columns")

PATIENCE = timedelta(minutes=15)
"""How long a server that is away is asked to unload an adapter. One that was restarted has none any more."""

IS_ERASED = ModelVersion.adapter.is_(None)
IS_LEFT = func.coalesce(SettingRevision.settings["engine"].astext, LOCAL) != Engine.name
"""Whether the project of an adapter samples elsewhere than from the adapter's server."""


class Use(StrEnum):
    """What becomes of an adapter that a server has loaded."""

    active = "active"  # the project's candidates are sampled with it
    spare = "spare"  # another version is active; the next hand-over has it unloaded
    leaving = "leaving"  # it is to be unloaded
    stuck = "stuck"  # it could not be unloaded, and that is not tried again by itself


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter on a server; without a `slug` that of an erased project. `reason`: why it is not unloaded yet."""

    name: str
    slug: str | None
    number: int
    use: Use
    reason: str


def with_projects(query: Select[*Columns]) -> Select[*Columns]:
    """A query over adapters, joined with what `IS_ERASED` and `IS_LEFT` need."""
    return (
        query.select_from(EngineAdapter)
        .join(ModelVersion, ModelVersion.id == EngineAdapter.version_id)
        .join(Engine, Engine.id == EngineAdapter.engine_id)
        .join(Project, Project.id == ModelVersion.project_id)
        .outerjoin(SettingRevision, SettingRevision.id == Project.revision_id)
    )


def is_recent() -> ColumnElement[bool]:
    """Whether the removal of an adapter was asked for not long ago."""
    return EngineAdapter.requested_at > func.now() - PATIENCE


def is_due() -> ColumnElement[bool]:
    """Whether an adapter is to be taken off its server. What was never tried is due however late it is.

    A hand-over that failed may have left a copy, or even have been done.
    """
    state = EngineAdapter.state.in_((AdapterState.loaded, AdapterState.failed))
    return or_(IS_ERASED, and_(IS_LEFT, state, or_(EngineAdapter.error.is_(None), is_recent())))


def list_loaded(session: Session, engine: Engine) -> list[LoadedAdapter]:
    """What a server has loaded, as far as is known."""
    query = select(EngineAdapter, ModelVersion.number, Project, IS_ERASED, IS_LEFT, is_recent())
    rows = session.execute(
        with_projects(query)
        .where(EngineAdapter.engine_id == engine.id, EngineAdapter.state == AdapterState.loaded)
        .order_by(EngineAdapter.id)
    )
    found = []
    for row, number, project, is_erased, is_left, recent in rows:
        reason = kept(row.error, row.error_phrase)
        if is_erased or is_left:
            use = Use.stuck if reason and not recent else Use.leaving
        else:
            use, reason = Use.active if project.active_version_id == row.version_id else Use.spare, ""
        found.append(LoadedAdapter(row.name, None if is_erased else project.slug, number, use, reason))
    return found


def try_again(session: Session, engine_id: int) -> None:
    """Have a server that was probed asked again to unload what it did not unload before."""
    session.execute(
        update(EngineAdapter)
        .where(
            EngineAdapter.engine_id == engine_id,
            EngineAdapter.state == AdapterState.loaded,
            EngineAdapter.error.is_not(None),
        )
        .values(requested_at=func.now(), **phrased(error=None))
        .execution_options(synchronize_session=False)
    )
