"""Positions in the feed of verdicts: a ids whose verdicts can be read again at any later time.

A position is a PostgreSQL snapshot as text. Times and ids are not enough, because a transaction that began earlier may
commit later.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Session

# A snapshot treats its own transaction as unfinished. This statement treats it as committed, to include what the caller
# has just written, and treats all transactions between the snapshot's end and it as unfinished.
CURRENT_POSITION = """
SELECT CASE WHEN own IS NULL THEN CAST(snapshot AS text) ELSE concat(
    pg_snapshot_xmin(snapshot), ':', greatest(snapshot_end, own + 1), ':', (
        SELECT string_agg(CAST(running AS text), ',' ORDER BY running) FROM (
            SELECT CAST(CAST(xid AS text) AS bigint) AS running FROM pg_snapshot_xip(snapshot) xid
            UNION SELECT generate_series(snapshot_end, own - 1)
        ) unfinished WHERE running <> own
    )
) END
FROM (
    SELECT snapshot, CAST(CAST(pg_snapshot_xmax(snapshot) AS text) AS bigint) AS snapshot_end,
        CAST(CAST(pg_current_xact_id_if_assigned() AS text) AS bigint) AS own
    FROM (SELECT pg_current_snapshot() AS snapshot) now
) ids
"""


def current_position(session: Session) -> str:
    """The position of this moment, including what this transaction has written."""
    return str(session.execute(text(CURRENT_POSITION)).scalar_one())


def was_seen(row: str) -> str:
    """SQL: whether the verdict `row` was committed at the position `:at`."""
    return (
        f"(pg_visible_in_snapshot({row}.xid, CAST(:at AS pg_snapshot)) OR {row}.xid = pg_current_xact_id_if_assigned())"
    )


def was_current(row: str) -> str:
    """SQL: whether the verdict `row` was committed and not superseded at the position `:at`.

    A verdict that was erased later counts as never given.
    """
    later = f"SELECT FROM verdicts later WHERE later.supersedes = {row}.id AND {was_seen('later')}"
    return f"NOT {row}.deleted AND {was_seen(row)} AND ({row}.current OR NOT EXISTS ({later}))"
