"""A critic's day: verdicts, pace, streak, and what became of their picks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, timedelta
from typing import Any

import orjson
from sqlalchemy import RowMapping, text
from sqlalchemy.orm import Session

from app.db.batches import Row
from app.db.judging_pool import Transaction, statement
from app.db.sessions import database_now
from app.errors import NotFound
from app.models import Project, Role, RoundState
from app.models.states import ACTIVE_ROUND_STATES
from app.services.kernel.actors import Actor, require
from app.services.kernel.rights import RIGHTS, Right
from app.services.quality.reviews import RETURNED_OF
from illume.evaluation.activation import Outcome, outcome_of
from illume.phrases import _

LOOK_BACK_DAYS = 90
SATURDAY = 5


@dataclass(frozen=True, slots=True)
class CriticPace:
    """A critic's verdicts since midnight UTC, and the median seconds of the newest timed ones; None without any.

    `target`: how many verdicts a day an admin asks of them.
    """

    today: int
    seconds: float | None
    target: int | None = None


@dataclass(frozen=True, slots=True)
class RunningRound:
    """The round that is going on."""

    number: int
    state: RoundState
    progress: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Glance:
    """A critic's pace, and where the project's loop is.

    `fresh` counts the prompts that newly got an accepted rationale, for those who may see what others said: a critic
    who judges alone would know by it which prompts are gold. `version` is the number of the active version;
    `returned` counts the critic's verdicts that a reviewer sent back and that wait for an answer.
    """

    pace: CriticPace
    fresh: int | None
    round: RunningRound | None
    version: int | None
    returned: int


@dataclass(frozen=True, slots=True)
class Credit:
    """A round that was trained on `picks` rationales of a critic, and how much its version's score changed.

    `gain` is in points of ROUGE-L (100 is perfect) if `metric` is `rouge_l`, else in nats per token; `outcome` says
    what it means over the `n` prompts on which it was measured.
    """

    round: int
    version: int | None
    picks: int
    metric: str
    gain: float
    outcome: Outcome
    n: int
    active: bool


@dataclass(frozen=True, slots=True)
class CriticDay:
    """A critic's day in a project. `streak` counts consecutive days with a verdict; a free weekend does not end it."""

    today: int
    hour: int
    seconds: float | None
    streak: int
    total: int
    credits: tuple[Credit, ...]


ACTIVE_STATES = ", ".join(f"'{state.value}'" for state in ACTIVE_ROUND_STATES)
GLANCE = statement(f"""
SELECT
    (
        SELECT count(*) FROM verdicts v
        WHERE v.critic_id = CAST(:critic AS bigint) AND v.project_id = p.id AND v.current
          AND v.created_at >= date_trunc('day', now(), 'UTC')
    ) AS today,
    (
        SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY newest.seconds)
        FROM (
            SELECT v.seconds, v.created_at FROM verdicts v
            WHERE v.critic_id = CAST(:critic AS bigint) AND v.project_id = p.id AND v.current
            ORDER BY v.critic_id DESC, v.project_id DESC, v.id DESC LIMIT 20
        ) newest
        WHERE newest.created_at >= date_trunc('day', now(), 'UTC')
    ) AS seconds,
    (
        SELECT d.daily_target FROM critic_standings d
        WHERE d.critic_id = CAST(:critic AS bigint) AND d.project_id = p.id
    ) AS target,
    (
        SELECT count(*) FROM prompts f WHERE f.project_id = p.id AND f.fresh AND f.state NOT IN ('held', 'retired')
    ) AS fresh,
    (SELECT m.role FROM memberships m WHERE m.project_id = p.id AND m.user_id = CAST(:critic AS bigint)) AS role,
    (SELECT count(*) FROM {RETURNED_OF.format(project="p.id")}) AS returned,
    r.number, r.state, r.progress, m.number AS version
FROM projects p
LEFT JOIN rounds r ON r.project_id = p.id AND r.state IN ({ACTIVE_STATES})
LEFT JOIN model_versions m ON m.id = p.active_version_id
WHERE p.id = CAST(:project AS bigint)
""")  # noqa: S608 - constants only
SUMS = text("""
SELECT count(*) AS total, count(*) FILTER (WHERE created_at >= now() - interval '1 hour') AS hour
FROM verdicts WHERE critic_id = :critic AND project_id = :project AND current
""")
DAYS = text("""
SELECT DISTINCT (created_at AT TIME ZONE 'UTC')::date AS day FROM verdicts
WHERE critic_id = :critic AND project_id = :project AND created_at >= now() - make_interval(days => :days)
""")
CREDITS = text("""
WITH ended AS (
    SELECT r.number, r.snapshot_id, r.metrics, r.decision, r.version_id FROM rounds r
    WHERE r.project_id = :project AND r.state = 'succeeded'
    ORDER BY r.number DESC LIMIT :limit
)
SELECT e.number AS round, v.number AS version, mine.picks, e.metrics ->> 'metric' AS metric,
    (e.metrics #>> '{change,score,mean}')::double precision AS gain,
    (e.metrics #>> '{change,score,low}')::double precision AS low,
    (e.metrics #>> '{change,score,high}')::double precision AS high,
    (e.metrics #>> '{change,score,n}')::integer AS n, e.decision ->> 'outcome' AS outcome,
    v.id = p.active_version_id AS active
FROM ended e
JOIN projects p ON p.id = :project
LEFT JOIN model_versions v ON v.id = e.version_id
CROSS JOIN LATERAL (
    SELECT count(*) AS picks FROM snapshot_items i JOIN verdicts w ON w.id = i.verdict_id
    WHERE i.snapshot_id = e.snapshot_id AND i.role = 'rationale' AND w.critic_id = :critic
) mine
WHERE mine.picks > 0 AND (e.metrics #> '{change,score,mean}') IS NOT NULL
ORDER BY e.number DESC
""")


