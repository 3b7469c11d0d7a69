"""The overlap: how many critics judge a set. Fixed, or adaptive to how far they agree."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.db.judging_pool import statement

NextPrompt = Literal["priority", "uncertain", "critic"]
"""Which set comes first within a priority: the oldest, or the one that the model or the machine critic is unsure of."""

# Whether the critics of the set `s` gave different values for a choice of its answers, where these have fields.
FIELDS_DIFFER = """
EXISTS (
    SELECT FROM verdicts v CROSS JOIN LATERAL jsonb_each(v.fields) f
    WHERE v.candidate_set_id = s.id AND v.current AND v.state = 'counted' AND v.kind IN ('picked', 'none_fit')
      AND f.key IN (
          SELECT one ->> 'name' FROM projects j JOIN setting_revisions r ON r.id = j.revision_id
          CROSS JOIN LATERAL jsonb_array_elements(r.settings -> 'answer_fields') one
          WHERE j.id = s.project_id AND one ->> 'kind' = 'choice'
      )
    GROUP BY f.key HAVING count(DISTINCT f.value) > 1
)
"""
# How many critics a set `s` needs under an adaptive overlap. One by default. Two, if somebody skipped or flagged it or
# the first critic objected to the candidates (none fits, or wrote an own text). The project's overlap, if those who
# judged it disagree with each other.
SLOTS_NEEDED = f"""
(
    SELECT CASE
        WHEN votes.judged > 1 AND (votes.distinct_picks > 1 OR {FIELDS_DIFFER}) THEN votes.most
        WHEN votes.judged > 1 THEN votes.judged
        WHEN votes.unsure > 0 OR votes.objections > 0 THEN least(2, votes.most)
        ELSE 1 END
    FROM (
        SELECT (r.settings ->> 'overlap')::int AS most,
            count(v.id) FILTER (WHERE v.kind IN ('picked', 'none_fit')) AS judged,
            count(v.id) FILTER (WHERE v.kind IN ('skipped', 'flagged')) AS unsure,
            count(v.id) FILTER (WHERE v.kind = 'none_fit' OR v.rationale IS NOT NULL) AS objections,
            count(DISTINCT ARRAY(SELECT k.candidate_id FROM picks k WHERE k.verdict_id = v.id ORDER BY 1))
                FILTER (WHERE v.kind IN ('picked', 'none_fit')) AS distinct_picks
        FROM projects j JOIN setting_revisions r ON r.id = j.revision_id
        LEFT JOIN verdicts v ON v.candidate_set_id = s.id AND v.current AND v.state = 'counted'
        WHERE j.id = s.project_id GROUP BY r.id
    ) votes
)
"""  # noqa: S608 - constants only
ADAPT_SET = statement(f"""
UPDATE candidate_sets s SET slots = greatest(s.taken, 1, {SLOTS_NEEDED})
WHERE s.id = CAST(:set AS bigint) AND s.state = 'ready' RETURNING s.slots
""")  # noqa: S608 - constants only
# Unclaimed sets have no verdicts, so only the others need the subquery.
SET_ADAPTIVE_OVERLAP = f"""
UPDATE candidate_sets s SET slots = CASE WHEN s.taken = 0 AND NOT EXISTS (
    SELECT FROM verdicts v WHERE v.candidate_set_id = s.id AND v.current
) THEN 1 ELSE greatest(s.taken, 1, {SLOTS_NEEDED}) END
WHERE s.project_id = :project AND s.state = 'ready'
"""  # noqa: S608 - constants only
SET_FIXED_OVERLAP = """
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
UPDATE_LIFT = """
UPDATE candidate_sets s SET lift = coalesce(u.unsure / (1 + u.unsure), 0)
FROM (SELECT id, CASE :order WHEN 'uncertain' THEN spread WHEN 'critic' THEN doubt END AS unsure FROM candidate_sets
    WHERE project_id = :project AND state = 'ready') u
WHERE s.id = u.id AND (s.spread IS NOT NULL OR s.doubt IS NOT NULL)
"""


def first_slots(most: int, *, adaptive: bool) -> int:
    """The number of slots of a new set."""
    return 1 if adaptive else most


def change_overlap(session: Session, project_id: int, most: int, *, adaptive: bool) -> None:
    """Update the number of slots of all ready sets, never below the slots already taken.

    A set whose slots are then all judged becomes judged itself.
    """
    if adaptive:
        session.execute(text(SET_ADAPTIVE_OVERLAP), {"project": project_id})
    else:
        session.execute(text(SET_FIXED_OVERLAP), {"project": project_id, "overlap": most})
    session.execute(text(CLOSE_FULL_SETS), {"project": project_id})


def change_order(session: Session, project_id: int, order: NextPrompt) -> None:
    """Offer the ready sets in another order."""
    session.execute(text(UPDATE_LIFT), {"project": project_id, "order": order})
