"""What verdicts say about critics field by field: agreement, check questions and repeats, where answers have fields."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.models import Project
from app.services.projects.policies import answer_fields_of
from app.services.projects.projects import settings_of
from app.services.quality.agreement import MAX_SETS
from illume.evaluation.field_metrics import field_alpha

# What each critic said in the end about the fields of the newest sets that two or more critics judged.
SAID = """
WITH judged AS (
    SELECT v.candidate_set_id AS set_id, v.id, v.critic_id, v.fields FROM verdicts v
    WHERE v.project_id = :project AND v.current AND v.state = 'counted' AND v.kind IN ('picked', 'none_fit')
      AND v.fields IS NOT NULL
), shared AS (
    SELECT set_id FROM judged GROUP BY 1 HAVING count(DISTINCT critic_id) > 1 ORDER BY max(id) DESC LIMIT :most
)
SELECT j.set_id, j.fields FROM shared JOIN judged j USING (set_id) ORDER BY j.set_id, j.id
"""
# How often the fields of a check question were judged as its gold values say, and those of a repeat as before.
AGAIN = """
SELECT f.key AS name, 'gold' AS against, count(*) AS n, count(*) FILTER (WHERE v.fields -> f.key = f.value) AS same
FROM verdicts v JOIN prompts p ON p.id = v.prompt_id CROSS JOIN LATERAL jsonb_each(p.fields) f
WHERE v.project_id = :project AND v.current AND v.state = 'gold' AND v.kind IN ('picked', 'none_fit')
  AND v.fields ? f.key
GROUP BY 1
UNION ALL
SELECT f.key, 'repeat', count(*), count(*) FILTER (WHERE v.fields -> f.key = f.value)
FROM verdicts v
JOIN verdicts first ON first.candidate_set_id = v.candidate_set_id AND first.critic_id = v.critic_id
    AND first.current AND first.state = 'counted' AND first.kind IN ('picked', 'none_fit')
CROSS JOIN LATERAL jsonb_each(first.fields) f
WHERE v.project_id = :project AND v.current AND v.state = 'repeat' AND v.kind IN ('picked', 'none_fit')
  AND v.fields ? f.key
GROUP BY 1
"""


@dataclass(frozen=True, slots=True)
class FieldQuality:
    """How critics judge one field. Shares are None where nothing was judged.

    `alpha` is over `sets` that two or more critics judged, ordinal where the field's choices are in order. `gold_right`
    of `gold` judgements of check questions are right, `repeats_same` of `repeats` are as before.
    """

    alpha: float | None
    ordinal: bool
    sets: int
    gold: int
    gold_right: int
    repeats: int
    repeats_same: int


def load_field_quality(session: Session, project: Project) -> dict[str, FieldQuality]:
    """How critics judge each choice of the project's answers, over the newest sets."""
    fields = answer_fields_of(settings_of(session, project))
    if fields is None:
        return {}
    units: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in session.execute(text(SAID), {"project": project.id, "most": MAX_SETS}):
        for name, value in row.fields.items():
            if value is not None:
                units[name][row.set_id].append(value)
    again: dict[tuple[str, str], Any] = {
        (row.name, row.against): row for row in session.execute(text(AGAIN), {"project": project.id})
    }
    found = {}
    for one in fields.fields:
        if one.kind != "choice":
            continue
        given = [values for values in units[one.name].values() if len(values) > 1]
        # Categories of all policies: which there are matters for ordinal choices only.
        known = one.choices or sorted({value for values in given for value in values})
        gold, repeat = again.get((one.name, "gold")), again.get((one.name, "repeat"))
        found[one.name] = FieldQuality(
            alpha=field_alpha(given, known, ordinal=one.ordinal),
            ordinal=one.ordinal,
            sets=len(given),
            gold=0 if gold is None else gold.n,
            gold_right=0 if gold is None else gold.same,
            repeats=0 if repeat is None else repeat.n,
            repeats_same=0 if repeat is None else repeat.same,
        )
    return found
