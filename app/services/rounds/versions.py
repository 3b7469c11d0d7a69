"""Model versions: the lineage of a project, and which of them is active."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.errors import Conflict, NotFound
from app.models import Evaluation, ModelVersion, Project, VersionKind
from app.services.kernel.actors import Actor, require
from app.services.kernel.rights import Right
from app.services.projects import activation
from app.services.projects.projects import settings_of
from app.services.rounds.hand_over import is_handed_over_first
from illume.phrases import _


def list_versions(
    session: Session, actor: Actor, project: Project, *, kind: VersionKind | None = VersionKind.sampler
) -> list[ModelVersion]:
    """The versions of a project that write candidates, or those of another kind or of all kinds, newest first."""
    require(session, actor, project, Right.sees_model)
    query = select(ModelVersion).where(ModelVersion.project_id == project.id).order_by(ModelVersion.number.desc())
    return list(session.scalars(query if kind is None else query.where(ModelVersion.kind == kind)))


def get_version(session: Session, actor: Actor, version_id: int) -> ModelVersion:
    """A version. Raises `NotFound` for non-members of its project."""
    return _version_and_project(session, actor, version_id, Right.sees_model)[0]


def _version_and_project(session: Session, actor: Actor, version_id: int, need: Right) -> tuple[ModelVersion, Project]:
    version = session.get(ModelVersion, version_id)
    project = session.get(Project, version.project_id) if version is not None else None
    if version is None or project is None:
        raise NotFound(_("There is no such model version."))
    require(session, actor, project, need)
    return version, project


def adapter_of(session: Session, actor: Actor, version_id: int) -> tuple[ModelVersion, str]:
    """A version and the key in the store of its adapter, a tar archive. Raises `NotFound` for a base model."""
    version, _rest = _version_and_project(session, actor, version_id, Right.reviews)
    if version.kind is VersionKind.critic:
        raise NotFound(_("Version %(number)s is a machine critic: it has no adapter to use.", number=version.number))
    if version.adapter is None:
        raise NotFound(_("Version %(number)s is the base model itself: it has no adapter.", number=version.number))
    return version, version.adapter


def lineage(session: Session, version: ModelVersion) -> list[ModelVersion]:
    """`version`, its parent, and so on to the base model."""
    known = {
        one.id: one
        for one in session.scalars(select(ModelVersion).where(ModelVersion.project_id == version.project_id))
    }
    line = [version]
    while (parent := line[-1].parent_id) is not None:
        line.append(known[parent])
    return line


def activate(session: Session, actor: Actor, version_id: int) -> ModelVersion:
    """Make a version write the new candidates. Activating an older version rolls back; the active one is a no-op.

    In a project that samples from a model server it becomes active once the server has loaded it. Raises `Conflict` for
    a machine critic, and for a version of another base model than the project's.
    """
    version, project = _version_and_project(session, actor, version_id, Right.administers)
    if version.kind is VersionKind.critic:
        raise Conflict(
            _(
                "Version %(number)s is a machine critic: it rates explanations and cannot write any.",
                number=version.number,
            )
        )
    if version.base_model != settings_of(session, project).base_model:
        raise Conflict(
            _(
                "Version %(number)s is of another base model: change the base model in the settings of the project.",
                number=version.number,
            )
        )
    put_in_force(session, actor, project, version)
    return version


def put_in_force(session: Session, actor: Actor, project: Project, version: ModelVersion) -> bool:
    """Activate a version without a permission check, and replace unclaimed sets of other versions.

    Returns whether it is active now. An adapter is first handed over to the server that the project samples from; its
    version becomes active once it is loaded there. So is that of the active version, if the server has lost it.
    """
    lock_project(session, project)
    if is_handed_over_first(session, project, version):
        return False
    if project.active_version_id == version.id:
        return True
    settings = settings_of(session, project)
    activation.put_in_force(
        session, actor, project, version, judged_splits=settings.judged_splits, rejudge=settings.rejudge
    )
    return True


def lock_project(session: Session, project: Project) -> None:
    """Lock the project's row until the transaction ends, and reload it."""
    session.refresh(project, with_for_update={"key_share": True})


def register(
    session: Session,
    project: Project,
    *,
    base_model: str,
    parent_id: int | None,
    round_id: int | None,
    adapter: str | None,
    metrics: dict[str, Any],
    kind: VersionKind = VersionKind.sampler,
) -> ModelVersion:
    """Add the next version of a project, not active yet. The caller holds the project's row."""
    last = session.scalar(select(func.max(ModelVersion.number)).where(ModelVersion.project_id == project.id))
    version = ModelVersion(
        project_id=project.id,
        number=0 if last is None else last + 1,
        parent_id=parent_id,
        round_id=round_id,
        base_model=base_model,
        adapter=adapter,
        metrics=metrics,
        kind=kind,
    )
    session.add(version)
    session.flush()
    return version


# Stored scores


def known_scores(session: Session, version_id: int, *, prompts_hash: str, settings_hash: str) -> dict[str, Any] | None:
    """The stored scores of a version for exactly these prompts and settings, if any."""
    return session.scalar(
        select(Evaluation.scores).where(
            Evaluation.version_id == version_id,
            Evaluation.prompts_hash == prompts_hash,
            Evaluation.settings_hash == settings_hash,
        )
    )


def keep_scores(
    session: Session, version_id: int, *, prompts_hash: str, settings_hash: str, scores: dict[str, Any]
) -> None:
    """Store the scores of a version, unless they are stored already."""
    if known_scores(session, version_id, prompts_hash=prompts_hash, settings_hash=settings_hash) is None:
        session.add(
            Evaluation(version_id=version_id, prompts_hash=prompts_hash, settings_hash=settings_hash, scores=scores)
        )
        session.flush()


def scores_of(session: Session, version: ModelVersion) -> list[Evaluation]:
    """All evaluations of a version, newest first."""
    query = select(Evaluation).where(Evaluation.version_id == version.id).order_by(Evaluation.id.desc())
    return list(session.scalars(query))
