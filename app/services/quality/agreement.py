"""Agreement between critics: Krippendorff's alpha over candidates, each picked or not by those who judged its set.

Alpha is 1 for perfect agreement and 0 for agreement by chance (Krippendorff 2011, "Computing Krippendorff's
Alpha-Reliability"). The units are candidates, the values nominal. Candidates of a set are judged together, so the
bootstrap draws sets, not candidates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations
from typing import Any, NamedTuple

import krippendorff
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.models import Project
from app.services.kernel.actors import Actor, require
from app.services.kernel.rights import Right
from illume.phrases import _

MAX_SETS = 500
"""Only this many of the newest shared sets are used, so that the figure is available at once."""
MAX_UNSWEPT = 1000
"""How many of the newest verdicts are also searched for sets that the sweep has not seen yet."""
RESAMPLES = 1000
FEW_SETS = 10
NO_SHARED_SETS = _(
    "No explanations have been judged by two critics yet: raise 'Critics per prompt' in the settings, so that critics "
    "judge the same ones."
)
NO_VARIETY = _(
    "All verdicts are alike: every explanation was picked by everyone, or none by anyone. Chance would agree as well, "
    "so alpha says nothing."
)

# The newest sets that two or more critics judged, according to the sweep and to the newest verdicts; then what each
# verdict on them picked. A candidate that was not picked counts as rejected.
VOTES = """
WITH newest AS (
    SELECT v.candidate_set_id AS set_id FROM verdicts v
    WHERE v.project_id = :project AND v.current AND v.state = 'counted' AND v.kind IN ('picked', 'none_fit')
    ORDER BY v.xid DESC, v.id DESC LIMIT :unseen
), known AS (
    SELECT a.candidate_set_id AS set_id FROM agreements a
    WHERE a.project_id = :project ORDER BY a.last_verdict_id DESC LIMIT :most
), judged AS MATERIALIZED (
    SELECT s.set_id, v.id, v.critic_id, v.created_at
    FROM (SELECT set_id FROM newest UNION SELECT set_id FROM known) s
    CROSS JOIN LATERAL (SELECT * FROM verdicts x WHERE x.candidate_set_id = s.set_id OFFSET 0) v
    WHERE v.current AND v.state = 'counted' AND v.kind IN ('picked', 'none_fit')
      AND NOT (SELECT a.repeat FROM assignments a WHERE a.id = v.assignment_id)
), shared AS MATERIALIZED (
    SELECT set_id FROM judged GROUP BY 1 HAVING count(DISTINCT critic_id) > 1 ORDER BY max(id) DESC LIMIT :most
)
SELECT j.set_id, j.critic_id, j.created_at, c.ids AS candidates,
    ARRAY(SELECT k.candidate_id FROM picks k WHERE k.verdict_id = j.id) AS picked
FROM shared s
CROSS JOIN LATERAL (
    SELECT ARRAY(SELECT x.id FROM candidates x WHERE x.candidate_set_id = s.set_id AND NOT x.spare) AS ids
) c
JOIN judged j ON j.set_id = s.set_id
ORDER BY j.set_id, j.id
"""


class Vote(NamedTuple):
    """What one critic said about one candidate. A tuple, because a page uses tens of thousands."""

    set_id: int
    candidate_id: int
    critic_id: int
    at: datetime
    picked: bool


@dataclass(frozen=True, slots=True)
class Agreement:
    """Alpha with its 95 % bootstrap interval, over `candidates` of `sets` that two or more critics judged.

    `share`: how often two critics said the same about a candidate. If alpha is None, `reason` says why.
    """

    alpha: float | None
    low: float | None
    high: float | None
    share: float | None
    candidates: int
    sets: int
    reason: str


@dataclass(frozen=True, slots=True)
class CriticPair:
    """Two critics, by id, and their agreement on what both judged."""

    first: int
    second: int
    agreement: Agreement


def load_votes(session: Session, project: Project, *, most: int = MAX_SETS) -> list[Vote]:
    """Load the votes on the newest `most` sets that two or more critics judged. Planned repeats are excluded."""
    rows = session.execute(text(VOTES), {"project": project.id, "most": most, "unseen": MAX_UNSWEPT})
    return [
        Vote(row.set_id, candidate, row.critic_id, row.created_at, candidate in row.picked)
        for row in rows
        for candidate in row.candidates
    ]


def project_agreement(session: Session, actor: Actor, project: Project) -> Agreement:
    """The agreement of a project's critics."""
    require(session, actor, project, Right.sees_others)
    return compute_agreement(load_votes(session, project))


