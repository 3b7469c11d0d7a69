"""Versions with adapters, and their hand-overs to model servers."""

from __future__ import annotations

from sqlalchemy import select

from app.db.sessions import session_scope
from app.models import EngineAdapter, ModelVersion, Project
from app.services.engines import handing_over, removing
from app.services.kernel.actors import SYSTEM
from app.services.rounds import versions
from tests import factories
from tests.model_server import MODEL
from worker.process import WorkerProcess


def add_version(project_id: int, number: int, adapter: str) -> int:
    """The id of a version with an adapter of the store."""
    with session_scope() as session:
        return factories.make_version(
            session, session.get_one(Project, project_id), number=number, base_model=MODEL, adapter=adapter
        ).id


def activate(version_id: int) -> None:
    """Activate a version, or have it handed over first."""
    with session_scope() as session:
        versions.activate(session, SYSTEM, version_id)


def hand_over_all(worker: WorkerProcess) -> None:
    """Do the hand-overs that are due."""
    with session_scope() as session:
        due = handing_over.list_due(session)
    for adapter_id in due:
        handing_over.hand_over(adapter_id, check=worker.check)


def remove_all(worker: WorkerProcess) -> None:
    """Take off their servers what is to be taken off."""
    with session_scope() as session:
        due = removing.list_due(session)
    for adapter_id in due:
        removing.remove_adapter(adapter_id, check=worker.check)


def active_number(project_id: int) -> int:
    """The number of a project's active version."""
    with session_scope() as session:
        project = session.get_one(Project, project_id)
        return session.get_one(ModelVersion, project.active_version_id).number


def rows() -> list[EngineAdapter]:
    """All hand-overs, oldest first."""
    with session_scope() as session:
        return list(session.scalars(select(EngineAdapter).order_by(EngineAdapter.id)))
