"""Positions in the feed: a moment of the database, so that what stood then can be told however much later.

A position is a PostgreSQL snapshot as text. Times and ids would not do: a transaction that began earlier may commit
later.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Session

# A snapshot takes its own transaction for unfinished. So that what the caller has just written stands too, its
# transaction counts as committed here, and all that may run between the snapshot's end and it as unfinished.
NOW = """
SELECT CASE WHEN own IS NULL THEN CAST(seen AS text) ELSE concat(
    pg_snapshot_xmin(seen), ':', greatest(over, own + 1), ':', (
        SELECT string_agg(CAST(running AS text), ',' ORDER BY running) FROM (
            SELECT CAST(CAST(xid AS text) AS bigint) AS running FROM pg_snapshot_xip(seen) xid
            UNION SELECT generate_series(over, own - 1)
        ) unfinished WHERE running <> own
    )
) END
FROM (
    SELECT seen, CAST(CAST(pg_snapshot_xmax(seen) AS text) AS bigint) AS over,
        CAST(CAST(pg_current_xact_id_if_assigned() AS text) AS bigint) AS own
    FROM (SELECT pg_current_snapshot() AS seen) now
) moment
"""


def current_position(session: Session) -> str:
    """The position of this moment, with all that this transaction has written."""
    return str(session.execute(text(NOW)).scalar_one())


def was_seen(row: str) -> str:
    """SQL: whether the verdict `row` had been given at the position `:at`."""
    return (
        f"(pg_visible_in_snapshot({row}.xid, CAST(:at AS pg_snapshot)) OR {row}.xid = pg_current_xact_id_if_assigned())"
    )


def was_current(row: str) -> str:
    """SQL: whether the verdict `row` had been given, and not been superseded, at the position `:at`.

    What has been erased since counts as never given.
    """
    later = f"SELECT FROM verdicts later WHERE later.supersedes = {row}.id AND {was_seen('later')}"
    return f"NOT {row}.deleted AND {was_seen(row)} AND ({row}.current OR NOT EXISTS ({later}))"
