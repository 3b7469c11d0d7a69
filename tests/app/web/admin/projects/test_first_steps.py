"""The checklist of a new project ticks itself off, and the demo's page says how far its three steps are."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import AuditEvent, Project, Role, Round, RoundState, User, VerdictKind
from app.services.kernel.actors import SYSTEM
from app.services.projects import projects
from app.services.read_models.checklist import Step, load_checklist
from app.services.rounds import rounds
from tests import factories
from tests.app.services.feedback import judge
from tests.app.web.conftest import Browser, person

BASE = "/admin/projects/scenes"
CARD = re.compile(r'<section[^>]*id="checklist">.*?</section>', re.DOTALL)


def done(session: Session, project: Project) -> set[str] | None:
    """The steps that are ticked off; None where there is no checklist."""
    found = load_checklist(session, project, projects.settings_of(session, project))
    return None if found is None else {step.value for step in found.done}


class TestChecklist:
    def test_ticks_itself_off(self, session: Session, project: Project) -> None:
        assert done(session, project) == set()
        prompt = factories.make_prompt(session, project)
        assert done(session, project) == {"pictures"}
        critic = factories.make_critic(session, project)
        assert done(session, project) == {"pictures", "people"}
        version = factories.make_version(session, project, number=1)
        offered = factories.make_candidate_set(session, project, prompt=prompt, version=version)
        claim = factories.make_assignment(session, offered, critic)
        factories.make_verdict(session, claim, kind=VerdictKind.none_fit)
        assert done(session, project) == {"pictures", "people", "judge"}
        judge(session, project, critic)  # a pick of what a version wrote: the model is good for something
        assert done(session, project) == {"pictures", "people", "judge", "model"}
        projects.update_project(session, SYSTEM, project.slug, {"instructions": "Look twice."})
        session.refresh(project)
        assert done(session, project) == {"pictures", "people", "judge", "model", "instructions"}
        started = rounds.start(session, SYSTEM, project)
        assert done(session, project) is not None
        session.get_one(Round, started.id).state = RoundState.succeeded
        session.flush()
        assert done(session, project) is None

    def test_another_model_than_the_starter_is_chosen(self, session: Session) -> None:
        assert done(session, factories.make_project(session, base_model="some/model")) == {"model"}

    def test_examples_are_instructions_too(self, session: Session) -> None:
        assert done(session, factories.make_project(session, instruction_examples=["+ it is red"])) == {"instructions"}


class TestOnTheOverview:
    @pytest.mark.usefixtures("admin")
    def test_each_step_leads_somewhere(self, browser: Browser) -> None:
        card = CARD.search(browser.get(BASE).text)
        assert card is not None
        links = re.findall(r'<li><p><a href="([^"#]+)', re.sub(r">\s+<", "><", card[0]))
        assert len(links) == len(Step)
        assert [browser.get(link).status_code for link in links] == [200] * len(links)

    @pytest.mark.usefixtures("admin")
    def test_is_dismissed_for_good(self, browser: Browser, session: Session, project: Project) -> None:
        browser.get(BASE)
        answer = browser.post(f"{BASE}/checklist/dismiss")
        assert answer.headers["location"] == f"{BASE}?done=checklist-dismissed"
        assert not CARD.search(browser.get(BASE).text)
        assert done(session, project) is None
        entry = session.scalars(select(AuditEvent).where(AuditEvent.action == "project.dismiss_checklist")).one()
        assert entry.project_id == project.id

    @pytest.mark.parametrize("role", [Role.viewer, Role.reviewer])
    def test_is_for_admins(self, browser: Browser, session: Session, project: Project, role: Role) -> None:
        browser.sign_in(factories.make_member(session, project, role, user=person(session)))
        assert not CARD.search(browser.get(BASE).text)
        assert browser.post(f"{BASE}/checklist/dismiss").status_code == 403
        session.refresh(project)
        assert not project.checklist_dismissed


class TestThreeSteps:
    def test_follow_how_far_one_is(self, browser: Browser, session: Session, project: Project, admin: User) -> None:
        page = browser.get(f"{BASE}/first-steps").text
        assert "0 of 20 prompts have a new accepted explanation" in page
        assert 'class="done"' not in page
        judge(session, project, factories.actor_of(admin))
        assert "1 of 20 prompts have a new accepted explanation" in browser.get(f"{BASE}/first-steps").text
        started = rounds.start(session, SYSTEM, project)
        page = browser.get(f"{BASE}/first-steps").text
        assert page.count('class="done"') == 1
        assert f'href="{BASE}/rounds/1"' in page
        assert "waiting for a worker" in page
        factories.make_version(session, project, number=1).round_id = started.id
        session.flush()
        page = browser.get(f"{BASE}/first-steps").text
        assert page.count('class="done"') == 2
        assert f'href="{BASE}/compare"' in page
