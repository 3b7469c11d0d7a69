"""Counts over growing tables: kept as deltas by triggers, folded by the sweep, and exact at every moment.

Each statement that changes prompts or verdicts appends its changes to `count_deltas`, one row per kind; the sweep folds
them into `counts`. A count is the sum of both. A counter row written in each verdict's transaction would serialise all
critics, and a `count(*)` would slow down as the table grows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import date

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.models import Project, PromptState, Split

READ = """
SELECT what, sum(n)::bigint AS n FROM (
    SELECT what, n FROM counts WHERE project_id = :project AND what LIKE :kind
    UNION ALL
    SELECT what, n FROM count_deltas WHERE project_id = :project AND what LIKE :kind
) parts GROUP BY what HAVING sum(n) <> 0
"""
FOLD = """
WITH gone AS (
    DELETE FROM count_deltas RETURNING project_id, what, n
), sums AS (
    SELECT project_id, what, sum(n) AS n FROM gone GROUP BY 1, 2
)
INSERT INTO counts AS c (project_id, what, n) SELECT project_id, what, n FROM sums WHERE n <> 0 ORDER BY 1, 2
ON CONFLICT (project_id, what) DO UPDATE SET n = c.n + excluded.n
"""
# Nobody asks for single days that are over a month ago: they are merged into one.
MERGE_OLD_DAYS = """
WITH old AS (
    DELETE FROM counts
    WHERE what LIKE 'verdict:%' AND split_part(what, ':', 5) NOT IN ('', 'before')
      AND split_part(what, ':', 5) < to_char((now() - interval '40 days') AT TIME ZONE 'UTC', 'YYYY-MM-DD')
    RETURNING project_id, what, n
)
INSERT INTO counts AS c (project_id, what, n)
SELECT project_id, left(what, length(what) - 10) || 'before', sum(n) FROM old GROUP BY 1, 2 ORDER BY 1, 2
ON CONFLICT (project_id, what) DO UPDATE SET n = c.n + excluded.n
"""
# The names are those that the triggers use, which a migration created.
REBUILD = (
    "DELETE FROM counts",
    "DELETE FROM count_deltas",
    """
    INSERT INTO counts (project_id, what, n)
    SELECT project_id, 'prompt:' || split || ':' || state || ':' || has_accepted::text, count(*)
    FROM prompts GROUP BY 1, 2
    UNION ALL
    SELECT project_id, 'verdict:' || critic_id || ':' || state || ':' || kind || ':'
        || to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD'), count(*)
    FROM verdicts WHERE current GROUP BY 1, 2
    """,
)


@dataclass(frozen=True, slots=True)
class PromptCount:
    """The number of prompts of a split in a state, with or without an accepted rationale."""

    split: Split
    state: PromptState
    has_accepted: bool
    n: int


@dataclass(frozen=True, slots=True)
class VerdictCount:
    """The number of current verdicts of a critic, by kind, state and day (UTC); None for days over a month ago."""

    critic_id: int
    state: str
    kind: str
    day: date | None
    n: int


def prompt_counts(session: Session, project: Project) -> list[PromptCount]:
    """All prompts of a project, by split, state and whether they have an accepted rationale."""
    found = []
    for row in session.execute(text(READ), {"project": project.id, "kind": "prompt:%"}):
        _, split, state, accepted = row.what.split(":")
        found.append(PromptCount(Split(split), PromptState(state), accepted == "true", row.n))
    return found


def verdict_counts(session: Session, project: Project) -> list[VerdictCount]:
    """All current verdicts of a project."""
    found = []
    for row in session.execute(text(READ), {"project": project.id, "kind": "verdict:%"}):
        _, critic, state, kind, day = row.what.split(":")
        when = None if day == "before" else date.fromisoformat(day)
        found.append(VerdictCount(int(critic), state, kind, when, row.n))
    return found


def sum_by_kind(found: list[VerdictCount]) -> Counter[str]:
    """The number of verdicts of each kind."""
    sums: Counter[str] = Counter()
    for one in found:
        sums[one.kind] += one.n
    return sums


def fold_deltas(session: Session) -> None:
    """Fold the deltas into the counts."""
    session.execute(text(FOLD))
    session.execute(text(MERGE_OLD_DAYS))
    session.execute(text("DELETE FROM counts WHERE n = 0"))


def rebuild(session: Session) -> None:
    """Recount everything, for rows that were inserted without triggers."""
    session.execute(text("LOCK TABLE prompts, verdicts IN SHARE MODE"))
    for statement in REBUILD:
        session.execute(text(statement))
