"""The pages of critics: agreement, and one critic with their verdicts."""

from __future__ import annotations

import re

from sqlalchemy.orm import Session

from app.models import Project, Role, User
from app.services.accounts import passwords
from tests import factories
from tests.app.web.conftest import PASSWORD, Browser


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
        assert (
            "No explanations have been judged by two critics yet" in browser.get("/admin/projects/scenes/critics").text
        )
        self.judged_twice(session, project)
        page = browser.get("/admin/projects/scenes/critics").text
        assert "<strong>0.44</strong>" in page
        assert "Based on 3 explanations in the 1 set that" in page

    def test_agreement_by_field_where_answers_have_fields(
        self, browser: Browser, session: Session, project: Project, admin: User
    ) -> None:
        structured, policy = factories.structured_project(session)
        critics = [factories.make_critic(session, structured) for _ in range(2)]
        for ratings in (("Safe", "Safe"), ("Unsafe", "Safe"), ("Unsafe", "Unsafe")):
            prompt = factories.make_prompt(session, structured, policy=policy, answer=None)
            texts = [factories.answer("a cat")]
            made = factories.make_candidate_set(session, structured, prompt=prompt, texts=texts, slots=2)
            for slot, rating in enumerate(ratings, start=1):
                assignment = factories.make_assignment(session, made, critics[slot - 1], slot=slot)
                factories.make_verdict(session, assignment).fields = {"rating": rating}
        session.flush()
        page = browser.get(f"/admin/projects/{structured.slug}/critics").text
        assert 'aria-label="Agreement by field"' in page
        cells = re.findall(r'<td role="cell" class="right" data-label="(Alpha|Sets)">([^<]*)', page)
        assert cells[:4] == [("Alpha", "0.44"), ("Sets", "3"), ("Alpha", "–"), ("Sets", "0")]
        assert "nominal" in page
        factories.make_verdict(
            session, factories.make_assignment(session, factories.make_candidate_set(session, project), critics[0])
        )
        assert 'aria-label="Agreement by field"' not in browser.get("/admin/projects/scenes/critics").text

    def test_one_critic_with_the_verdicts_behind_the_figures(
        self, browser: Browser, session: Session, project: Project, admin: User
    ) -> None:
        first, second = self.judged_twice(session, project)
        page = browser.get(f"/admin/projects/scenes/critics/{second.id}").text
        assert "What is on the beach?" in page
        assert first.email in page
        assert browser.get(f"/admin/projects/scenes/critics/{admin.id}").status_code == 404

    def test_a_member_who_has_not_judged_yet_has_a_page_with_zeros(
        self, browser: Browser, session: Session, project: Project, admin: User
    ) -> None:
        member = factories.make_member(session, project)
        here = f"/admin/projects/scenes/critics/{member.id}"
        page = browser.get(here)
        assert page.status_code == 200
        assert member.email in page.text
        assert '<dt>Verdicts</dt><dd><a href="#verdicts">0</a></dd>' in page.text
        assert "<dt>None fits</dt><dd>0 %</dd>" in page.text
        assert "No verdicts yet" in page.text
        assert browser.post(f"{here}/target", {"target": "40"}).headers["location"].startswith(here)
        assert 'value="40"' in browser.get(here).text
        assert browser.post(f"{here}/pause").headers["location"] == f"{here}?done=critic-paused"
        assert f'action="{here}/resume"' in browser.get(here).text

    def test_who_cannot_judge_here_is_no_critic(
        self, browser: Browser, session: Session, project: Project, admin: User
    ) -> None:
        viewer = factories.make_member(session, project, Role.viewer)
        stranger = factories.make_member(session, factories.make_project(session))
        for user in (viewer, stranger):
            assert browser.get(f"/admin/projects/scenes/critics/{user.id}").status_code == 404

    def test_paused_and_resumed_from_the_page(
        self, browser: Browser, session: Session, project: Project, admin: User
    ) -> None:
        critic = self.judged_twice(session, project)[0]
        here = f"/admin/projects/scenes/critics/{critic.id}"
        browser.get(here)
        assert browser.post(f"{here}/pause").headers["location"] == f"{here}?done=critic-paused"
        page = browser.get(here).text
        assert 'class="badge warn">paused' in page
        assert f'action="{here}/resume"' in page
        browser.sign_in(self.with_password(session, critic))
        assert "paused" in browser.get("/annotate/scenes").text
        browser.sign_in(admin)
        assert browser.post(f"{here}/resume").headers["location"] == f"{here}?done=critic-resumed"
        assert f'action="{here}/pause"' in browser.get(here).text

    def test_a_daily_target_is_shown_to_its_critic(
        self, browser: Browser, session: Session, project: Project, admin: User
    ) -> None:
        critic = self.with_password(session, self.judged_twice(session, project)[0])
        here = f"/admin/projects/scenes/critics/{critic.id}"
        browser.get(here)
        assert browser.post(f"{here}/target", {"target": "40"}).status_code == 303
        assert "1 of 40 today" in browser.get("/admin/projects/scenes/critics").text
        for wrong in ("0", "-3", "many", "10001"):
            assert browser.post(f"{here}/target", {"target": wrong}).status_code == 422
        browser.sign_in(critic)
        assert browser.post(f"{here}/target", {"target": "1"}).status_code == 403
        factories.make_candidate_set(session, project)
        own = '<strong class="numbers">1</strong> of <span class="numbers">40</span> today'
        assert own in browser.get("/annotate/scenes").text
        browser.sign_in(admin)
        browser.post(f"{here}/target", {"target": ""})
        browser.sign_in(critic)
        assert '<strong class="numbers">1</strong> today' in browser.get("/annotate/scenes").text

    def with_password(self, session: Session, user: User) -> User:
        """A person who can sign in."""
        user.password_hash = passwords.hash_password(PASSWORD)
        session.flush()
        return user
