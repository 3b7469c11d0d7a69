"""The practice round, and what a critic is told who may not go on."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.models import PracticeAnswer, Project, Role, User, Verdict
from app.services.quality import gold, standings
from app.services.quality.gold import GoldCandidate, GoldIn
from tests import factories
from tests.app.web.conftest import Browser, person
from tests.app.web.judging.test_annotate import FRAGMENT, assignment_in, picks_in

OWN = factories.CATEGORIES[0]


@pytest.fixture
def project(session: Session) -> Project:
    """A project with two practice prompts before the work."""
    project = factories.make_project(session, slug="scenes", name="Scenes", practice_prompts=2)
    admin = factories.make_admin(session)
    for number in range(2):
        prompt = factories.make_prompt(session, project, question=f"Practice {number}?")
        item = GoldIn(
            prompt=str(prompt.id),
            candidates=[GoldCandidate(text="it <b>shines</b>", fits=True), GoldCandidate(text="it rains", fits=False)],
            explanation="The sun is in the picture.",
            practice=True,
        )
        gold.add_gold(session, admin, project, item)
    factories.make_candidate_set(session, project)
    factories.make_candidate_set(session, project)
    return project


@pytest.fixture
def critic(session: Session, project: Project, browser: Browser) -> User:
    """A critic who is signed in."""
    user = factories.make_member(session, project, user=person(session, role=Role.critic))
    browser.sign_in(user)
    return user


@pytest.mark.usefixtures("critic")
class TestPractice:
    def test_comes_before_the_work_and_leads_to_it(self, browser: Browser, session: Session) -> None:
        page = browser.get("/annotate/scenes").text
        assert "A short practice first" in page
        assert 'href="/annotate/scenes/practice"' in page
        for left in (1, 0):
            form = browser.get("/annotate/scenes/practice").text
            assert "&lt;b&gt;shines" in form
            ids = picks_in(form)
            right = ids[0] if form.index("shines") < form.index("it rains") else ids[1]
            prompt = re.search(r'name="prompt" value="(\d+)"', form)
            assert prompt
            told = browser.post("/annotate/scenes/practice", {"prompt": prompt.group(1), "picks": right}).text
            assert "All correct." in told
            assert "The sun is in the picture." in told
            assert ("Start judging" in told) == (left == 0)
        assert session.scalar(select(func.count()).select_from(PracticeAnswer)) == 2
        assert session.scalar(select(func.count()).select_from(Verdict)) == 0
        page = browser.get("/annotate/scenes/practice").text
        assert "Practice is done" in page
        assert "No prompts yet" not in page
        assert '<a class="button main" href="/annotate/scenes">Start judging</a>' in page
        assert assignment_in(browser.get("/annotate/scenes").text)

    def test_what_is_wrong_is_marked_and_sent_twice_it_is_told_once(self, browser: Browser, session: Session) -> None:
        form = browser.get("/annotate/scenes/practice").text
        prompt = re.search(r'name="prompt" value="(\d+)"', form)
        assert prompt
        fields = {"prompt": prompt.group(1), "picks": picks_in(form)}
        told = browser.post("/annotate/scenes/practice", fields).text
        assert "Not quite" in told
        assert told.count("you said otherwise") == 1
        again = browser.post("/annotate/scenes/practice", fields)
        assert (again.status_code, again.headers["location"]) == (303, "/annotate/scenes/practice")
        assert session.scalar(select(func.count()).select_from(PracticeAnswer)) == 1

    def test_without_the_form_token(self, browser: Browser) -> None:
        browser.get("/annotate/scenes/practice")
        browser.token = "made up"
        assert browser.post("/annotate/scenes/practice", {"prompt": "1"}).status_code == 403


class TestFields:
    @pytest.fixture
    def rules(self, session: Session, browser: Browser) -> str:
        """The address of the practice in a project whose answers are structured, with a critic who is signed in."""
        project, _first = factories.structured_project(session, slug="rules", practice_prompts=1)
        policy = factories.make_policy(session, project, O1="strict")
        right: dict[str, str | None] = {"rating": "Unsafe", "category": OWN}
        prompt = factories.make_prompt(session, project, policy=policy, answer=None, fields=right)
        known = [GoldCandidate(text="a cat, “asleep”", fits=True), GoldCandidate(text="a dog", fits=False)]
        item = GoldIn(prompt=str(prompt.id), candidates=known, practice=True)
        gold.add_gold(session, factories.make_admin(session), project, item)
        browser.sign_in(factories.make_member(session, project, user=person(session, role=Role.critic)))
        return "/annotate/rules/practice"

    def test_the_picture_is_rated_before_any_explanation_shows(
        self, browser: Browser, session: Session, rules: str
    ) -> None:
        blind = browser.get(rules).text
        assert not picks_in(blind)
        assert "asleep" not in blind
        assert "Show the explanations" in blind
        assert f'data-default="{OWN} is default."' in blind
        prompt = re.search(r'name="prompt" value="(\d+)"', blind)
        assert prompt
        asked = {"prompt": prompt.group(1), "rates": "yes"}
        early = browser.post(rules, {**asked, "value-1": "Safe"})
        assert (early.status_code, "a value is needed" in early.text) == (422, True)
        assert re.search(r'value="Safe" checked', early.text)
        rated = browser.post(rules, {**asked, "value-1": "Safe", "value-2": OWN})
        assert (rated.status_code, rated.headers["location"]) == (303, rules)
        shown = browser.get(rules).text
        ids = picks_in(shown)
        assert len(ids) == 2
        assert browser.post(rules, {**asked, "value-1": "Safe", "value-2": OWN}).status_code == 303  # sent twice

        fits = ids[0] if shown.index("asleep") < shown.index("a dog") else ids[1]
        values = {"value-1": "Safe", "value-2": OWN, "picks": fits}
        told = browser.post(rules, {"prompt": prompt.group(1), **values}).text
        assert "Not quite" in told
        assert (told.count("you said this"), told.count("you said otherwise")) == (1, 0)
        assert re.search(r'<li class=" is-right"><label.*?value="Unsafe"', told, re.DOTALL)
        assert session.scalars(select(PracticeAnswer.score)).all() == [1.0]

    def test_all_is_correct_once_the_values_are_corrected(self, browser: Browser, rules: str) -> None:
        blind = browser.get(rules).text
        prompt = re.search(r'name="prompt" value="(\d+)"', blind)
        assert prompt
        browser.post(rules, {"prompt": prompt.group(1), "rates": "yes", "value-1": "Safe", "value-2": "NA"})
        shown = browser.get(rules).text
        ids = picks_in(shown)
        fits = ids[0] if shown.index("asleep") < shown.index("a dog") else ids[1]
        values = {"value-1": "Unsafe", "value-2": OWN, "picks": fits}
        told = browser.post(rules, {"prompt": prompt.group(1), **values}).text
        assert "All correct." in told
        assert "you said" not in told


def test_a_project_without_practice_says_so(browser: Browser, session: Session) -> None:
    plain = factories.make_project(session, slug="plain", name="Plain")
    browser.sign_in(factories.make_member(session, plain, user=person(session, role=Role.critic)))
    page = browser.get("/annotate/plain/practice").text
    assert "No practice needed" in page
    assert '<a class="button main" href="/annotate/plain">Start judging</a>' in page


def test_a_pause_takes_no_verdict_along(browser: Browser, session: Session, project: Project, critic: User) -> None:
    standings.record_practised(session, project.id, critic.id)
    page = browser.get("/annotate/scenes").text
    standings.pause(session, factories.make_admin(session), project, critic.id)
    url = f"/annotate/scenes/assignments/{assignment_in(page)}/verdict"
    response = browser.post(url, {"kind": "none_fit", "room": "yes"}, headers=FRAGMENT)
    assert response.status_code == 201
    assert "data-assignment" not in response.text
    assert session.scalar(select(func.count()).select_from(Verdict)) == 1
    assert "You are paused here" in browser.get("/annotate/scenes").text
    assert "You are paused here" in browser.post("/annotate/scenes/next", headers=FRAGMENT).text
