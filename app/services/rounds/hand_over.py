"""Versions on a model server: which name a version has there, asking for its hand-over, and where rounds are off."""

from __future__ import annotations

import secrets

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app import queue
from app.models import AdapterState, Engine, EngineAdapter, ModelVersion, Project
from app.services.projects.base_models import resolve_base
from app.services.projects.choice import LOCAL, find_engine, lacks_uncertainty
from app.services.projects.projects import ProjectSettings, settings_of
from app.services.rounds import base_checks
from illume.model.folder import split_revision
from illume.phrases import _, kept

SHORTEST_COMMIT = 7
"""As many letters Git shows of a commit at least."""


def engine_of(session: Session, project: Project) -> Engine | None:
    """The model server that a project samples from; None if it uses the installation's own workers."""
    return find_engine(session, settings_of(session, project).engine)


def served_name(session: Session, engine: Engine, version: ModelVersion) -> str | None:
    """The name of a version on a server; None for an adapter that is not loaded there."""
    if version.adapter is None:
        return engine.model
    return session.scalar(
        select(EngineAdapter.name)
        .where(
            EngineAdapter.engine_id == engine.id,
            EngineAdapter.version_id == version.id,
            EngineAdapter.state == AdapterState.loaded,
        )
        .order_by(EngineAdapter.id.desc())
        .limit(1)
    )


def newest_adapter(session: Session, engine: Engine, version: ModelVersion) -> EngineAdapter | None:
    """The newest hand-over of a version to a server."""
    return session.scalar(
        select(EngineAdapter)
        .where(EngineAdapter.engine_id == engine.id, EngineAdapter.version_id == version.id)
        .order_by(EngineAdapter.id.desc())
        .limit(1)
        .execution_options(populate_existing=True)
    )


def request_hand_over(
    session: Session, project: Project, engine: Engine, version: ModelVersion, *, activate: bool
) -> EngineAdapter:
    """Have a version's adapter loaded by a server, under a name never used before. With `activate` it becomes active.

    One that failed is tried again under its name, which a person may have loaded it by. Another version of the project
    that still waits is no longer activated.
    """
    if activate:
        others = select(ModelVersion.id).where(ModelVersion.project_id == project.id, ModelVersion.id != version.id)
        session.execute(
            update(EngineAdapter)
            .where(EngineAdapter.version_id.in_(others), EngineAdapter.state == AdapterState.waiting)
            .values(activate=False)
            .execution_options(synchronize_session=False)
        )
    found = newest_adapter(session, engine, version)
    if found is None or found.state in (AdapterState.loaded, AdapterState.unloaded):
        name = f"illume-{project.slug}-{version.number}-{secrets.token_hex(4)}"
        found = EngineAdapter(engine_id=engine.id, version_id=version.id, name=name, activate=activate)
        session.add(found)
    else:
        found.state, found.error, found.requested_at = AdapterState.waiting, None, func.now()
        found.activate = found.activate or activate
    session.flush()
    session.refresh(found)
    queue.send(session, queue.HAND_OVER, found.id)
    return found


def is_handed_over_first(session: Session, project: Project, version: ModelVersion) -> bool:
    """Ask for the hand-over that a version needs before it becomes active. False: it needs none."""
    engine = engine_of(session, project)
    if engine is None or served_name(session, engine, version) is not None:
        return False
    request_hand_over(session, project, engine, version, activate=True)
    return True


def why_rounds_are_off(session: Session, settings: ProjectSettings) -> str | None:
    """Why no round may run though the project would have one: its server samples with another model than is tuned."""
    if settings.engine == LOCAL:
        return None
    engine = find_engine(session, settings.engine)
    if engine is None:
        return _("Training rounds are off: there is no model server '%(name)s'.", name=settings.engine)
    reason = mismatch_of(engine, settings.base_model)
    return None if reason is None else _("Training rounds are off: %(reason)s", reason=reason)


def why_unfit(engine: Engine, version: ModelVersion) -> str | None:
    """Why a version must not be used on a server: its adapter was tuned on another model; None if it may be."""
    reason = None if version.adapter is None else mismatch_of(engine, version.base_model)
    return (
        None
        if reason is None
        else _("Version %(number)s cannot be used: %(reason)s", number=version.number, reason=reason)
    )


