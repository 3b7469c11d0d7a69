"""Reading verdicts: a single one, the feed, the history of the newest."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session, selectinload

from app.errors import Forbidden, Invalid, NotFound
from app.models import Project, Verdict
from app.services.kernel.actors import Actor, parse_id, project_role, require
from app.services.kernel.paging import Page, check_limit, decode_cursor, encode_cursor
from app.services.kernel.rights import RIGHTS, Right
from app.services.kernel.verdict_schema import (
    FULL_JSON,
    IN_SNAPSHOTS,
    NO_SNAPSHOTS,
    PLAIN_STATE,
    STORED_JSON,
    verdict_json,
)
from illume.phrases import _

ONE = f"SELECT {STORED_JSON} AS body FROM verdicts v WHERE v.id = :verdict"  # noqa: S608 - constants only
FULL = f"SELECT {FULL_JSON} AS body FROM verdicts v WHERE v.id = :verdict"  # noqa: S608 - constants only
READ_JSON = verdict_json(
    state=f"CASE WHEN :is_blind THEN {PLAIN_STATE} ELSE v.state END",
    snapshots=f"CASE WHEN :is_blind THEN {NO_SNAPSHOTS} ELSE {IN_SNAPSHOTS} END",
)
FEED = f"""
SELECT v.xid::text AS xid, v.id, {READ_JSON} AS body FROM verdicts v
WHERE v.project_id = :project AND (v.xid, v.id) > (CAST(CAST(:xid AS text) AS xid8), :after)
  AND v.xid < pg_snapshot_xmin(pg_current_snapshot())
  AND (CAST(:critic AS bigint) IS NULL OR v.critic_id = :critic)
ORDER BY v.xid, v.id LIMIT :limit
"""  # noqa: S608 - constants only
HISTORY = f"""
SELECT {STORED_JSON} AS body, p.question, u.email
FROM verdicts v JOIN prompts p ON p.id = v.prompt_id JOIN users u ON u.id = v.critic_id
WHERE v.project_id = :project AND v.current AND (CAST(:critic AS bigint) IS NULL OR v.critic_id = :critic)
ORDER BY v.id DESC LIMIT :limit
"""  # noqa: S608 - constants only


def body_of(session: Session, verdict_id: int) -> dict[str, Any]:
    """A verdict as JSON, as its critic sees it."""
    body: dict[str, Any] = session.execute(text(ONE), {"verdict": verdict_id}).scalar_one()
    return body


def get_verdict(session: Session, actor: Actor, verdict_id: int) -> dict[str, Any]:
    """A verdict; for its critic, and for members who see what others said. Raises `NotFound`, `Forbidden`."""
    found = session.get(Verdict, verdict_id)
    project = None if found is None else session.get(Project, found.project_id)
    role = None if project is None else project_role(session, actor, project)
    if found is None or role is None:
        raise NotFound(_("There is no such verdict."))
    if Right.sees_others not in RIGHTS[role]:
        if found.critic_id != actor.user_id:
            raise Forbidden(_("This is another critic's verdict."))
        return body_of(session, verdict_id)
    body: dict[str, Any] = session.execute(text(FULL), {"verdict": verdict_id}).scalar_one()
    return body


def feed(
    session: Session,
    actor: Actor,
    project: Project,
    *,
    cursor: str | None = None,
    limit: int = 100,
    critic: str | None = None,
) -> Page[dict[str, Any]]:
    """Verdicts in commit order, each exactly once, including changes. `critic` is `me` or an id.

    The cursor `next` never expires: a later request with it returns what was committed since. It is None only for an
    empty page. Critics see only their own verdicts.
    """
    sees_others = Right.sees_others in require(session, actor, project)
    critic_id = None if critic is None else actor.user_id if critic == "me" else parse_id(critic)
    if not sees_others and critic_id != actor.user_id:
        raise Forbidden(_("A critic sees their own verdicts: ask for critic=me."), field="critic")
    xid, after = ("0", 0) if cursor is None else decode_cursor(cursor, str, int)
    if not xid.isascii() or not xid.isdigit() or len(xid) > 19:
        raise Invalid(_("This cursor is not valid: start again without one."), field="cursor")
    rows = session.execute(
        text(FEED),
        {
            "project": project.id,
            "critic": critic_id,
            "is_blind": not sees_others,
            "xid": xid,
            "after": after,
            "limit": check_limit(limit),
        },
    ).all()
    return Page([row.body for row in rows], encode_cursor(rows[-1].xid, rows[-1].id) if rows else None)


def history(session: Session, actor: Actor, project: Project, *, limit: int = 50) -> list[dict[str, Any]]:
    """Current verdicts, newest first, each with `question` and `critic_email`. Critics see only their own."""
    critic_id = None if Right.sees_others in require(session, actor, project) else actor.user_id
    rows = session.execute(text(HISTORY), {"project": project.id, "critic": critic_id, "limit": check_limit(limit)})
    return [{**row.body, "question": row.question, "critic_email": row.email} for row in rows]


def today_count(session: Session, actor: Actor, project: Project) -> int:
    """The number of candidate sets that `actor` has judged since midnight UTC."""
    midnight = func.date_trunc("day", func.now(), "UTC")
    return (
        session.scalar(
            select(func.count()).where(
                Verdict.critic_id == actor.user_id,
                Verdict.project_id == project.id,
                Verdict.current,
                Verdict.created_at >= midnight,
            )
        )
        or 0
    )


def last_verdict_of(session: Session, actor: Actor, project: Project) -> Verdict | None:
    """The newest verdict of `actor`, with its picks loaded. It may still be changed."""
    return session.scalar(
        select(Verdict)
        .where(Verdict.critic_id == actor.user_id, Verdict.project_id == project.id, Verdict.current)
        .order_by(Verdict.id.desc())
        .limit(1)
        .options(selectinload(Verdict.picks))
    )