def load_glance(session: Session, actor: Actor, project: Project) -> Glance:
    """The actor's pace, and where the project's loop is."""
    session.flush()
    row = session.execute(GLANCE.clause, {"critic": actor.user_id, "project": project.id}).mappings().one()
    return glance_from(row, row["progress"] or {}, actor)


async def load_glance_in(transaction: Transaction, actor: Actor, project_id: int) -> Glance:
    """The same in a judging transaction: every verdict is answered with it."""
    [row] = await transaction.run((GLANCE, {"critic": actor.user_id, "project": project_id}))
    if row is None:
        raise NotFound(_("There is no such project."))
    return glance_from(row, orjson.loads(row["progress"] or b"{}"), actor)


def glance_from(row: Row | RowMapping, progress: Mapping[str, Any], actor: Actor) -> Glance:
    """A row of `GLANCE`, with the progress of its round, as far as the actor may see it."""
    role = Role.admin if actor.is_admin else Role(row["role"] or Role.critic)
    fresh = row["fresh"] if Right.sees_others in RIGHTS[role] else None
    running = None if row["number"] is None else RunningRound(row["number"], RoundState(row["state"]), progress)
    pace = CriticPace(row["today"], row["seconds"], row["target"])
    return Glance(pace, fresh, running, row["version"], row["returned"])


def load_critic_day(session: Session, actor: Actor, project: Project) -> CriticDay:
    """The actor's day. Raises `Forbidden`."""
    require(session, actor, project, Right.judges)
    mine = {"critic": actor.user_id, "project": project.id}
    pace = load_glance(session, actor, project).pace
    sums = session.execute(SUMS, mine).one()
    days = frozenset(session.scalars(DAYS, {**mine, "days": LOOK_BACK_DAYS}))
    return CriticDay(
        today=pace.today,
        hour=sums.hour,
        seconds=pace.seconds,
        streak=count_streak(days, database_now(session).astimezone(UTC).date()),
        total=sums.total,
        credits=list_credits(session, actor, project),
    )


def list_credits(session: Session, actor: Actor, project: Project, *, limit: int = 5) -> tuple[Credit, ...]:
    """The newest rounds that were trained on what the actor picked or wrote, newest first."""
    rows = session.execute(CREDITS, {"critic": actor.user_id, "project": project.id, "limit": limit})
    return tuple(
        Credit(
            round=row.round,
            version=row.version,
            picks=row.picks,
            metric=row.metric,
            gain=100 * row.gain if row.metric == "rouge_l" else row.gain,
            # Rounds of earlier versions stored no outcome.
            outcome=row.outcome or outcome_of(row.low, row.high, row.n or 0),
            n=row.n or 0,
            active=bool(row.active),
        )
        for row in rows
    )


def count_streak(days: frozenset[date], today: date) -> int:
    """The number of consecutive days up to today; today itself and weekends may be missing."""
    count, day = 0, today
    while day in days or day == today or day.weekday() >= SATURDAY:
        count += day in days
        day -= timedelta(days=1)
        if (today - day).days > LOOK_BACK_DAYS:
            break
    return count
