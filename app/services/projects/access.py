"""The project that a judging request is about, and what the actor is in it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import orjson
from sqlalchemy.orm import Session

from app.db.batches import Row
from app.db.judging_pool import Transaction, statement
from app.errors import NotFound
from app.models import Project, Role
from app.services.kernel.actors import NO_PROJECT, Actor, check_rights
from app.services.kernel.rights import Right
from app.services.projects.projects import ProjectSettings, parse_settings, settings_of

PROJECT = statement("""
SELECT j.id, j.slug, j.name, j.revision_id, r.settings, m.role
FROM projects j JOIN setting_revisions r ON r.id = j.revision_id
LEFT JOIN memberships m ON m.project_id = j.id
    AND m.user_id = coalesce(CAST(:user AS bigint), (SELECT s.user_id FROM sessions s WHERE s.token_hash = :session))
WHERE j.slug = :slug
""")


@dataclass(frozen=True, slots=True)
class ProjectRef:
    """A project as judging needs it, with the settings in force."""

    id: int
    slug: str
    name: str
    revision_id: int
    settings: ProjectSettings


async def project_for(transaction: Transaction, actor: Actor, slug: str, need: Right) -> ProjectRef:
    """The project, where the actor has the right `need`. Raises `NotFound`, `Forbidden`."""
    [row] = await transaction.run((PROJECT, {"slug": slug, "user": actor.user_id, "session": None}))
    return project_from(row, actor, need)


def project_from(row: Row | None, actor: Actor, need: Right) -> ProjectRef:
    """The project of a row of `PROJECT`, where the actor has the right `need`. Raises `NotFound`, `Forbidden`."""
    if row is None:
        raise NotFound(NO_PROJECT)
    member = None if row["role"] is None else Role(row["role"])
    check_rights(Role.admin if actor.is_admin else member, need, slug=row["slug"])
    return ProjectRef(row["id"], row["slug"], row["name"], row["revision_id"], parse_stored(row["settings"]))


def ref_of(session: Session, project: Project) -> ProjectRef:
    """A project that a session holds."""
    revision = project.revision_id or 0
    return ProjectRef(project.id, project.slug, project.name, revision, settings_of(session, project))


@functools.lru_cache(maxsize=256)
def parse_stored(settings: bytes) -> ProjectSettings:
    """Settings from the JSON of their revision; the same text is parsed once."""
    return parse_settings(orjson.loads(settings))