def compute_agreement(votes: Iterable[Vote], *, seed: int = 0) -> Agreement:
    """Compute alpha of these votes. The interval resamples sets with replacement."""
    units: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    set_of: dict[int, int] = {}
    for vote in votes:
        units[vote.candidate_id][vote.picked] += 1
        set_of[vote.candidate_id] = vote.set_id
    counts = {candidate: tally for candidate, tally in units.items() if sum(tally) > 1}
    sets = sorted({set_of[candidate] for candidate in counts})
    if not counts:
        return Agreement(None, None, None, None, 0, 0, NO_SHARED_SETS)
    table = np.array([counts[candidate] for candidate in counts], dtype=np.float64)
    share = _share_of_agreeing_pairs(table)
    if not (table.sum(axis=0) > 0).all():
        return Agreement(None, None, None, share, len(counts), len(sets), NO_VARIETY)
    alpha = float(krippendorff.alpha(value_counts=table, level_of_measurement="nominal"))
    place = {set_id: number for number, set_id in enumerate(sets)}
    groups = np.array([place[set_of[candidate]] for candidate in counts])
    low, high = bootstrap_alpha(table, groups, len(sets), seed)
    return Agreement(alpha, low, high, share, len(counts), len(sets), "")


def _share_of_agreeing_pairs(table: NDArray[np.float64]) -> float:
    """The share of pairs of votes on a candidate that agree."""
    total = table.sum(axis=1)
    alike = (table * (table - 1)).sum()
    return float(alike / (total * (total - 1)).sum())


def bootstrap_alpha(
    table: NDArray[np.float64], groups: NDArray[Any], n_groups: int, seed: int
) -> tuple[float | None, float | None]:
    """The 95 % percentile interval of alpha over sets drawn with replacement; None for a single set.

    Alpha of two nominal values needs only sums over the units: of observed disagreement, of both values, and of all.
    """
    if n_groups < 2:
        return None, None
    total = table.sum(axis=1)
    parts = np.stack([2 * table[:, 0] * table[:, 1] / (total - 1), table[:, 0], table[:, 1]], axis=1)
    by_set = np.zeros((n_groups, parts.shape[1]))
    np.add.at(by_set, groups, parts)
    # Few sums are distinct, so it is enough to draw how often each of them occurs.
    different, times = np.unique(by_set.round(9), axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(n_groups, times / times.sum(), size=RESAMPLES) @ different
    apart, first, second = drawn.T
    possible = first * second > 0
    if not possible.any():
        return None, None
    n = (first + second)[possible]
    alphas = 1 - (n - 1) * apart[possible] / (2 * first[possible] * second[possible])
    low, high = np.quantile(alphas, [0.025, 0.975])
    return float(low), float(high)


def _group_by_candidate(votes: Iterable[Vote]) -> Iterable[list[Vote]]:
    """Group votes by candidate."""
    found: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes:
        found[vote.candidate_id].append(vote)
    return found.values()


def agreement_by_pair(votes: Sequence[Vote], *, most: int | None = None, of: int | None = None) -> list[CriticPair]:
    """The agreement of every two critics who share a set, those with the most shared sets first.

    At most `most` pairs; with `of`, only those with this critic.
    """
    shared: dict[tuple[int, int], list[Vote]] = defaultdict(list)
    for on_one in _group_by_candidate(votes):
        for first, second in combinations(sorted(on_one, key=lambda vote: vote.critic_id), 2):
            if first.critic_id != second.critic_id and of in (None, first.critic_id, second.critic_id):
                shared[first.critic_id, second.critic_id] += (first, second)
    n_sets = {pair: len({vote.set_id for vote in both}) for pair, both in shared.items()}
    chosen = sorted(shared, key=lambda pair: (-n_sets[pair], pair))[:most]
    return [CriticPair(first, second, compute_agreement(shared[first, second])) for first, second in chosen]


def agreement_by_critic(votes: Sequence[Vote]) -> dict[int, Agreement]:
    """The agreement between each critic and the others, over the candidates that the critic judged."""
    own: dict[int, list[Vote]] = defaultdict(list)
    for on_one in _group_by_candidate(votes):
        for critic_id in {vote.critic_id for vote in on_one}:
            own[critic_id] += on_one
    return {critic_id: compute_agreement(found) for critic_id, found in own.items()}


def agreement_by_period(votes: Sequence[Vote], key: Callable[[datetime], int]) -> dict[int, Agreement]:
    """Agreement by period, where `key` maps a time to a period. A set counts in the period of its last vote."""
    last: dict[int, datetime] = {}
    for vote in votes:
        last[vote.set_id] = max(last.get(vote.set_id, vote.at), vote.at)
    groups: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes:
        groups[key(last[vote.set_id])].append(vote)
    return {period: compute_agreement(group) for period, group in sorted(groups.items())}


def as_json(found: Agreement) -> dict[str, Any]:
    """An agreement as the REST interface returns it."""
    return {
        "alpha": found.alpha,
        "low": found.low,
        "high": found.high,
        "candidates": found.candidates,
        "sets": found.sets,
        "of_newest_sets": MAX_SETS,
        "undefined_because": found.reason or None,
    }
