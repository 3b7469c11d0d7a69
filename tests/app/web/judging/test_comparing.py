"""Blind comparisons on pages: an admin starts one, a critic judges it."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Comparison, Evaluation, ModelVersion, Preference, Project, Role, Split
from tests import factories
from tests.app.web.conftest import Browser, person


@pytest.fixture
def project(session: Session) -> Project:
    """A project whose two versions were scored on two prompts."""
    project = factories.make_project(session, slug="scenes", name="Scenes")
    old = session.get_one(ModelVersion, project.active_version_id)
    new = factories.make_version(session, project, number=1, parent=old)
    prompts = [factories.make_prompt(session, project, split=Split.val) for _ in range(2)]
    for version, word in ((old, "before"), (new, "after")):
        part = {"rationales": [[f"{word} <{number}>"] for number in range(2)]}
        kept = {"prompts": [str(prompt.id) for prompt in prompts], "gold": {"greedy": part, "sampled": part}}
        factories.add(session, Evaluation(version_id=version.id, prompts_hash="p", settings_hash="s", scores=kept))
    return project


class TestBlindly:
    def test_started_by_an_admin_judged_by_a_critic(self, browser: Browser, session: Session, project: Project) -> None:
        browser.sign_in(person(session, role=Role.admin))
        page = browser.get("/admin/projects/scenes/comparisons")
        assert "No comparisons yet" in page.text
        form: dict[str, object] = {"old": "0", "new": "1", "pairs": "many", "each": "1"}
        refused = browser.post("/admin/projects/scenes/comparisons", form)
        assert refused.status_code == 422
        assert "Enter a whole number." in refused.text
        assert 'value="many"' in refused.text
        assert browser.post("/admin/projects/scenes/comparisons", form | {"pairs": "9"}).status_code == 303
        browser.sign_in(factories.make_member(session, project, user=person(session, role=Role.critic)))
        assert "Compare 2 pairs" in browser.get("/annotate").text
        for _ in range(2):
            page = browser.get("/annotate/scenes/compare")
            assert "&lt;" in page.text
            assert "ersion" not in re.sub(r"<title>.*?</title>", "", page.text)
            pair = re.search(r'name="pair" value="(\d+)"', page.text)
            assert pair is not None
            said = browser.post("/annotate/scenes/compare", {"pair": pair[1], "side": "left", "seconds": "3.5"})
            assert said.headers["location"] == "/annotate/scenes/compare"
        assert "No pairs to compare" in browser.get("/annotate/scenes/compare").text
        assert [one.seconds for one in session.scalars(select(Preference))] == [3.5, 3.5]
        assert session.scalars(select(Comparison)).one().closed_at is not None

    def test_the_judging_page_mentions_them_while_there_are_prompts(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        factories.make_candidate_set(session, project)
        browser.sign_in(person(session, role=Role.admin))
        assert "to compare" not in browser.get("/annotate/scenes").text
        form: dict[str, object] = {"old": "0", "new": "1", "pairs": "9", "each": "1"}
        browser.get("/admin/projects/scenes/comparisons")
        browser.post("/admin/projects/scenes/comparisons", form)
        page = browser.get("/annotate/scenes").text
        assert 'id="work"' in page
        assert re.search(r'class="pairs-waiting" href="/annotate/scenes/compare"[^>]*>2 pairs to compare<', page)
        assert 'aria-label="Project Scenes, 2 pairs to compare"' in page
        for words in ("1 pair to compare", None):
            pair = re.search(r'name="pair" value="(\d+)"', browser.get("/annotate/scenes/compare").text)
            assert pair is not None
            browser.post("/annotate/scenes/compare", {"pair": pair[1], "side": "neither"})
            found = re.search(r">([^<]* to compare)<", browser.get("/annotate/scenes").text)
            assert (found[1] if found else None) == words

    def test_the_last_one_is_changed(self, browser: Browser, session: Session, project: Project) -> None:
        browser.sign_in(person(session, role=Role.admin))
        browser.get("/admin/projects/scenes/comparisons")
        form: dict[str, object] = {"old": "0", "new": "1", "pairs": "9", "each": "2"}
        browser.post("/admin/projects/scenes/comparisons", form)
        path = "/annotate/scenes/compare"
        fresh = browser.get(path).text
        assert 'data-key="u"' not in fresh
        assert browser.get(f"{path}?last=yes").text.count("aria-pressed") == 0
        pair = re.search(r'name="pair" value="(\d+)"', fresh)
        assert pair is not None
        browser.post(path, {"pair": pair[1], "side": "left", "seconds": "3.5"})
        assert f'href="{path}?last=yes" data-key="u"' in browser.get(path).text
        shown = browser.get(f"{path}?last=yes").text
        assert f'name="pair" value="{pair[1]}"' in shown
        assert re.findall(r'value="(\w+)" data-key="\d" aria-keyshortcuts="\d" aria-pressed="true"', shown) == ["left"]
        assert 'name="again" value="yes"' in shown
        browser.post(path, {"pair": pair[1], "side": "right"})  # an old page of the pair changes nothing
        kept = session.scalars(select(Preference)).one()
        assert (kept.preferred is kept.left, kept.seconds) == (True, 3.5)
        assert browser.post(path, {"pair": pair[1], "side": "right", "again": "yes"}).headers["location"] == path
        session.refresh(kept)
        assert kept.preferred is not kept.left
        assert "1 of 4 judgements" in browser.get("/admin/projects/scenes/comparisons/1").text
        second = re.search(r'name="pair" value="(\d+)"', browser.get(path).text)
        assert second is not None
        browser.post(path, {"pair": second[1], "side": "neither"})
        over = browser.get(path).text
        assert ("No pairs to compare" in over, f"{path}?last=yes" in over) == (True, True)

    def test_a_strange_side_is_refused(self, browser: Browser, session: Session, project: Project) -> None:
        browser.sign_in(person(session, role=Role.admin))
        browser.get("/admin/projects/scenes/comparisons")
        form: dict[str, object] = {"old": "0", "new": "1", "pairs": "9", "each": "1"}
        browser.post("/admin/projects/scenes/comparisons", form)
        pair = re.search(r'name="pair" value="(\d+)"', browser.get("/annotate/scenes/compare").text)
        assert pair is not None
        assert browser.post("/annotate/scenes/compare", {"pair": pair[1], "side": "up"}).status_code == 422
        assert "0 of 2 judgements" in browser.get("/admin/projects/scenes/comparisons/1").text
        assert browser.post("/admin/projects/scenes/comparisons/1/close").status_code == 303
        assert "Nobody judged any pairs." in browser.get("/admin/projects/scenes/comparisons/1").text

    def test_a_viewer_starts_none(self, browser: Browser, session: Session, project: Project) -> None:
        viewer = person(session, role=Role.viewer)
        browser.sign_in(factories.make_member(session, project, Role.viewer, user=viewer))
        assert "Start a comparison" not in browser.get("/admin/projects/scenes/comparisons").text
        form: dict[str, object] = {"old": "0", "new": "1", "pairs": "9", "each": "1"}
        browser.get("/annotate")
        assert browser.post("/admin/projects/scenes/comparisons", form).status_code == 403
