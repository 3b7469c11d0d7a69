"""What repeats say about critics: whether they judge the same again, and whether position influences them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.models import Project
from app.services.kernel.actors import Actor, require
from app.services.kernel.rights import Right

# Each candidate of each set that a critic judged twice: whether it was picked, and its position, the first time and
# again. A position runs from 0, the first, to 1, the last.
REPEATED_CHOICES = """
WITH pairs AS (
    SELECT again.critic_id, again.id AS again_id, first.id AS first_id, again.candidate_set_id,
        again.shown AS again_shown, first.shown AS first_shown
    FROM verdicts again
    JOIN verdicts first ON first.candidate_set_id = again.candidate_set_id AND first.critic_id = again.critic_id
        AND first.current AND first.state = 'counted' AND first.kind IN ('picked', 'none_fit')
    WHERE again.project_id = :project AND again.state = 'repeat' AND again.current
      AND again.kind IN ('picked', 'none_fit')
), choices AS (
    SELECT pairs.critic_id, pairs.candidate_set_id, c.id,
        EXISTS (SELECT FROM picks k WHERE k.verdict_id = pairs.first_id AND k.candidate_id = c.id) AS before,
        EXISTS (SELECT FROM picks k WHERE k.verdict_id = pairs.again_id AND k.candidate_id = c.id) AS now,
        (array_position(first_shown, c.id) - 1.0) / greatest(cardinality(first_shown) - 1, 1) AS place_before,
        (array_position(again_shown, c.id) - 1.0) / greatest(cardinality(again_shown) - 1, 1) AS place_now
    FROM pairs JOIN candidates c ON c.candidate_set_id = pairs.candidate_set_id AND NOT c.spare
)
SELECT u.id AS critic_id, u.email, u.name, count(DISTINCT candidate_set_id) AS sets, count(*) AS candidates,
    avg(CASE WHEN before = now THEN 1.0 ELSE 0.0 END)::double precision AS same,
    count(*) FILTER (WHERE before <> now) AS changed,
    avg(CASE WHEN before THEN place_before - place_now ELSE place_now - place_before END)
        FILTER (WHERE before <> now)::double precision AS shift
FROM choices JOIN users u ON u.id = choices.critic_id
GROUP BY u.id, u.email, u.name ORDER BY lower(u.email)
"""


@dataclass(frozen=True, slots=True)
class Consistency:
    """How consistently a critic judged repeated sets.

    `same` is the share of candidates judged alike both times. `shift` covers those judged differently: how much further
    down a candidate stood when it was picked than when it was not. It runs from -1 (they pick what stands first) over 0
    (position has no influence) to 1; None if nothing was judged differently.
    """

    critic_id: int
    email: str
    name: str
    sets: int
    candidates: int
    same: float
    changed: int
    shift: float | None


def measure_consistency(session: Session, actor: Actor, project: Project) -> list[Consistency]:
    """The consistency of each critic with repeats, by email. Needs the role reviewer."""
    require(session, actor, project, Right.reviews)
    rows = session.execute(text(REPEATED_CHOICES), {"project": project.id})
    return [
        Consistency(row.critic_id, row.email, row.name, row.sets, row.candidates, row.same, row.changed, row.shift)
        for row in rows
    ]
