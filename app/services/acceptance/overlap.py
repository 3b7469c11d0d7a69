"""How many critics a set wants: a number, or as many as it takes."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.db.judging_pool import statement

# How many critics a set `s` wants under an adaptive overlap: one, a second where the first was unsure (somebody
# skipped or flagged it) or disagreed with the model (none of its candidates fits, or a text of their own), and as many
# as the project's overlap where those who judged it disagree with one another.
WANTED = """
(
    SELECT CASE
        WHEN said.judged > 1 AND said.ways > 1 THEN said.most
        WHEN said.judged > 1 THEN said.judged
        WHEN said.unsure > 0 OR said.objections > 0 THEN least(2, said.most)
        ELSE 1 END
    FROM (
        SELECT (r.settings ->> 'overlap')::int AS most,
            count(v.id) FILTER (WHERE v.kind IN ('picked', 'none_fit')) AS judged,
            count(v.id) FILTER (WHERE v.kind IN ('skipped', 'flagged')) AS unsure,
            count(v.id) FILTER (WHERE v.kind = 'none_fit' OR v.rationale IS NOT NULL) AS objections,
            count(DISTINCT ARRAY(SELECT k.candidate_id FROM picks k WHERE k.verdict_id = v.id ORDER BY 1))
                FILTER (WHERE v.kind IN ('picked', 'none_fit')) AS ways
        FROM projects j JOIN setting_revisions r ON r.id = j.revision_id
        LEFT JOIN verdicts v ON v.candidate_set_id = s.id AND v.current AND v.state = 'counted'
        WHERE j.id = s.project_id GROUP BY r.id
    ) said
)
"""
ADAPT_SET = statement(f"""
UPDATE candidate_sets s SET slots = greatest(s.taken, 1, {WANTED})
WHERE s.id = CAST(:set AS bigint) AND s.state = 'ready' RETURNING s.slots
""")  # noqa: S608 - constants only
# Sets that nobody claimed yet have nothing said of them, so only the others are looked at one by one.
ADAPT_PROJECT = f"""
UPDATE candidate_sets s SET slots = CASE WHEN s.taken = 0 AND NOT EXISTS (
    SELECT FROM verdicts v WHERE v.candidate_set_id = s.id AND v.current
) THEN 1 ELSE greatest(s.taken, 1, {WANTED}) END
WHERE s.project_id = :project AND s.state = 'ready'
"""  # noqa: S608 - constants only
FIX_PROJECT = """
UPDATE candidate_sets s SET slots = greatest(s.taken, CAST(:overlap AS int))
WHERE s.project_id = :project AND s.state = 'ready' AND s.slots <> greatest(s.taken, CAST(:overlap AS int))
"""
CLOSE_FULL_SETS = """
WITH closed AS (
    UPDATE candidate_sets s SET state = 'judged'
    WHERE s.project_id = :project AND s.state = 'ready' AND s.taken = s.slots AND NOT EXISTS (
        SELECT FROM assignments a WHERE a.candidate_set_id = s.id AND a.state = 'open' AND a.purpose = 'work'
    )
    RETURNING s.prompt_id
)
UPDATE prompts p SET state = 'judged' FROM closed WHERE p.id = closed.prompt_id AND p.state = 'ready'
"""
LIFT = """
UPDATE candidate_sets s SET lift = CASE WHEN :wants THEN s.spread / (1 + s.spread) ELSE 0 END
WHERE s.project_id = :project AND s.state = 'ready' AND s.spread IS NOT NULL
"""


def first_slots(most: int, *, adaptive: bool) -> int:
    """How many slots a new set has."""
    return 1 if adaptive else most


def change(session: Session, project_id: int, most: int, *, adaptive: bool) -> None:
    """Give the sets on offer their new number of slots; what is done stays done.

    Those whose slots are all judged by that are judged.
    """
    if adaptive:
        session.execute(text(ADAPT_PROJECT), {"project": project_id})
    else:
        session.execute(text(FIX_PROJECT), {"project": project_id, "overlap": most})
    session.execute(text(CLOSE_FULL_SETS), {"project": project_id})


def change_order(session: Session, project_id: int, *, by_spread: bool) -> None:
    """Offer the sets first about which the model is least sure, or no longer."""
    session.execute(text(LIFT), {"project": project_id, "wants": by_spread})
