"""Critic standings: accuracy on gold prompts, weight of verdicts, and whether critics may continue."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.db.judging_pool import Transaction, statement
from app.errors import Forbidden, Invalid, NotFound
from app.models import CriticStanding, Project, User
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require
from app.services.kernel.rights import Right
from app.settings import path_to
from illume.phrases import Number, _

MOST_A_DAY = 10_000
MAX_GOLD_VERDICTS = 50
"""A critic's accuracy covers this many of their newest gold prompts."""

# The score of a verdict `v` on a gold prompt `g`: the share of candidates with a known answer that it has right.
GOLD_SCORE = """
(
    (SELECT count(*) FROM unnest(g.fits) f
        WHERE EXISTS (SELECT FROM picks k WHERE k.verdict_id = v.id AND k.candidate_id = f))
    + (SELECT count(*) FROM unnest(g.unfit) u
        WHERE NOT EXISTS (SELECT FROM picks k WHERE k.verdict_id = v.id AND k.candidate_id = u))
)::double precision / (cardinality(g.fits) + cardinality(g.unfit))
"""
# The weight begins at 1 and nears the accuracy as gold prompts are answered. A critic whose accuracy falls below what
# the project asks for is paused; `told` notes that in the audit log.
RECOUNT = statement(f"""
WITH rule AS (
    SELECT coalesce((r.settings ->> 'gold_minimum')::int, 5) AS minimum,
        coalesce((r.settings ->> 'gold_accuracy')::double precision, 0) AS accuracy
    FROM projects j JOIN setting_revisions r ON r.id = j.revision_id WHERE j.id = CAST(:project AS bigint)
), counted AS (
    SELECT count(*) AS answered, avg(score) AS score, (coalesce(sum(score), 0) + 2) / (count(*) + 2) AS weight
    FROM (
        SELECT {GOLD_SCORE} AS score
        FROM verdicts v JOIN gold_prompts g ON g.candidate_set_id = v.candidate_set_id
        WHERE v.critic_id = CAST(:critic AS bigint) AND v.project_id = CAST(:project AS bigint) AND v.current
          AND v.state = 'gold' AND v.kind IN ('picked', 'none_fit') AND v.id > coalesce((
              SELECT counts_from FROM critic_standings
              WHERE project_id = CAST(:project AS bigint) AND critic_id = CAST(:critic AS bigint)
          ), 0)
        ORDER BY v.id DESC LIMIT {MAX_GOLD_VERDICTS}
    ) newest
), judged AS (
    SELECT c.*, c.answered >= rule.minimum AND coalesce(c.score < rule.accuracy, false) AS is_low FROM counted c, rule
), before AS (
    SELECT paused_at FROM critic_standings
    WHERE project_id = CAST(:project AS bigint) AND critic_id = CAST(:critic AS bigint)
), told AS (
    INSERT INTO audit_events (project_id, action, subject, data)
    SELECT CAST(:project AS bigint), 'critic.pause', 'user:' || CAST(:critic AS bigint),
        jsonb_build_object('score', score, 'answered', answered)
    FROM judged WHERE is_low AND (SELECT paused_at FROM before) IS NULL
)
INSERT INTO critic_standings AS d (project_id, critic_id, answered, score, weight, paused_at)
SELECT CAST(:project AS bigint), CAST(:critic AS bigint), answered, score, weight, CASE WHEN is_low THEN now() END
FROM judged
ON CONFLICT (project_id, critic_id) DO UPDATE
SET answered = excluded.answered, score = excluded.score, weight = excluded.weight,
    paused_at = coalesce(d.paused_at, excluded.paused_at)
RETURNING answered
""")  # noqa: S608 - constants only
# Whether a critic is paused, and how many practice prompts are before them: none for one who has practised already.
STANDING = statement("""
SELECT d.paused_at IS NOT NULL AS is_paused,
    CASE WHEN d.practised_at IS NOT NULL THEN 0 ELSE greatest(0, least(
        coalesce((r.settings ->> 'practice_prompts')::int, 0),
        (SELECT count(*) FROM gold_prompts g WHERE g.project_id = j.id AND g.practice AND g.active)
    ) - (
        SELECT count(*) FROM practice_answers a JOIN gold_prompts g ON g.id = a.gold_id
        WHERE a.critic_id = CAST(:critic AS bigint) AND g.project_id = j.id AND g.practice AND g.active
          AND a.score IS NOT NULL
    )) END AS practice_left
FROM projects j JOIN setting_revisions r ON r.id = j.revision_id
LEFT JOIN critic_standings d ON d.project_id = j.id AND d.critic_id = CAST(:critic AS bigint)
WHERE j.id = CAST(:project AS bigint)
""")
NOTE_PRACTISED = statement("""
INSERT INTO critic_standings AS d (project_id, critic_id, practised_at)
VALUES (CAST(:project AS bigint), CAST(:critic AS bigint), now())
ON CONFLICT (project_id, critic_id) DO UPDATE SET practised_at = coalesce(d.practised_at, now())
RETURNING critic_id
""")


@dataclass(frozen=True, slots=True)
class StandingSummary:
    """A critic's accuracy on `answered` gold prompts, the weight of their verdicts, and since when they are paused."""

    critic_id: int
    email: str
    name: str
    answered: int
    score: float | None
    weight: float
    paused_at: datetime | None
    practised_at: datetime | None
    daily_target: int | None = None


