"""Which version of a project writes candidates, and what becomes of those that others wrote."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.orm import Session

from app import queue
from app.errors import Conflict
from app.models import (
    CandidateSet,
    CandidateSetState,
    CandidateSource,
    ModelVersion,
    Project,
    Prompt,
    PromptState,
    Round,
    Split,
)
from app.models.states import ACTIVE_ROUND_STATES, LIVE_SET_STATES
from app.services.integrations import webhooks
from app.services.kernel import audit
from app.services.kernel.actors import Actor
from illume.phrases import _


def change_base_model(
    session: Session,
    actor: Actor,
    project: Project,
    base_model: str,
    *,
    judged_splits: Sequence[Split],
    rejudge: bool,
) -> ModelVersion:
    """Activate a version that is the base model, an earlier one of the same model or a new one.

    The version of the model before stays: what it wrote is credited to it, also by a worker that still has it loaded.
    The caller holds the project's row. Raises `Conflict` once a round has started from the base model.
    """
    tuned = select(ModelVersion.id).where(ModelVersion.project_id == project.id, ModelVersion.parent_id.is_not(None))
    if session.scalar(tuned.limit(1)) is not None:
        raise Conflict(_("The base model cannot change once a round has made a version of it."), field="base_model")
    going_on = select(Round.number).where(Round.project_id == project.id, Round.state.in_(ACTIVE_ROUND_STATES))
    if (number := session.scalar(going_on)) is not None:
        raise Conflict(
            _("Training round %(number)s is still running: wait for it to finish or cancel it.", number=number),
            field="base_model",
        )
    known = select(ModelVersion).where(ModelVersion.project_id == project.id).order_by(ModelVersion.number.desc())
    version = session.scalar(known.where(ModelVersion.base_model == base_model).limit(1))
    if version is None:
        last = session.scalar(select(func.max(ModelVersion.number)).where(ModelVersion.project_id == project.id))
        version = ModelVersion(project_id=project.id, number=0 if last is None else last + 1, base_model=base_model)
        session.add(version)
        session.flush()
    if project.active_version_id != version.id:
        put_in_force(session, actor, project, version, judged_splits=judged_splits, rejudge=rejudge)
    return version


def put_in_force(
    session: Session,
    actor: Actor,
    project: Project,
    version: ModelVersion,
    *,
    judged_splits: Sequence[Split],
    rejudge: bool,
) -> None:
    """Make another version the active one, and replace unclaimed sets of the others. The caller holds the row."""
    before = project.active_version_id
    project.active_version_id = version.id
    session.flush()
    replaced = replace_unclaimed(session, project, judged_splits=judged_splits, rejudge=rejudge)
    audit.record(
        session,
        actor,
        "version.activate",
        f"version:{version.id}",
        project.id,
        number=version.number,
        before=before,
        replaced_sets=replaced,
    )
    payload = {"id": str(version.id), "number": version.number, "before": None if before is None else str(before)}
    webhooks.emit(session, project.id, webhooks.VERSION_ACTIVATED, payload)


def replace_unclaimed(session: Session, project: Project, *, judged_splits: Sequence[Split], rejudge: bool) -> int:
    """Withdraw the unclaimed ready sets of other versions, so that their prompts wait for the active one.

    Prompts without an accepted rationale wait again once they have no live set; with `rejudge` the others too. Imported
    sets and partly judged sets stay. Returns how many sets were replaced.
    """
    replaced = session.scalars(
        update(CandidateSet)
        .where(
            CandidateSet.project_id == project.id,
            CandidateSet.state == CandidateSetState.ready,
            CandidateSet.source == CandidateSource.model,
            CandidateSet.taken == 0,
            CandidateSet.version_id.is_distinct_from(project.active_version_id),
        )
        .values(state=CandidateSetState.replaced)
        .returning(CandidateSet.id)
        .execution_options(synchronize_session=False)
    ).all()
    again = and_(Prompt.state == PromptState.judged, Prompt.split.in_(judged_splits))
    if not rejudge:
        again = and_(again, ~Prompt.has_accepted)
    live = select(CandidateSet.id).where(CandidateSet.prompt_id == Prompt.id, CandidateSet.state.in_(LIVE_SET_STATES))
    session.execute(
        update(Prompt)
        .where(
            Prompt.project_id == project.id,
            or_(again, Prompt.state == PromptState.ready),
            ~live.exists(),
        )
        .values(state=PromptState.waiting)
        .execution_options(synchronize_session=False)
    )
    queue.send(session, queue.FILL_POOL, project.id)
    return len(replaced)
