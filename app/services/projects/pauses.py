"""Pauses of sampling: a project whose model cannot be used waits before the next try, and says why."""

from __future__ import annotations

from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from app import queue
from app.models import Project, SamplingPause
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require
from app.services.kernel.rights import Right

FIRST_SECONDS = 60
LONGEST_SECONDS = 3600
REASON_LENGTH = 2000


PAUSE = text("""
WITH counted AS (
    SELECT 1 + coalesce(max(tries), 0) AS tries FROM sampling_pauses
    WHERE project_id = :project AND version_id = :version
)
INSERT INTO sampling_pauses (project_id, version_id, reason, tries, until)
SELECT :project, :version, :reason, tries, now() + make_interval(secs => CASE
    WHEN tries < :patience THEN 0 ELSE least(:first * power(2, least(tries - 1, 10)), :longest)
END) FROM counted
ON CONFLICT (project_id) DO UPDATE SET
    version_id = excluded.version_id, reason = excluded.reason, tries = excluded.tries, until = excluded.until
""")


def pause(session: Session, project_id: int, version_id: int, reason: str, *, patience: int = 1) -> None:
    """Count that a project's model could not be used. From the `patience`-th time in a row on, nobody tries it for a
    while, each time for twice as long."""
    values = {"project": project_id, "version": version_id, "first": FIRST_SECONDS, "longest": LONGEST_SECONDS}
    values |= {"patience": patience}
    session.execute(PAUSE, {**values, "reason": reason.replace("\x00", "")[:REASON_LENGTH]})


def resume(session: Session, project_id: int) -> None:
    """End a project's pause."""
    session.execute(delete(SamplingPause).where(SamplingPause.project_id == project_id))


def try_now(session: Session, actor: Actor, project: Project) -> None:
    """End a project's pause because an admin asks for it: a worker tries the model at once."""
    require(session, actor, project, Right.administers)
    resume(session, project.id)
    queue.send(session, queue.FILL_POOL, project.id)
    audit.record(session, actor, "project.resume", f"project:{project.slug}", project.id)


def current_pause(session: Session, project: Project) -> SamplingPause | None:
    """Why the active version cannot be used; None if nothing is known against it."""
    return session.scalar(
        select(SamplingPause)
        .where(SamplingPause.project_id == project.id, SamplingPause.version_id == project.active_version_id)
        .execution_options(populate_existing=True)
    )


def is_paused(session: Session, project: Project) -> bool:
    """Whether the active version should not be tried yet."""
    query = select(SamplingPause.project_id).where(
        SamplingPause.project_id == project.id,
        SamplingPause.version_id == project.active_version_id,
        SamplingPause.until > func.now(),
    )
    return session.scalar(query) is not None