def update_standing(session: Session, project_id: int, critic_id: int) -> None:
    """Count a critic's gold prompts anew, and pause them where they fall below what the project asks for."""
    session.flush()
    session.execute(RECOUNT.clause, {"project": project_id, "critic": critic_id})


def get_weight(session: Session, project_id: int, critic_id: int) -> float:
    """The current weight of a critic's verdicts, from 0 to 1."""
    standing = session.get(CriticStanding, (project_id, critic_id), populate_existing=True)
    return 1.0 if standing is None else standing.weight


async def admit(transaction: Transaction, actor: Actor, project_id: int, slug: str) -> None:
    """Let a critic go on who has nothing left to practise.

    Raises `Forbidden` with the reason, for one who is paused or has yet to practise.
    """
    values = {"project": project_id, "critic": actor.user_id}
    [row] = await transaction.run((STANDING, values))
    if row is not None and row["is_paused"]:
        raise Forbidden(
            _(
                "You are paused in this project: too many of your verdicts on check questions were wrong. "
                "Your verdicts are kept. Read the instructions again, then ask a project admin to let you continue."
            ),
            reason="paused",
        )
    if row is not None and row["practice_left"] > 0:
        raise Forbidden(
            _("This project starts with a short practice on a few prompts whose right picks are known."),
            reason="practice",
            practice=path_to(f"/api/v1/projects/{slug}/practice"),
        )
    await transaction.run((NOTE_PRACTISED, values))


def count_practice_left(session: Session, project: Project, critic_id: int) -> int:
    """How many practice prompts are before a critic; none for one who has practised already."""
    session.flush()
    row = session.execute(STANDING.clause, {"project": project.id, "critic": critic_id}).one()
    return int(row.practice_left)


def record_practised(session: Session, project_id: int, critic_id: int) -> None:
    """Let a critic begin with the work."""
    session.execute(NOTE_PRACTISED.clause, {"project": project_id, "critic": critic_id})


def list_standings(session: Session, actor: Actor, project: Project, *, paused: bool = False) -> list[StandingSummary]:
    """The standings of a project's critics, by email; `paused`: only those who are paused."""
    require(session, actor, project, Right.reviews)
    query = (
        select(CriticStanding, User.email, User.name)
        .join(User, User.id == CriticStanding.critic_id)
        .where(CriticStanding.project_id == project.id)
        .order_by(func.lower(User.email))
    )
    if paused:
        query = query.where(CriticStanding.paused_at.is_not(None))
    return [
        StandingSummary(
            critic_id=one.critic_id,
            email=email,
            name=name,
            answered=one.answered,
            score=one.score,
            weight=one.weight,
            paused_at=one.paused_at,
            practised_at=one.practised_at,
            daily_target=one.daily_target,
        )
        for one, email, name in session.execute(query.execution_options(populate_existing=True))
    ]


def resume(session: Session, actor: Actor, project: Project, critic_id: int) -> None:
    """Let a paused critic continue; gold prompts count afresh from now. Needs the role admin. Raises `NotFound`."""
    require(session, actor, project, Right.administers)
    standing = session.get(CriticStanding, (project.id, critic_id), populate_existing=True)
    if standing is None or standing.paused_at is None:
        raise NotFound(_("This critic is not paused in this project."))
    standing.paused_at = None
    standing.counts_from = session.scalar(text("SELECT coalesce(max(id), 0) FROM verdicts")) or 0
    session.flush()
    update_standing(session, project.id, critic_id)
    audit.record(session, actor, "critic.resume", f"user:{critic_id}", project.id)


def pause(session: Session, actor: Actor, project: Project, critic_id: int) -> None:
    """Stop offering sets to a critic in a project until an admin resumes them. Needs the role admin."""
    require(session, actor, project, Right.administers)
    if session.get(User, critic_id) is None:
        raise NotFound(_("There is no such critic."))
    statement = """
        INSERT INTO critic_standings AS d (project_id, critic_id, paused_at) VALUES (:project, :critic, now())
        ON CONFLICT (project_id, critic_id) DO UPDATE SET paused_at = coalesce(d.paused_at, now())
    """
    session.execute(text(statement), {"project": project.id, "critic": critic_id})
    audit.record(session, actor, "critic.pause", f"user:{critic_id}", project.id)


def set_target(session: Session, actor: Actor, project: Project, critic_id: int, target: int | None) -> None:
    """Set how many verdicts a day a critic is asked for; None asks for nothing. Needs the role admin.

    Raises `NotFound`, and `Invalid` outside 1 to 10,000.
    """
    require(session, actor, project, Right.administers)
    if session.get(User, critic_id) is None:
        raise NotFound(_("There is no such critic."))
    if target is not None and not 1 <= target <= MOST_A_DAY:
        raise Invalid(
            _("A daily target is a number from 1 to %(most_a_day)s.", most_a_day=Number(MOST_A_DAY)), field="target"
        )
    statement = """
        INSERT INTO critic_standings AS d (project_id, critic_id, daily_target) VALUES (:project, :critic, :target)
        ON CONFLICT (project_id, critic_id) DO UPDATE SET daily_target = :target
    """
    session.execute(text(statement), {"project": project.id, "critic": critic_id, "target": target})
    audit.record(session, actor, "critic.target", f"user:{critic_id}", project.id, target=target)
