"""A critic's day: verdicts, pace, streak, and what became of their picks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, timedelta

from sqlalchemy import and_, func, select, text
from sqlalchemy.orm import Session

from app.db.sessions import database_now
from app.models import ModelVersion, Project, Role, Round, Verdict
from app.models.states import ACTIVE_ROUND_STATES
from app.services.kernel.actors import Actor, require

LOOK_BACK_DAYS = 90
SATURDAY = 5


@dataclass(frozen=True, slots=True)
class CriticPace:
    """A critic's verdicts since midnight UTC, and the median seconds of the newest timed ones; None without any."""

    today: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Glance:
    """A critic's pace, the active round, and the number of the version that writes candidates."""

    pace: CriticPace
    round: Round | None
    version: int | None


@dataclass(frozen=True, slots=True)
class Credit:
    """A round that was trained on `picks` rationales of a critic, and how much its version's score changed.

    `gain` is in points of ROUGE-L (100 is perfect) if `metric` is `rouge_l`, else in nats per token.
    """

    round: int
    version: int | None
    picks: int
    metric: str
    gain: float
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
    SELECT r.number, r.snapshot_id, r.metrics, r.version_id FROM rounds r
    WHERE r.project_id = :project AND r.state = 'succeeded'
    ORDER BY r.number DESC LIMIT :limit
)
SELECT e.number AS round, v.number AS version, mine.picks, e.metrics ->> 'metric' AS metric,
    (e.metrics #>> '{change,score,mean}')::double precision AS gain, v.id = p.active_version_id AS active
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
    """The actor's pace and the project's loop: one statement, because every verdict is answered with it."""
    mine = (Verdict.critic_id == actor.user_id, Verdict.project_id == project.id, Verdict.current)
    midnight = func.date_trunc("day", func.now(), "UTC")
    newest = select(Verdict.seconds, Verdict.created_at).where(*mine).order_by(Verdict.id.desc()).limit(20).subquery()
    median = func.percentile_cont(0.5).within_group(newest.c.seconds)
    row = session.execute(
        select(
            select(func.count()).where(*mine, Verdict.created_at >= midnight).scalar_subquery(),
            select(median).where(newest.c.created_at >= midnight).scalar_subquery(),
            Round,
            ModelVersion.number,
        )
        .select_from(Project)
        .outerjoin(Round, and_(Round.project_id == Project.id, Round.state.in_(ACTIVE_ROUND_STATES)))
        .outerjoin(ModelVersion, ModelVersion.id == Project.active_version_id)
        .where(Project.id == project.id)
    ).one()
    return Glance(CriticPace(row[0], row[1]), row[2], row[3])


def load_critic_pace(session: Session, actor: Actor, project: Project) -> CriticPace:
    """The actor's verdicts and pace of today."""
    return load_glance(session, actor, project).pace


def load_critic_day(session: Session, actor: Actor, project: Project) -> CriticDay:
    """The actor's day. Raises `Forbidden`."""
    require(session, actor, project, Role.critic)
    mine = {"critic": actor.user_id, "project": project.id}
    pace = load_critic_pace(session, actor, project)
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
