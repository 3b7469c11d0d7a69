"""Critic standings: accuracy on gold prompts, weight of verdicts, and whether critics may continue."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.errors import Forbidden, NotFound
from app.models import CriticStanding, GoldPrompt, PracticeAnswer, Project, Role, User
from app.services.kernel import audit
from app.services.kernel.actors import SYSTEM, Actor, require
from app.services.projects.projects import settings_of

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
# The weight starts at 1 and approaches the accuracy as gold prompts are answered.
UPDATE_STANDING = f"""
INSERT INTO critic_standings AS d (project_id, critic_id, answered, score, weight)
SELECT :project, :critic, count(*), avg(score), (coalesce(sum(score), 0) + 2) / (count(*) + 2)
FROM (
    SELECT {GOLD_SCORE} AS score
    FROM verdicts v JOIN gold_prompts g ON g.candidate_set_id = v.candidate_set_id
    WHERE v.critic_id = :critic AND v.project_id = :project AND v.current AND v.state = 'gold'
      AND v.kind IN ('picked', 'none_fit') AND v.id > coalesce((
          SELECT counts_from FROM critic_standings WHERE project_id = :project AND critic_id = :critic
      ), 0)
    ORDER BY v.id DESC LIMIT {MAX_GOLD_VERDICTS}
) newest
ON CONFLICT (project_id, critic_id)
DO UPDATE SET answered = excluded.answered, score = excluded.score, weight = excluded.weight
RETURNING answered, score, paused_at
"""  # noqa: S608 - constants only


@dataclass(frozen=True, slots=True)
class StandingSummary:
    """A critic's accuracy on `answered` gold prompts, the weight of their verdicts, and since when they are paused."""

    critic_id: int
    email: str
    answered: int
    score: float | None
    weight: float
    paused_at: datetime | None
    practised_at: datetime | None


def update_standing(session: Session, project_id: int, critic_id: int) -> None:
    """Recompute a critic's standing, and pause them if they fall below the project's required accuracy."""
    row = session.execute(text(UPDATE_STANDING), {"project": project_id, "critic": critic_id}).one()
    project = session.get_one(Project, project_id)
    settings = settings_of(session, project)
    is_low = row.score is not None and row.answered >= settings.gold_minimum and row.score < settings.gold_accuracy
    if not is_low or row.paused_at is not None:
        return
    standing = session.get_one(CriticStanding, (project_id, critic_id), populate_existing=True)
    standing.paused_at = func.now()
    session.flush()
    audit.record(
        session, SYSTEM, "critic.pause", f"user:{critic_id}", project_id, score=row.score, answered=row.answered
    )


def get_weight(session: Session, project_id: int, critic_id: int) -> float:
    """The current weight of a critic's verdicts, from 0 to 1."""
    standing = session.get(CriticStanding, (project_id, critic_id), populate_existing=True)
    return 1.0 if standing is None else standing.weight


def require_may_judge(session: Session, actor: Actor, project: Project) -> None:
    """Raise `Forbidden`, with the reason, if a critic is paused or still has to practise.

    A critic with no practice prompts left counts as practised.
    """
    standing = session.get(CriticStanding, (project.id, actor.user_id), populate_existing=True)
    if standing is not None and standing.paused_at is not None:
        raise Forbidden(
            "You are paused in this project: too many of your verdicts on prompts with a known answer were wrong. "
            "Your verdicts are kept. Read the instructions again, and ask an admin of the project to let you continue.",
            reason="paused",
        )
    if count_practice_left(session, project, actor.user_id) > 0:
        raise Forbidden(
            "This project starts with a short practice: a few prompts whose answers are known.",
            reason="practice",
            practice=f"/api/v1/projects/{project.slug}/practice",
        )
    record_practised(session, project.id, actor.user_id)


def count_practice_left(session: Session, project: Project, critic_id: int) -> int:
    """How many practice prompts remain for a critic; 0 for one who has practised."""
    standing = session.get(CriticStanding, (project.id, critic_id), populate_existing=True)
    if standing is not None and standing.practised_at is not None:
        return 0
    there = select(GoldPrompt.id).where(GoldPrompt.project_id == project.id, GoldPrompt.practice, GoldPrompt.active)
    answered = select(PracticeAnswer.gold_id).where(
        PracticeAnswer.critic_id == critic_id, PracticeAnswer.gold_id.in_(there)
    )
    n_there = session.scalar(select(func.count()).select_from(there.subquery())) or 0
    n_answered = session.scalar(select(func.count()).select_from(answered.subquery())) or 0
    return max(0, min(settings_of(session, project).practice_prompts, n_there) - n_answered)


def record_practised(session: Session, project_id: int, critic_id: int) -> None:
    """Record that a critic has practised and may start the work."""
    statement = """
        INSERT INTO critic_standings AS d (project_id, critic_id, practised_at) VALUES (:project, :critic, now())
        ON CONFLICT (project_id, critic_id) DO UPDATE SET practised_at = coalesce(d.practised_at, now())
    """
    session.execute(text(statement), {"project": project_id, "critic": critic_id})


def list_standings(session: Session, actor: Actor, project: Project, *, paused: bool = False) -> list[StandingSummary]:
    """The standings of a project's critics, by email; `paused`: only those who are paused."""
    require(session, actor, project, Role.reviewer)
    query = (
        select(CriticStanding, User.email)
        .join(User, User.id == CriticStanding.critic_id)
        .where(CriticStanding.project_id == project.id)
        .order_by(func.lower(User.email))
    )
    if paused:
        query = query.where(CriticStanding.paused_at.is_not(None))
    return [
        StandingSummary(one.critic_id, email, one.answered, one.score, one.weight, one.paused_at, one.practised_at)
        for one, email in session.execute(query.execution_options(populate_existing=True))
    ]


def resume(session: Session, actor: Actor, project: Project, critic_id: int) -> None:
    """Let a paused critic continue; gold prompts count afresh from now. Needs the role admin. Raises `NotFound`."""
    require(session, actor, project, Role.admin)
    standing = session.get(CriticStanding, (project.id, critic_id), populate_existing=True)
    if standing is None or standing.paused_at is None:
        raise NotFound("This critic is not paused in this project.")
    standing.paused_at = None
    standing.counts_from = session.scalar(text("SELECT coalesce(max(id), 0) FROM verdicts")) or 0
    session.flush()
    update_standing(session, project.id, critic_id)
    audit.record(session, actor, "critic.resume", f"user:{critic_id}", project.id)


def pause(session: Session, actor: Actor, project: Project, critic_id: int) -> None:
    """Stop offering sets to a critic in a project until an admin resumes them. Needs the role admin."""
    require(session, actor, project, Role.admin)
    if session.get(User, critic_id) is None:
        raise NotFound("There is no such critic.")
    statement = """
        INSERT INTO critic_standings AS d (project_id, critic_id, paused_at) VALUES (:project, :critic, now())
        ON CONFLICT (project_id, critic_id) DO UPDATE SET paused_at = coalesce(d.paused_at, now())
    """
    session.execute(text(statement), {"project": project.id, "critic": critic_id})
    audit.record(session, actor, "critic.pause", f"user:{critic_id}", project.id)
