"""Prompts in parts on every page that shows a prompt: in reading order, each picture numbered."""

from __future__ import annotations

import re
from typing import Any

import pytest
from sqlalchemy.orm import Session

from app.models import Evaluation, ModelVersion, Project, Prompt, Role, Split
from app.services.quality import gold
from app.services.quality.gold import GoldCandidate, GoldIn
from app.services.rounds import comparisons
from tests import factories
from tests.app.web.conftest import Browser, person


@pytest.fixture
def project(session: Session) -> Project:
    return factories.make_project(session, slug="scenes", name="Scenes")


def make_interleaved(session: Session, project: Project, **options: Any) -> tuple[Prompt, list[str]]:
    """A prompt of texts and pictures, one of them shown twice, and what a page has to show, in order."""
    one, other = factories.make_image(session), factories.make_image(session)
    shas = [one.sha256, other.sha256, one.sha256]
    words = ["First <b>:", "then <image>", "Which of them?"]
    parts = [
        {"type": "text", "text": words[0]},
        {"type": "image", "sha256": shas[0]},
        {"type": "text", "text": words[1]},
        {"type": "image", "sha256": shas[1]},
        {"type": "image", "sha256": shas[2]},
        {"type": "text", "text": words[2]},
    ]
    prompt = factories.make_prompt(
        session, project, images=[one, other], parts=parts, question=" ".join(words), **options
    )
    return prompt, ["First &lt;b&gt;:", shas[0], "then &lt;image&gt;", shas[1], shas[2], "Which of them?"]


def assert_in_order(page: str, shown: list[str], begin: str) -> None:
    """Whether a page shows these things in this order from some place on, and numbers the pictures."""
    place = page.index(begin)
    for one in shown:
        place = page.find(one, place)
        assert place > 0, one
    for number in (1, 2, 3):
        assert re.search(rf'class="badge"[^>]*>{number}<', page[page.index(begin) :])


class TestCritics:
    @pytest.fixture(autouse=True)
    def critic(self, session: Session, project: Project, browser: Browser) -> None:
        browser.sign_in(factories.make_member(session, project, user=person(session, role=Role.critic)))

    def test_judge_them_in_order(self, session: Session, project: Project, browser: Browser) -> None:
        prompt, shown = make_interleaved(session, project)
        factories.make_candidate_set(session, project, prompt=prompt)
        page = browser.get("/annotate/scenes").text
        assert_in_order(page, shown, 'class="seeing in-order"')
        assert page.count("Enlarge image") == 3
        assert page.count("Which of them?") == 1

    def test_judge_pictures_alone(self, session: Session, project: Project, browser: Browser) -> None:
        image = factories.make_image(session)
        prompt = factories.make_prompt(
            session, project, images=[image], parts=[{"type": "image", "sha256": image.sha256}], question=""
        )
        factories.make_candidate_set(session, project, prompt=prompt)
        page = browser.get("/annotate/scenes").text
        assert page.count("Enlarge image") == 1
        assert '<h1 id="question" tabindex="-1" class="out-of-sight">The texts and images' in page

    def test_see_the_short_form_as_before(self, session: Session, project: Project, browser: Browser) -> None:
        factories.make_candidate_set(session, project)
        page = browser.get("/annotate/scenes").text
        assert 'class="seeing images-1"' in page
        assert "in-order" not in page

    def test_compare_them_in_order(self, session: Session, project: Project, browser: Browser) -> None:
        prompt, shown = make_interleaved(session, project, split=Split.val)
        old = session.get_one(ModelVersion, project.active_version_id)
        new = factories.make_version(session, project, number=1, parent=old)
        for version, word in ((old, "before"), (new, "after")):
            part = {"rationales": [[word]]}
            kept = {"prompts": [str(prompt.id)], "gold": {"greedy": part, "sampled": part}}
            factories.add(session, Evaluation(version_id=version.id, prompts_hash="p", settings_hash="s", scores=kept))
        comparisons.start(session, factories.make_admin(session), project, old=old, new=new, pairs=1)
        assert_in_order(browser.get("/annotate/scenes/compare").text, shown, 'class="blind-reading"')


class TestAdmins:
    @pytest.fixture(autouse=True)
    def admin(self, session: Session, browser: Browser) -> None:
        browser.sign_in(person(session, role=Role.admin))

    def test_see_them_in_order(self, session: Session, project: Project, browser: Browser) -> None:
        prompt, shown = make_interleaved(session, project)
        for path in ("", "/gold"):
            page = browser.get(f"/admin/projects/scenes/prompts/{prompt.id}{path}").text
            assert_in_order(page, shown, 'class="reading"')

    def test_change_everything_but_the_question(self, session: Session, project: Project, browser: Browser) -> None:
        prompt, _ = make_interleaved(session, project)
        question = prompt.question
        path = f"/admin/projects/scenes/prompts/{prompt.id}/edit"
        page = browser.get(path).text
        assert 'name="question"' not in page
        form = {"answer": "the second", "split": "train", "references": "", "priority": "0", "metadata": ""}
        assert browser.post(path, form).status_code == 303
        session.refresh(prompt)
        assert (prompt.answer, prompt.question) == ("the second", question)

    def test_find_pictures_alone_in_lists(self, session: Session, project: Project, browser: Browser) -> None:
        image = factories.make_image(session)
        parts = [{"type": "image", "sha256": image.sha256}]
        factories.make_prompt(session, project, images=[image], parts=parts, question="")
        assert "Images without a question" in browser.get("/admin/projects/scenes/prompts").text

    def test_practise_in_order(self, session: Session, browser: Browser) -> None:
        project = factories.make_project(session, slug="practice", name="Practice", practice_prompts=1)
        prompt, shown = make_interleaved(session, project)
        known = [GoldCandidate(text="it shines", fits=True), GoldCandidate(text="it rains", fits=False)]
        item = GoldIn(prompt=str(prompt.id), candidates=known, practice=True)
        gold.add_gold(session, factories.make_admin(session), project, item)
        browser.sign_in(factories.make_member(session, project, user=person(session, role=Role.critic)))
        assert_in_order(browser.get("/annotate/practice/practice").text, shown, 'class="practice-images"')
