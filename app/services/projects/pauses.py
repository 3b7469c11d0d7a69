"""Pauses: a version that cannot be used, be it a sampler or a machine critic, waits for the next try, and says why."""

from __future__ import annotations

from sqlalchemy import bindparam, delete, func, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from app import queue
from app.models import Project, SamplingPause
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require
from app.services.kernel.rights import Right
from illume.phrases import changed, stored_of

FIRST_SECONDS = 60
LONGEST_SECONDS = 3600
REASON_LENGTH = 2000


PAUSE = text("""
WITH counted AS (
    SELECT 1 + coalesce(max(tries), 0) AS tries FROM sampling_pauses
    WHERE project_id = :project AND version_id = :version
)
INSERT INTO sampling_pauses (project_id, version_id, reason, reason_phrase, tries, until)
SELECT :project, :version, :reason, :phrase, tries, now() + make_interval(secs => CASE
    WHEN tries < :patience THEN 0 ELSE least(:first * power(2, least(tries - 1, 10)), :longest)
END) FROM counted
ON CONFLICT (project_id, version_id) DO UPDATE SET
    reason = excluded.reason, reason_phrase = excluded.reason_phrase, tries = excluded.tries, until = excluded.until
""").bindparams(bindparam("phrase", type_=JSONB(none_as_null=True)))


def pause(session: Session, project_id: int, version_id: int, reason: str, *, patience: int = 1) -> None:
    """Count that a project's version could not be used. From the `patience`-th time in a row on, nobody tries it for a
    while, each time for twice as long."""
    values = {"project": project_id, "version": version_id, "first": FIRST_SECONDS, "longest": LONGEST_SECONDS}
    values |= {"patience": patience}
    reason = changed(reason, lambda text: text.replace("\x00", ""))
    session.execute(PAUSE, {**values, "reason": reason[:REASON_LENGTH], "phrase": stored_of(reason)})


def resume(session: Session, project_id: int, version_id: int | None = None) -> None:
    """End the pause of a project's version, by default of all its versions."""
    paused = delete(SamplingPause).where(SamplingPause.project_id == project_id)
    session.execute(paused if version_id is None else paused.where(SamplingPause.version_id == version_id))


def try_now(session: Session, actor: Actor, project: Project) -> None:
    """End a project's pauses because an admin asks for it: a worker tries the model at once."""
    require(session, actor, project, Right.administers)
    resume(session, project.id)
    queue.send(session, queue.FILL_POOL, project.id)
    queue.send(session, queue.SCORE_CANDIDATES, project.id)
    audit.record(session, actor, "project.resume", f"project:{project.slug}", project.id)


def current_pause(session: Session, project: Project, version_id: int | None = None) -> SamplingPause | None:
    """Why a version, by default the active one, cannot be used; None if nothing is known against it."""
    return session.scalar(
        select(SamplingPause)
        .where(
            SamplingPause.project_id == project.id,
            SamplingPause.version_id == (version_id or project.active_version_id),
        )
        .execution_options(populate_existing=True)
    )


def is_paused(session: Session, project: Project, version_id: int | None = None) -> bool:
    """Whether a version, by default the active one, should not be tried yet."""
    query = select(SamplingPause.project_id).where(
        SamplingPause.project_id == project.id,
        SamplingPause.version_id == (version_id or project.active_version_id),
        SamplingPause.until > func.now(),
    )
    return session.scalar(query) is not None
