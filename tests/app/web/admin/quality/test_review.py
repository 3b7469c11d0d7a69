"""The page of the review queue."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import (
    CandidateSet,
    Project,
    Prompt,
    PromptState,
    Review,
    ReviewKind,
    Role,
    Verdict,
    VerdictState,
)
from app.services.acceptance import rules
from app.services.judging import decide
from app.services.kernel.actors import SYSTEM
from app.services.kernel.verdict_schema import parse_verdict
from app.services.quality import reviews, standings
from tests import factories, judging
from tests.app.services.judging.test_claim_order import must_claim, project_with
from tests.app.services.quality.test_reviews import judged
from tests.app.web.conftest import Browser, person
from tests.statements import recorded

OWN, OTHER = factories.CATEGORIES


@pytest.fixture
def project(session: Session) -> Project:
    project = project_with(session, slug="scenes", overlap=2)
    offered = factories.make_candidate_set(session, project, slots=2)
    judged(session, project, offered, 0)
    judged(session, project, offered, 1)
    return project


def test_a_reviewer_decides(session: Session, project: Project, browser: Browser) -> None:
    browser.sign_in(factories.make_member(session, project, Role.reviewer, user=person(session)))
    shown = browser.get("/admin/projects/scenes/review")
    assert shown.status_code == 200
    assert "Disagreement" in shown.text
    assert "it stands in the sand" in shown.text
    item = reviews.list_reviews(session, SYSTEM, project).items[0]
    path = f"/admin/projects/scenes/review/{item['id']}"
    answer = browser.post(path, {"action": "decide", "picks": item["candidates"][2]["id"]})
    assert answer.headers["location"].endswith("?done=review-decided")
    assert [one.text for one in rules.accepted_rationales(session, project)] == ["umbrellas are umbrellas"]
    assert "Nothing to review" in browser.get("/admin/projects/scenes/review").text
    assert browser.post(path, {"action": "dismiss"}).status_code == 409


def test_or_sends_back(session: Session, project: Project, browser: Browser) -> None:
    browser.sign_in(factories.make_member(session, project, Role.reviewer, user=person(session)))
    browser.get("/admin/projects/scenes/review")
    item = reviews.list_reviews(session, SYSTEM, project).items[0]
    fields: dict[str, object] = {"action": "send-back", "verdict": item["verdicts"][0]["id"], "note": "<b>Look</b>"}
    answer = browser.post(f"/admin/projects/scenes/review/{item['id']}", fields)
    assert answer.headers["location"].endswith("?done=review-sent-back")
    assert browser.post(f"/admin/projects/scenes/review/{item['id']}", {"action": "explode"}).status_code == 422


def test_shows_flags_and_who_is_paused(session: Session, project: Project, browser: Browser) -> None:
    offered = factories.make_candidate_set(session, project)
    critic = factories.make_critic(session, project)
    claimed = must_claim(session, critic, project)
    judging.give(session, critic, claimed.assignment_id, parse_verdict({"kind": "flagged", "reason": "Offensive"}))
    standings.pause(session, SYSTEM, project, critic.user_id)
    browser.sign_in(person(session, role=Role.admin))
    shown = browser.get("/admin/projects/scenes/review?kind=flag")
    assert "Offensive" in shown.text
    assert "Disagreement:" not in shown.text
    assert "Paused critics" in shown.text
    answer = browser.post(f"/admin/projects/scenes/critics/{critic.user_id}/resume")
    assert answer.status_code == 303
    assert "Paused critics" not in browser.get("/admin/projects/scenes/review").text
    item = reviews.list_reviews(session, SYSTEM, project).items[-1]
    decide.retire(session, SYSTEM, int(item["id"]))
    assert session.get_one(Prompt, offered.prompt_id, populate_existing=True).state is PromptState.retired


class TestFields:
    @pytest.fixture
    def item(self, session: Session, browser: Browser) -> dict[str, Any]:
        """A review of a picture that two critics put into different categories, with a reviewer who is signed in."""
        project, _first = factories.structured_project(session, slug="rules", overlap=2)
        policy = factories.make_policy(session, project, O1="strict")
        prompt = factories.make_prompt(session, project, policy=policy, answer=None, state=PromptState.judged)
        texts = [factories.answer("a cat"), factories.answer("a dog", category=OTHER)]
        offered = factories.make_candidate_set(session, project, prompt=prompt, texts=texts, slots=2)
        for number, category in enumerate((OWN, OTHER)):
            claim = factories.make_assignment(
                session, offered, factories.make_critic(session, project), slot=number + 1
            )
            said = factories.make_verdict(session, claim, picks=[claim.shown[number]])
            said.fields = {"rating": "Unsafe", "category": category}
        session.flush()
        reviews.open_review_if_disagreeing(session, offered.id)
        browser.sign_in(factories.make_member(session, project, Role.reviewer, user=person(session)))
        return reviews.list_reviews(session, SYSTEM, project).items[0]

    def test_show_what_stands_and_the_policy(self, browser: Browser, item: dict[str, Any]) -> None:
        text = html.unescape(browser.get("/admin/projects/rules/review").text)
        assert f"{OWN} is strict." in text
        assert f'data-default="{OWN} is default."' in text
        # The critics agree on the rating, and on no category.
        assert re.findall(r'<option value="([^"]*)" selected>', text) == ["Unsafe"]
        assert text.count('<option value="">Not decided</option>') == 1
        assert item["policy"]["name"] == "House rules"

    def test_are_read_at_once_for_all_cards_also_of_prompts_on_hold(
        self, browser: Browser, session: Session, item: dict[str, Any]
    ) -> None:
        path, bind = "/admin/projects/rules/review", session.get_bind()
        with recorded(bind) as one:
            browser.get(path)
        offered = session.get_one(CandidateSet, int(item["candidate_set"]))
        for kind in (ReviewKind.flag, ReviewKind.asked):
            factories.add(session, Review(project_id=offered.project_id, candidate_set_id=offered.id, kind=kind))
        session.get_one(Prompt, offered.prompt_id).state = PromptState.held
        session.flush()
        with recorded(bind) as three:
            text = browser.get(path).text
        assert re.findall(r'<option value="([^"]*)" selected>', text) == ["Unsafe"] * 3
        assert len(three) == len(one)

    def test_are_corrected_by_the_decision(self, browser: Browser, session: Session, item: dict[str, Any]) -> None:
        path = f"/admin/projects/rules/review/{item['id']}"
        wrong = browser.post(path, {"action": "decide", "value-1": "Unsafe", "value-2": "O9"})
        assert (wrong.status_code, "fields.category" in wrong.text) == (422, True)
        said = {"action": "decide", "picks": item["candidates"][0]["id"], "value-1": "Unsafe", "value-2": OWN}
        assert browser.post(path, said).status_code == 303
        decided = session.scalars(select(Verdict).where(Verdict.state == VerdictState.decided)).one()
        assert decided.fields == {"rating": "Unsafe", "category": OWN}
        project = session.get_one(Project, decided.project_id)
        [accepted] = rules.accepted_rationales(session, project)
        assert accepted.values == {"rating": "Unsafe", "category": OWN}

    def test_that_are_left_open_stay_so(self, browser: Browser, session: Session, item: dict[str, Any]) -> None:
        path = f"/admin/projects/rules/review/{item['id']}"
        said = {"action": "decide", "picks": item["candidates"][0]["id"], "value-1": "Safe", "value-2": ""}
        assert browser.post(path, said).status_code == 303
        decided = session.scalars(select(Verdict).where(Verdict.state == VerdictState.decided)).one()
        assert decided.fields == {"rating": "Safe"}


def test_is_not_for_critics(session: Session, project: Project, browser: Browser) -> None:
    browser.sign_in(factories.make_member(session, project, Role.critic, user=person(session)))
    assert browser.get("/admin/projects/scenes/review").status_code == 403