def other_model(engine: Engine, version: ModelVersion) -> str | None:
    """What a server runs, where that is another model than a version's base model; None where it is that one.

    Of a folder on the server nobody knows what it holds: the name under which it is served has to do.
    """
    if mismatch_of(engine, version.base_model) is None:
        return None
    root = engine.capabilities.get("root")
    served = engine.model if root is None or root.startswith(("/", ".")) else root
    return f"{served}@{engine.revision}" if engine.revision else served


def reads_pictures_first(session: Session, project: Project, base_model: str) -> bool:
    """Whether what writes for a project was found to read all pictures of a prompt before its texts."""
    engine = engine_of(session, project)
    if engine is None:
        return base_checks.reads_pictures_first(session, base_model)
    return engine.capabilities.get("order") == "pictures_first"


def notes_of(session: Session, project: Project) -> tuple[str, ...]:
    """What its pages say to a project's admins of its model server: what it lacks, and hand-overs not done yet.

    A reason may name a folder.
    """
    settings = settings_of(session, project)
    engine = find_engine(session, settings.engine)
    off = why_rounds_are_off(session, settings)
    notes = [] if off is None else [off]
    if engine is None:
        return tuple(notes)
    if lacks_uncertainty(engine, settings):
        notes.append(
            _(
                "Which prompt comes next: the model server '%(name)s' gives no log-probabilities of before the"
                " temperature, so that nobody knows what its model is unsure about. Choose another order.",
                name=engine.name,
            )
        )
    newest = (
        select(func.max(EngineAdapter.id))
        .join(ModelVersion, ModelVersion.id == EngineAdapter.version_id)
        .where(EngineAdapter.engine_id == engine.id, ModelVersion.project_id == project.id)
    )
    rows = session.execute(
        select(EngineAdapter, ModelVersion.number)
        .join(ModelVersion, ModelVersion.id == EngineAdapter.version_id)
        .where(
            EngineAdapter.id.in_(newest.group_by(EngineAdapter.version_id)),
            EngineAdapter.state.in_((AdapterState.waiting, AdapterState.failed)),
        )
        .order_by(ModelVersion.number)
    )
    for row, number in rows:
        under_way = _(
            "Version %(number)s is being handed over to the model server '%(name)s'.", number=number, name=engine.name
        )
        notes.append(kept(row.error, row.error_phrase) or under_way)
    return tuple(notes)


def mismatch_of(engine: Engine, base_model: str) -> str | None:
    """Why a server does not run the base model that workers tune, as the rest of a sentence; None if it does."""
    if not engine.capabilities:
        return _("nobody knows yet what the model server '%(name)s' runs.", name=engine.name)
    served = engine.capabilities.get("root") or engine.model
    # Of a folder on the server nobody knows what it holds: the name under which it is served has to do.
    names = {served, engine.model} if served.startswith(("/", ".")) else {served}
    base, commit = split_revision(base_model)
    if {base, resolve_base(base)}.isdisjoint(names):
        return _(
            "the model server '%(name)s' runs %(served)s, and the base model of this project is %(base)s. What is tuned"
            " here would not fit there: let both be the same.",
            name=engine.name,
            served=served,
            base=base_model,
        )
    revision = engine.revision or "main"
    if commit is not None and not is_same_commit(revision, commit):
        return _(
            "the model server '%(name)s' runs revision %(revision)s of %(served)s, and the workers load %(commit)s. Let"
            " both be the same.",
            name=engine.name,
            revision=revision,
            served=served,
            commit=commit,
        )
    if commit is None and revision != "main" and base == served:
        return _(
            "the model server '%(name)s' runs revision %(revision)s of %(served)s, and the workers load the newest"
            " one.",
            name=engine.name,
            revision=revision,
            served=served,
        )
    return None


def is_same_commit(revision: str, commit: str) -> bool:
    """Whether a revision, perhaps a commit cut off as Git shows it, is this commit."""
    return len(revision) >= SHORTEST_COMMIT and commit.startswith(revision.lower())
