"""Trials of a model: what a worker is about to load is noted first, for a model may end or hang the worker itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, and_, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.models import ModelTrial, ModelVersion, Worker
from app.services.kernel.leases import held, lapsed
from app.services.projects import pauses
from app.settings import get_settings
from illume.phrases import _

log = logging.getLogger(__name__)

DEATHS = 3
"""How many workers in a row may end under a version for no known reason before its project is paused."""


def begin(session: Session, project_id: int, version_id: int, *, worker: str) -> None:
    """Note that `worker` loads a version, or samples or rates with it, from now. Committed before that."""
    values = {"project_id": project_id, "version_id": version_id, "since": func.now()}
    session.execute(
        insert(ModelTrial)
        .values(worker=worker, **values)
        .on_conflict_do_update(index_elements=[ModelTrial.worker], set_=values)
        .execution_options(synchronize_session=False)
    )


def end(session: Session, *, worker: str) -> None:
    """Note that `worker` is done with its trial, whether it was a success or not."""
    session.execute(delete(ModelTrial).where(ModelTrial.worker == worker))


def succeed(session: Session, project_id: int, version_id: int) -> None:
    """End a version's pause, and forget its trials by workers that are gone: it can be used."""
    pauses.resume(session, project_id, version_id)
    session.execute(delete(ModelTrial).where(ModelTrial.version_id == version_id, _is_silent()))


def count_deaths(session: Session, workers: Sequence[str]) -> None:
    """Count the trials of workers that are known to be dead as failures of the versions they tried."""
    _count(session, ModelTrial.worker.in_(workers))


def count_hangs(session: Session) -> None:
    """Count trials that took longer than a step may and whose workers are silent, whatever machine they ran on."""
    _count(session, and_(_is_silent(), _is_overdue()))


def _count(session: Session, which: ColumnElement[bool]) -> None:
    """Count trials as failures. One that took longer than a step may pauses its project at once."""
    query = select(ModelTrial, ModelVersion.number, _is_overdue()).join(
        ModelVersion, ModelVersion.id == ModelTrial.version_id
    )
    found = session.execute(query.where(which).with_for_update(of=ModelTrial, skip_locked=True)).all()
    for trial, number, overdue in found:
        reason = (
            _(
                "version %(number)s made no progress for over %(seconds)s s and ended its worker; the worker's log says"
                " where",
                number=number,
                seconds=f"{get_settings().step_seconds:.0f}",
            )
            if overdue
            else _(
                "the worker ended while it used version %(number)s: it was stopped, or had too little memory",
                number=number,
            )
        )
        log.warning("project %s: %s", trial.project_id, reason)
        pauses.pause(session, trial.project_id, trial.version_id, reason, patience=1 if overdue else DEATHS)
        session.delete(trial)


def _is_overdue() -> ColumnElement[bool]:
    return ModelTrial.since <= func.now() - timedelta(seconds=get_settings().step_seconds)


def _is_silent() -> ColumnElement[bool]:
    alive = select(Worker.name).where(Worker.name == ModelTrial.worker, held(Worker.beats_at))
    return and_(lapsed(ModelTrial.since), ~alive.exists())
