"""Change tokens: whether anything on a project's live pages has changed, at less cost than rendering one.

A token is built from row versions (`ctid`, `xmin`) and small counts. Any change of a row that is shown changes it,
whichever column it was, and nothing has to be written for it. If no transaction has ended since the last check, which
PostgreSQL's snapshot shows, not even that token is needed.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.services.candidates.pools import MAX_COUNTED
from app.settings import get_settings

# More than are shown: a verdict that commits late sorts in behind others.
NEWEST_VERDICTS = "SELECT v.id FROM verdicts v WHERE v.project_id = p.id ORDER BY v.xid DESC, v.id DESC LIMIT 64"
PROMPT_COUNTS = """(
    SELECT string_agg(concat(n.what, n.n), ' ' ORDER BY n.what) FROM (
        SELECT what, sum(n) AS n FROM (
            SELECT what, n FROM counts WHERE project_id = p.id AND what LIKE 'prompt:%'
            UNION ALL SELECT what, n FROM count_deltas WHERE project_id = p.id AND what LIKE 'prompt:%'
        ) parts GROUP BY what HAVING sum(n) <> 0
    ) n
)"""
CLAIMABLE_COUNT = f"""(
    SELECT count(*) FROM (
        SELECT FROM candidate_sets s
        WHERE s.project_id = p.id AND s.state = 'ready' AND s.taken < s.slots LIMIT {MAX_COUNTED}
    ) c
)"""  # noqa: S608 - constants only


def _row_versions(table: str, condition: str) -> str:
    """An SQL expression for the versions of some rows as one number, whatever their order."""
    versions = f"SELECT t.ctid AS place, t.xmin AS made FROM {table} t WHERE {condition}"  # noqa: S608 - constants only
    hashed = "hashtextextended(concat(r.place, ' ', r.made), 0)"
    return f"(SELECT concat(count(*), ':', sum({hashed})) FROM ({versions}) r)"  # noqa: S608 - constants only


OF_PROJECT = "t.project_id = p.id"
ALIVE = "beats_at >= now() - make_interval(secs => :lease)"
# A worker's heartbeat alone changes nothing that is shown.
WORKERS = f"""(
    SELECT string_agg(md5(concat_ws(' ', name, queues, device, doing, memory_mb, started_at)), '' ORDER BY name)
    FROM workers WHERE {ALIVE}
)"""  # noqa: S608 - constants only
PARTS = (
    _row_versions("sessions", "t.token_hash = :session AND t.expires_at > now()"),
    _row_versions("users", "t.id = me.user_id"),
    _row_versions("memberships", OF_PROJECT),
    _row_versions("projects", "t.id = p.id"),
    _row_versions("rounds", OF_PROJECT),
    _row_versions("model_versions", OF_PROJECT),
    _row_versions("critic_jobs", OF_PROJECT),
    # What is dropped follows a verdict, a prompt's state, a setting or a newer critic, which are here too.
    "(SELECT t.xid FROM machine_accepts t WHERE t.project_id = p.id ORDER BY t.xid DESC LIMIT 1)",
    _row_versions("snapshots", OF_PROJECT),
    _row_versions("comparisons", OF_PROJECT),
    _row_versions(
        "preferences",
        "t.pair_id IN (SELECT x.id FROM comparison_pairs x JOIN comparisons c ON c.id = x.comparison_id"
        " WHERE c.project_id = p.id AND c.state = 'open')",
    ),
    _row_versions("imports", OF_PROJECT),
    _row_versions("sampling_pauses", OF_PROJECT),
    "(SELECT concat(max(e.round_id), ':', max(e.position)) FROM round_events e WHERE e.round_id IN ("
    "SELECT r.id FROM rounds r WHERE r.project_id = p.id ORDER BY r.number DESC LIMIT 1))",
    _row_versions("verdicts", f"t.id IN ({NEWEST_VERDICTS})"),
    PROMPT_COUNTS,
    "(SELECT count(*) FROM prompts f WHERE f.project_id = p.id AND f.fresh AND f.state NOT IN ('held', 'retired'))",
    CLAIMABLE_COUNT,
    f"(SELECT count(*) FROM candidate_sets s WHERE s.project_id = p.id AND s.state = 'sampling' AND s.{ALIVE})",  # noqa: S608 - constants only
    WORKERS,
)
ROW_VERSIONS = f"""
SELECT concat_ws('|', {", ".join(PARTS)})
FROM projects p LEFT JOIN sessions me ON me.token_hash = :session WHERE p.slug = :slug
"""  # noqa: S608 - constants only
# NULL inside a transaction that has written: it sees its own writes, which the snapshot does not show.
CURRENT_SNAPSHOT = """
SELECT CASE WHEN pg_current_xact_id_if_assigned() IS NULL THEN CAST(pg_current_snapshot() AS text) END
"""


def database_token(session: Session) -> str | None:
    """The state of the database: while it is the same, nothing has changed. None if that is unknown."""
    found: str | None = session.scalar(text(CURRENT_SNAPSHOT))
    return found


def project_token(session: Session, slug: str, session_hash: str) -> str | None:
    """The change token of a project as the owner of a browser session sees it; None without one."""
    values = {"slug": slug, "session": session_hash, "lease": get_settings().lease_seconds}
    found: str | None = session.scalar(text(ROW_VERSIONS), values)
    return found
