"""The demo's seed."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.cli.server import seeding
from app.models import Project, Prompt, Role, Scope, Split
from app.services.accounts import sessions, users
from app.services.projects import projects
from app.settings import get_settings


class TestSeedDemo:
    def test_twice_is_once(self, session: Session) -> None:
        settings = get_settings()
        made = seeding.seed_demo(session, settings)
        project = session.scalars(select(Project).where(Project.slug == "scenes")).one()
        assert projects.settings_of(session, project).round_every == 20
        counts = dict(
            session.execute(
                select(Prompt.split, func.count()).where(Prompt.project_id == project.id).group_by(Prompt.split)
            ).all()
        )
        assert counts[Split.train] >= 300
        assert counts[Split.val] >= 100
        assert {made[name]["email"] for name in made} == {"admin@example.org", "critic@example.org"}
        admin = users.actor_for_token(session, made["admin"]["token"])
        critic = users.actor_for_token(session, made["critic"]["token"])
        assert (admin.role, admin.scope) == (Role.admin, Scope.admin)
        assert (critic.role, critic.scope) == (Role.critic, Scope.write)
        for account in made.values():
            assert sessions.check_password(session, account["email"], account["password"], address="192.0.2.1")
        assert seeding.seed_demo(session, settings, made) == made
        assert session.scalar(select(func.count()).where(Prompt.project_id == project.id)) == sum(counts.values())
        anew = seeding.seed_demo(session, settings)
        assert anew["admin"]["password"] != made["admin"]["password"]
        assert users.actor_for_token(session, made["admin"]["token"])
