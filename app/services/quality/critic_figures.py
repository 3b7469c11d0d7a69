"""How critics judge: by place on the page, and day by day."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.models import Project, Role, User
from app.services.kernel import counters
from app.services.kernel.actors import Actor, require
from illume.evaluation.metrics import Interval

NEWEST = 4000

# Of each verdict: at which places of the page it picked, and how many places there were.
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
    """How often each place on the page was picked, of `verdicts` that picked something.

    `first`: how much more often the first place was picked than places are on average, with its 95 % interval. The
    order is drawn by chance, so who looks at all of them alike has an interval around 0.
    """

    rates: tuple[float, ...]
    verdicts: int
    first: Interval | None


@dataclass(frozen=True, slots=True)
class DailyVerdicts:
    """The verdicts of one day, UTC, by critic's id."""

    day: date
    verdicts: dict[int, int]


def list_critic_names(session: Session, actor: Actor, project: Project) -> dict[int, str]:
    """Everybody who has judged in a project: id -> address."""
    require(session, actor, project, Role.viewer)
    ids = {one.critic_id for one in counters.verdict_counts(session, project)}
    return {row.id: row.email for row in session.execute(select(User.id, User.email).where(User.id.in_(ids)))}


def load_position_figures(session: Session, actor: Actor, project: Project) -> dict[int | None, PositionFigures]:
    """Picks by place on the page: of each critic, and of all under None. The newest 4,000 verdicts count."""
    require(session, actor, project, Role.viewer)
    rows = session.execute(text(PICKED_POSITIONS), {"project": project.id, "newest": NEWEST}).all()
    by_critic: dict[int | None, list[tuple[int, frozenset[int]]]] = {None: []}
    for row in rows:
        # A picked candidate that was not shown stands at no place: it came with a change over the REST interface.
        seen = (row.places, frozenset(place for place in row.picked if place is not None))
        by_critic[None].append(seen)
        by_critic.setdefault(row.critic_id, []).append(seen)
    return {critic: compute_position_figures(seen) for critic, seen in by_critic.items()}


def compute_position_figures(seen: list[tuple[int, frozenset[int]]]) -> PositionFigures:
    """The figures of verdicts, each the number of places and those that were picked, from 1."""
    most = max((places for places, _ in seen), default=0)
    rates = []
    for place in range(1, most + 1):
        there = [place in picked for places, picked in seen if places >= place]
        rates.append(sum(there) / len(there))
    differences = [(1 in picked) - len(picked) / places for places, picked in seen if places > 1]
    first = bootstrap_mean(differences) if differences else None
    return PositionFigures(tuple(rates), len(seen), first)


def bootstrap_mean(differences: list[float], *, resamples: int = 2000) -> Interval:
    """Percentile bootstrap interval of a mean, as `illume.evaluation.metrics.bootstrap_interval` has it.

    There are few different values, so how often each is drawn is drawn at once: thousands of verdicts take no longer.
    """
    values, times = np.unique(np.array(differences), return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(differences), times / times.sum(), size=resamples)
    low, high = np.quantile(drawn @ values / len(differences), [0.025, 0.975])
    return Interval(float(np.mean(differences)), float(low), float(high), len(differences))


def list_daily_verdicts(session: Session, actor: Actor, project: Project) -> list[DailyVerdicts]:
    """The days of the last month that had verdicts."""
    require(session, actor, project, Role.viewer)
    today: date = session.scalar(select(func.date(func.timezone("UTC", func.now())))) or date.min
    found: dict[date, dict[int, int]] = {}
    for one in counters.verdict_counts(session, project):
        if one.day is not None and one.day >= today - timedelta(days=DAYS):
            of_day = found.setdefault(one.day, {})
            of_day[one.critic_id] = of_day.get(one.critic_id, 0) + one.n
    return [DailyVerdicts(day, dict(sorted(found[day].items()))) for day in sorted(found)]
