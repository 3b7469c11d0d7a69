"""What samples for a project: its own workers, or a model server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app import queue
from app.db.base import phrased
from app.errors import Invalid
from app.models import AdapterState, Engine, EngineAdapter, ModelVersion
from illume.phrases import _

if TYPE_CHECKING:
    from app.services.projects.projects import ProjectSettings

LOCAL = "local"
"""The setting of projects for which the installation's own workers sample."""


def find_engine(session: Session, name: str) -> Engine | None:
    """The model server of a project's setting `engine`; None for `local` and for one that is gone."""
    return None if name == LOCAL else session.scalar(select(Engine).where(Engine.name == name))


def check_engine(session: Session, settings: ProjectSettings) -> None:
    """Raise `Invalid` for a server that does not exist, and for settings that it cannot serve."""
    found = find_engine(session, settings.engine)
    if found is None and settings.engine != LOCAL:
        raise Invalid(_("There is no model server '%(name)s'.", name=settings.engine), field="engine")
    if found is not None and lacks_uncertainty(found, settings):
        raise Invalid(
            _(
                "next_prompt: the model server '%(name)s' gives no log-probabilities of before the temperature, so"
                " that nobody knows what its model is unsure about. Choose another order.",
                name=found.name,
            ),
            field="next_prompt",
        )


def note_move(session: Session, project_id: int) -> None:
    """Have adapters of a project, which samples elsewhere from now on, taken off the server that it leaves.

    A worker does that, and first looks whether it is due. Where it failed before, it is tried anew.
    """
    of_project = EngineAdapter.version_id.in_(select(ModelVersion.id).where(ModelVersion.project_id == project_id))
    session.execute(
        update(EngineAdapter)
        .where(of_project, EngineAdapter.state == AdapterState.loaded)
        .values(phrased(error=None))
        .execution_options(synchronize_session=False)
    )
    moved = session.scalars(
        update(EngineAdapter)
        .where(of_project, EngineAdapter.state.in_((AdapterState.loaded, AdapterState.failed)))
        .values(requested_at=func.now())
        .returning(EngineAdapter.id)
        .execution_options(synchronize_session=False)
    )
    for adapter_id in sorted(moved):
        queue.send(session, queue.REMOVE_ADAPTER, adapter_id)


def lacks_uncertainty(engine: Engine, settings: ProjectSettings) -> bool:
    """Whether a project's order needs log-probabilities that its server was found not to give."""
    return (
        settings.next_prompt == "uncertain"
        and bool(engine.capabilities)
        and engine.capabilities.get("logprobs") != "before"
    )
