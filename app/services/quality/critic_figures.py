"""How critics judge: by position on the page, and by day."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.models import Project, User
from app.services.kernel import counters
from app.services.kernel.actors import Actor, require
from app.services.kernel.rights import Right
from illume.evaluation.metrics import Interval

NEWEST = 4000

# For each verdict: the positions it picked, and how many positions there were.
PICKED_POSITIONS = """
SELECT v.critic_id, cardinality(v.shown) AS places,
    ARRAY(SELECT array_position(v.shown, k.candidate_id) FROM picks k WHERE k.verdict_id = v.id) AS picked
FROM verdicts v
WHERE v.project_id = :project AND v.current AND v.state = 'counted' AND v.kind = 'picked'
ORDER BY v.xid DESC, v.id DESC LIMIT :newest
"""

DAYS = 30


@dataclass(frozen=True, slots=True)
class PositionFigures:
    """How often each position on the page was picked, over `verdicts` that picked something.

    `first`: how much more often the first position was picked than positions are on average, with its 95 % interval.
    The order is random, so a critic who looks at all candidates alike has an interval around 0.
    """

    rates: tuple[float, ...]
    verdicts: int
    first: Interval | None


@dataclass(frozen=True, slots=True)
class DailyVerdicts:
    """The verdicts of one day (UTC), by critic id."""

    day: date
    verdicts: dict[int, int]


def list_critic_names(session: Session, actor: Actor, project: Project) -> dict[int, str]:
    """Everyone who has judged in a project: id -> address."""
    require(session, actor, project, Right.sees_others)
    ids = {one.critic_id for one in counters.verdict_counts(session, project)}
    return {row.id: row.email for row in session.execute(select(User.id, User.email).where(User.id.in_(ids)))}


def load_position_figures(session: Session, actor: Actor, project: Project) -> dict[int | None, PositionFigures]:
    """Picks by position on the page: for each critic, and for all under None. The newest 4,000 verdicts count."""
    require(session, actor, project, Right.sees_others)
    rows = session.execute(text(PICKED_POSITIONS), {"project": project.id, "newest": NEWEST}).all()
    by_critic: dict[int | None, list[tuple[int, frozenset[int]]]] = {None: []}
    for row in rows:
        # A picked candidate that was not shown has no position: it came with a change over the REST interface.
        seen = (row.places, frozenset(place for place in row.picked if place is not None))
        by_critic[None].append(seen)
        by_critic.setdefault(row.critic_id, []).append(seen)
    return {critic: compute_position_figures(seen) for critic, seen in by_critic.items()}


def compute_position_figures(seen: list[tuple[int, frozenset[int]]]) -> PositionFigures:
    """Compute the figures of verdicts, each given as its number of positions and the picked ones, from 1."""
    most = max((places for places, _ in seen), default=0)
    rates = []
    for place in range(1, most + 1):
        there = [place in picked for places, picked in seen if places >= place]
        rates.append(sum(there) / len(there))
    differences = [(1 in picked) - len(picked) / places for places, picked in seen if places > 1]
    first = bootstrap_mean(differences) if differences else None
    return PositionFigures(tuple(rates), len(seen), first)


def bootstrap_mean(differences: list[float], *, resamples: int = 2000) -> Interval:
    """A percentile bootstrap interval of a mean, as in `illume.evaluation.metrics.bootstrap_interval`.

    There are few distinct values, so drawing how often each occurs is enough, and fast for thousands of verdicts.
    """
    values, times = np.unique(np.array(differences), return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(differences), times / times.sum(), size=resamples)
    low, high = np.quantile(drawn @ values / len(differences), [0.025, 0.975])
    return Interval(float(np.mean(differences)), float(low), float(high), len(differences))


def list_daily_verdicts(session: Session, actor: Actor, project: Project) -> list[DailyVerdicts]:
    """The days of the last month with verdicts."""
    require(session, actor, project, Right.sees_others)
    today: date = session.scalar(select(func.date(func.timezone("UTC", func.now())))) or date.min
    found: dict[date, dict[int, int]] = {}
    for one in counters.verdict_counts(session, project):
        if one.day is not None and one.day >= today - timedelta(days=DAYS):
            of_day = found.setdefault(one.day, {})
            of_day[one.critic_id] = of_day.get(one.critic_id, 0) + one.n
    return [DailyVerdicts(day, dict(sorted(found[day].items()))) for day in sorted(found)]
