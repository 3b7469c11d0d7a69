"""The pages of rounds and versions: starting, cancelling, decisions."""

from __future__ import annotations

import re

import pytest
from sqlalchemy.orm import Session

from app.models import Project, Round, RoundState
from app.services.kernel.actors import SYSTEM
from app.services.projects import projects
from app.services.rounds import estimate
from tests import factories
from tests.app.services.feedback import judge
from tests.app.web.conftest import Browser


@pytest.mark.usefixtures("admin")
class TestRounds:
    def test_nothing_accepted_is_said_before_and_refused_after(self, browser: Browser) -> None:
        preview = browser.get("/admin/projects/scenes/rounds/preview")
        assert "No explanations have been accepted yet" in preview.text
        browser.get("/admin/projects/scenes/settings")
        assert browser.post("/admin/projects/scenes/rounds").status_code == 409

    @pytest.mark.parametrize("is_large", [False, True])
    def test_a_preview_says_of_what_was_rejected(
        self,
        browser: Browser,
        session: Session,
        project: Project,
        monkeypatch: pytest.MonkeyPatch,
        is_large: bool,
    ) -> None:
        judge(session, project, factories.make_critic(session, project))
        monkeypatch.setattr(estimate, "COUNTED_PROMPTS", 0 if is_large else 5000)
        words = "Rejected explanations"
        assert words not in browser.get("/admin/projects/scenes/rounds/preview").text
        projects.update_project(session, SYSTEM, project.slug, {"objective": "picks_and_rejections"})
        shown = browser.get("/admin/projects/scenes/rounds/preview").text
        assert words in shown
        assert ("2, 2 of them beside an accepted one" in shown) is not is_large
        assert ("Counted when the training round starts, as there are many prompts." in shown) is is_large

    def test_cancelled(self, browser: Browser, session: Session, project: Project) -> None:
        snapshot = factories.make_snapshot(session, project)
        plan = {"parent": project.active_version_id, "base_model": "starter", "metric": "rouge_l", "seed": 1}
        snapshot.settings = {**plan, "project": snapshot.settings}
        made = factories.make_round(session, project, snapshot=snapshot)
        browser.get("/admin/projects/scenes/settings")
        response = browser.post("/admin/projects/scenes/rounds/1/cancel")
        assert response.headers["location"] == "/admin/projects/scenes/rounds/1?done=cancelled"
        assert session.get_one(Round, made.id).state is RoundState.cancelled
        assert "The training round is being cancelled." in browser.get(response.headers["location"]).text

    def test_a_round_that_succeeded_is_not_resumed(self, browser: Browser, session: Session, project: Project) -> None:
        factories.make_round(session, project, state=RoundState.succeeded)
        browser.get("/admin/projects/scenes/settings")
        answer = browser.post("/admin/projects/scenes/rounds/1/retry")
        assert answer.status_code == 409
        assert "Only a failed or cancelled training round can be resumed; this one succeeded." in answer.text

    def test_settings_of_a_round_are_worded_as_in_their_form(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        snapshot = factories.make_snapshot(session, project)
        plan = {"parent": project.active_version_id, "base_model": "starter", "metric": "rouge_l", "seed": 1}
        settings = {
            "auto_rounds": True,
            "blur_images": False,
            "init": "from_base",
            "temperatures": [[0.0, 1], [0.7, 2]],
            "skip_reasons": ["Not sure", "Too hard to see"],
            "machine_accepts": {"precision": 0.9},
            "show": {"select": "spread", "of": 7},
            "of_an_earlier_release": 3,
        }
        snapshot.settings = {**plan, "project": {**snapshot.settings, **settings}}
        factories.make_round(session, project, state=RoundState.succeeded, snapshot=snapshot)
        page = browser.get("/admin/projects/scenes/rounds/1").text
        facts = dict(re.findall(r"<dt>([^<]*)</dt><dd class=\"mono as-typed\" dir=\"auto\">([^<]*)</dd>", page))
        assert (facts["Start automatically"], facts["Blur images"]) == ("on", "off")
        assert facts["Start from"] == "the base model"
        assert facts["Sampling temperatures"] == "0 x 1, 0.7 x 2"
        assert facts["Reasons to skip"] == "Not sure\nToo hard to see"
        assert (facts["Accepted by machine from"], facts["Explanations to choose from"]) == ("0.9", "7")
        assert facts["of_an_earlier_release"] == "3"

    def test_the_list_says_why_with_real_minus_signs(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        made = factories.make_round(session, project, state=RoundState.succeeded)
        made.decision = {"activate": False, "reason": "No clear difference: -0.0130 to +0.0200."}
        assert "\N{MINUS SIGN}0.0130 to +0.0200" in browser.get("/admin/projects/scenes/rounds").text

    def test_reasons_stored_in_earlier_words_are_shown_in_todays(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        snapshot = factories.make_snapshot(session, project)
        plan = {"parent": project.active_version_id, "base_model": "starter", "metric": "rouge_l", "seed": 1}
        snapshot.settings = {**plan, "project": snapshot.settings}
        made = factories.make_round(session, project, state=RoundState.succeeded, snapshot=snapshot)
        gain = "ROUGE-L of samples changed by -0.0900 (95 % interval -0.1200 to -0.0600, 40 prompts)"
        made.decision = {"activate": False, "reason": f"Not clearly better: {gain}."}
        made.metrics = {"change": {"score": {"mean": -0.09, "low": -0.12, "high": -0.06, "n": 40}}}
        session.flush()
        for address in ("/admin/projects/scenes/rounds", "/admin/projects/scenes/rounds/1"):
            page = browser.get(address).text
            assert "Worse: ROUGE-L of samples changed by \N{MINUS SIGN}0.0900" in page
            assert "Not clearly better" not in page
        assert made.decision["reason"].startswith("Not clearly better")

    def test_lists_the_prompts_that_it_left_out(self, browser: Browser, session: Session, project: Project) -> None:
        snapshot = factories.make_snapshot(session, project)
        plan = {"parent": project.active_version_id, "base_model": "starter", "metric": "rouge_l", "seed": 1}
        snapshot.settings = {**plan, "project": snapshot.settings}
        made = factories.make_round(session, project, state=RoundState.succeeded, snapshot=snapshot)
        assert "left out" not in browser.get("/admin/projects/scenes/rounds/1").text.lower()
        entry = {"prompt": "17", "role": "guard", "rows": 1, "reason": "absolute aspect ratio <200>"}
        made.metrics = {"left_out": [entry] * 120}
        page = browser.get("/admin/projects/scenes/rounds/1").text
        assert "The model cannot process 120 prompts" in page
        assert page.count('href="/admin/projects/scenes/prompts/17"') == 100
        assert "absolute aspect ratio &lt;200&gt;" in page
        assert "training, answer only" in page

    def test_measures_of_ratings_are_shown_by_variant_of_the_policy(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        snapshot = factories.make_snapshot(session, project)
        plan = {"parent": project.active_version_id, "base_model": "starter", "metric": "balanced_accuracy", "seed": 1}
        snapshot.settings = {**plan, "project": snapshot.settings}
        made = factories.make_round(session, project, state=RoundState.succeeded, snapshot=snapshot)
        recall = {"recall": {"mean": 0.75, "low": 0.6, "high": 0.85, "n": 40}}
        made.metrics = {"means": {"greedy_recall": 0.75}, "fields": {"greedy": {"by_change": {"": recall}}}}
        words = "All measures, by variant of the policy"
        assert words not in browser.get("/admin/projects/scenes/rounds/1").text
        both = {"": recall, "own_strict": {"recall": {**recall["recall"], "mean": 0.5, "low": None}}}
        before = {"means": {}, "fields": {"greedy": {"by_change": {"own_strict": {"recall": {"mean": 0.25}}}}}}
        made.metrics = {**made.metrics, "fields": {"greedy": {"by_change": both}}, "parent": before}
        table = browser.get("/admin/projects/scenes/rounds/1").text.partition(f"<summary>{words}</summary>")[2]
        [row] = re.findall('<tr role="row"><th role="rowheader".*?</tr>', table.partition("</details>")[0])
        cells = [re.sub("<[^>]*>", " ", cell).split() for cell in re.findall("data-label=.*?</td>", row)]
        assert [" ".join(cell).partition(">")[2].strip() for cell in cells] == [
            "75.0 % (60.0 % to 85.0 %)",
            "50.0 % before: 25.0 %",
        ]

    def test_an_unknown_one(self, browser: Browser) -> None:
        response = browser.get("/admin/projects/scenes/rounds/7")
        assert response.status_code == 404
        assert "There is no training round 7" in response.text
