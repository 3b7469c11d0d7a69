"""Gold prompts on pages: made with a form, listed with accuracies, removed, and never trained on."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Candidate, GoldPrompt, Project, Prompt, PromptState, Role
from app.services.kernel.actors import SYSTEM
from app.services.kernel.verdict_schema import parse_verdict
from app.services.projects import projects
from app.services.quality import practice
from tests import factories, judging
from tests.app.web.conftest import Browser, person

BASE = "/admin/projects/scenes"
TEXTS = ("it stands in the sand", "it is red", "umbrellas are umbrellas")


@pytest.fixture
def project(session: Session) -> Project:
    """A project where every second claim is gold."""
    return factories.make_project(session, slug="scenes", name="Scenes", gold_share=0.5, gold_accuracy=0.8)


@pytest.fixture
def prompt(session: Session, project: Project) -> Prompt:
    """A prompt with three candidates and a reference."""
    made = factories.make_prompt(session, project, references=["its stripes are red"], question="What stands there?")
    factories.make_candidate_set(session, project, prompt=made, texts=TEXTS)
    return made


def filled(*pairs: tuple[str, str], **more: str) -> dict[str, object]:
    """The form with these values."""
    return {"text": [text for text, _ in pairs], "fits": [fits for _, fits in pairs], **more}


@pytest.mark.usefixtures("admin")
class TestMaking:
    def test_the_form_begins_with_what_there_is(self, browser: Browser, prompt: Prompt) -> None:
        page = browser.get(f"{BASE}/prompts/{prompt.id}/gold").text
        for text in TEXTS:
            assert f">{text}</textarea>" in page
        assert ">its stripes are red</textarea>" in page
        assert page.count('<option value="yes" selected>') == 1
        assert f'href="{BASE}/prompts/{prompt.id}/gold"' in browser.get(f"{BASE}/prompts/{prompt.id}").text

    def test_with_the_right_picks_it_measures_and_is_out_of_use(
        self, browser: Browser, session: Session, project: Project, prompt: Prompt
    ) -> None:
        browser.get(f"{BASE}/prompts/{prompt.id}/gold")
        form = filled((TEXTS[0], "yes"), (TEXTS[1], "either"), (TEXTS[2], "no"), ("not said", ""), explanation="So.")
        done = browser.post(f"{BASE}/prompts/{prompt.id}/gold", form)
        assert (done.status_code, done.headers["location"]) == (303, f"{BASE}/gold?done=gold-made")
        made = session.scalars(select(GoldPrompt)).one()
        text_of = {one.id: one.text for one in session.scalars(select(Candidate))}
        assert [text_of[one] for one in made.fits] == [TEXTS[0]]
        assert [text_of[one] for one in made.unfit] == [TEXTS[2]]
        assert (made.explanation, made.practice) == ("So.", False)
        session.refresh(prompt)
        assert prompt.state is PromptState.retired
        page = browser.get(f"{BASE}/prompts/{prompt.id}").text
        assert "check questions</a>: it measures critics" in page
        assert "Restore" not in page

    def test_without_a_choice_what_was_typed_stays(self, browser: Browser, session: Session, prompt: Prompt) -> None:
        browser.get(f"{BASE}/prompts/{prompt.id}/gold")
        again = browser.post(f"{BASE}/prompts/{prompt.id}/gold", filled(("a <b>new</b> one", ""), explanation="Why"))
        assert again.status_code == 422
        assert "Say for at least one explanation whether it fits." in again.text
        assert ">a &lt;b&gt;new&lt;/b&gt; one</textarea>" in again.text
        assert session.scalar(select(GoldPrompt)) is None

    def test_the_same_candidate_twice_is_refused(self, browser: Browser, session: Session, prompt: Prompt) -> None:
        browser.get(f"{BASE}/prompts/{prompt.id}/gold")
        again = browser.post(f"{BASE}/prompts/{prompt.id}/gold", filled(("same", "yes"), ("same", "no")))
        assert again.status_code == 422
        assert "two of them are the same" in again.text

    def test_not_twice(self, browser: Browser, session: Session, prompt: Prompt) -> None:
        browser.get(f"{BASE}/prompts/{prompt.id}/gold")
        assert browser.post(f"{BASE}/prompts/{prompt.id}/gold", filled(("a", "yes"))).status_code == 303
        assert browser.post(f"{BASE}/prompts/{prompt.id}/gold", filled(("a", "yes"))).status_code == 409


@pytest.mark.usefixtures("admin")
class TestTheList:
    def test_it_says_how_critics_fare(
        self, browser: Browser, session: Session, project: Project, prompt: Prompt
    ) -> None:
        browser.get(f"{BASE}/prompts/{prompt.id}/gold")
        browser.post(f"{BASE}/prompts/{prompt.id}/gold", filled((TEXTS[0], "yes"), (TEXTS[2], "no")))
        critic = factories.make_critic(session, project)
        claimed = None
        while claimed is None:  # every other claim is gold
            claimed = judging.claim(session, critic, project)
        given = {"kind": "picked", "picks": [claimed.candidates[0]["id"], claimed.candidates[1]["id"]]}
        judging.give(session, critic, claimed.assignment_id, parse_verdict(given))
        page = browser.get(f"{BASE}/gold").text
        assert "50 % of the prompts that critics get are unannounced check questions" in page
        assert "Answered 1 time, 50" in page
        assert critic.email in page

    def test_one_most_get_wrong_is_pointed_out(
        self, browser: Browser, session: Session, project: Project, prompt: Prompt
    ) -> None:
        browser.get(f"{BASE}/prompts/{prompt.id}/gold")
        browser.post(f"{BASE}/prompts/{prompt.id}/gold", filled((TEXTS[0], "yes"), practice="yes"))
        made = session.scalars(select(GoldPrompt)).one()
        assert made.practice
        for _ in range(3):
            practice.answer_practice(session, factories.make_critic(session, project), project, made.id, [])
        page = browser.get(f"{BASE}/gold").text
        assert "Most critics get this one wrong" in page
        assert ">practice<" in page

    def test_taken_out_its_prompt_may_come_back(
        self, browser: Browser, session: Session, project: Project, prompt: Prompt
    ) -> None:
        browser.get(f"{BASE}/prompts/{prompt.id}/gold")
        browser.post(f"{BASE}/prompts/{prompt.id}/gold", filled((TEXTS[0], "yes")))
        refused = browser.post(f"{BASE}/prompts/{prompt.id}/state", {"state": "ready"})
        assert refused.status_code == 409
        made = session.scalars(select(GoldPrompt)).one()
        done = browser.post(f"{BASE}/gold/{made.id}/remove")
        assert done.headers["location"] == f"{BASE}/gold?done=gold-removed"
        assert "No check questions yet" in browser.get(f"{BASE}/gold").text
        assert browser.post(f"{BASE}/prompts/{prompt.id}/state", {"state": "ready"}).status_code == 303
        session.refresh(prompt)
        assert prompt.state is PromptState.waiting

    def test_one_of_another_project_is_not_found(self, browser: Browser, session: Session, prompt: Prompt) -> None:
        browser.get(f"{BASE}/prompts/{prompt.id}/gold")
        browser.post(f"{BASE}/prompts/{prompt.id}/gold", filled((TEXTS[0], "yes")))
        made = session.scalars(select(GoldPrompt)).one()
        projects.create_project(session, SYSTEM, slug="other", name="Other")
        assert browser.post(f"/admin/projects/other/gold/{made.id}/remove").status_code == 404
        assert browser.get(f"/admin/projects/other/prompts/{prompt.id}/gold").status_code == 404


def test_viewers_and_critics_see_none_of_it(
    session: Session, project: Project, prompt: Prompt, browser: Browser
) -> None:
    viewer = person(session)
    factories.make_member(session, project, Role.viewer, user=viewer)
    browser.sign_in(viewer)
    assert browser.get(f"{BASE}/gold").status_code == 403
    assert "Use as check question" not in browser.get(f"{BASE}/prompts/{prompt.id}").text
    assert "Check questions" not in browser.get(f"{BASE}/critics").text
