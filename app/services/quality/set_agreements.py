"""Where critics disagree: kept for each candidate set that several judged, by following the feed of verdicts.

Searching all verdicts would slow down as they grow, and updating it with each verdict would cost critics time. So the
sweep follows the feed, and a list is as old as the last sweep.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.orm import Session

BATCH_SIZE = 5000
# The sets of new verdicts behind each project's feed position, in the order of the feed, and the last verdict.
NEW_VERDICTS = """
SELECT p.id AS project_id, n.sets, n.last_xid, n.last_id, n.found
FROM projects p LEFT JOIN agreement_places f ON f.project_id = p.id
CROSS JOIN LATERAL (
    SELECT array_agg(DISTINCT v.candidate_set_id) AS sets, count(*) AS found,
        CAST((array_agg(v.xid ORDER BY v.xid DESC, v.id DESC))[1] AS text) AS last_xid,
        (array_agg(v.id ORDER BY v.xid DESC, v.id DESC))[1] AS last_id
    FROM (
        SELECT v.xid, v.id, v.candidate_set_id FROM verdicts v
        WHERE v.project_id = p.id AND v.xid < pg_snapshot_xmin(pg_current_snapshot())
          AND (v.xid, v.id) > (CAST(coalesce(f.feed_xid, '0') AS xid8), coalesce(f.feed_id, 0))
        ORDER BY v.xid, v.id LIMIT :at_once
    ) v
) n
WHERE n.found > 0
"""
# The current agreement of the sets. Planned repeats do not count: consistency is shown elsewhere. One look-up per set,
# whatever number of sets the planner expects.
UPDATE_AGREEMENTS = """
WITH judged AS MATERIALIZED (
    SELECT s.id AS set_id, j.*
    FROM unnest(CAST(:sets AS bigint[])) s (id)
    CROSS JOIN LATERAL (
        SELECT min(v.prompt_id) AS prompt_id, max(v.id) AS last, count(DISTINCT v.critic_id) AS critics,
            count(DISTINCT ARRAY(SELECT k.candidate_id FROM picks k WHERE k.verdict_id = v.id ORDER BY 1)) > 1 AS apart
        FROM (SELECT * FROM verdicts x WHERE x.candidate_set_id = s.id OFFSET 0) v
        WHERE v.current AND v.state = 'counted' AND v.kind IN ('picked', 'none_fit')
          AND NOT (SELECT a.repeat FROM assignments a WHERE a.id = v.assignment_id)
    ) j
), gone AS (
    DELETE FROM agreements a USING judged j WHERE a.candidate_set_id = j.set_id AND j.critics < 2
)
INSERT INTO agreements AS a (candidate_set_id, project_id, prompt_id, apart, last_verdict_id)
SELECT set_id, :project, prompt_id, apart, last FROM judged WHERE critics > 1 ORDER BY set_id
ON CONFLICT (candidate_set_id) DO UPDATE SET apart = excluded.apart, last_verdict_id = excluded.last_verdict_id
WHERE (a.apart, a.last_verdict_id) <> (excluded.apart, excluded.last_verdict_id)
"""
SAVE_POSITION = """
INSERT INTO agreement_places (project_id, feed_xid, feed_id) VALUES (:project, :xid, :id)
ON CONFLICT (project_id) DO UPDATE SET feed_xid = excluded.feed_xid, feed_id = excluded.feed_id
"""


def update_agreements(session: Session, project_id: int, set_ids: Sequence[int]) -> None:
    """Recompute the agreement of these sets of a project."""
    session.execute(text(UPDATE_AGREEMENTS), {"project": project_id, "sets": list(set_ids)})


def follow_feed(session: Session) -> int:
    """Process new verdicts, a batch of each project. Returns how many verdicts there were."""
    found = 0
    for news in session.execute(text(NEW_VERDICTS), {"at_once": BATCH_SIZE}).all():
        update_agreements(session, news.project_id, news.sets)
        session.execute(text(SAVE_POSITION), {"project": news.project_id, "xid": news.last_xid, "id": news.last_id})
        found += news.found
    return found
