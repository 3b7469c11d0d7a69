"""The pages of critics: agreement, and one critic with their verdicts."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.models import Project, User
from tests import factories
from tests.app.web.conftest import Browser


class TestCritics:
    def judged_twice(self, session: Session, project: Project) -> list[User]:
        """Two critics who judged the same set differently."""
        critics = [factories.make_member(session, project) for _ in range(2)]
        made = factories.make_candidate_set(session, project, slots=2)
        for slot, critic in enumerate(critics, start=1):
            assignment = factories.make_assignment(session, made, factories.actor_of(critic), slot=slot)
            factories.make_verdict(session, assignment, picks=assignment.shown[:slot])
        return critics

    def test_agreement_is_shown_or_why_there_is_none(
        self, browser: Browser, session: Session, project: Project, admin: User
    ) -> None:
        alone = factories.make_critic(session, project)
        factories.make_verdict(
            session, factories.make_assignment(session, factories.make_candidate_set(session, project), alone)
        )
        assert "No candidate set was judged by two critics yet" in browser.get("/admin/projects/scenes/critics").text
        self.judged_twice(session, project)
        page = browser.get("/admin/projects/scenes/critics").text
        assert "<strong>0.44</strong>" in page
        assert "Over 3 candidates of 1 set that" in page

    def test_one_critic_with_the_verdicts_behind_the_figures(
        self, browser: Browser, session: Session, project: Project, admin: User
    ) -> None:
        first, second = self.judged_twice(session, project)
        page = browser.get(f"/admin/projects/scenes/critics/{second.id}").text
        assert "What is on the beach?" in page
        assert first.email in page
        assert browser.get(f"/admin/projects/scenes/critics/{admin.id}").status_code == 404
