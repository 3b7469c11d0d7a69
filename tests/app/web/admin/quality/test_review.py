"""The page of the review queue."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from app.models import Project, Prompt, PromptState, Role
from app.services.acceptance import rules
from app.services.judging import decide
from app.services.kernel.actors import SYSTEM
from app.services.kernel.verdict_schema import parse_verdict
from app.services.quality import reviews, standings
from tests import factories, judging
from tests.app.services.judging.test_claim_order import must_claim, project_with
from tests.app.services.quality.test_reviews import judged
from tests.app.web.conftest import Browser, person


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


def test_is_not_for_critics(session: Session, project: Project, browser: Browser) -> None:
    browser.sign_in(factories.make_member(session, project, Role.critic, user=person(session)))
    assert browser.get("/admin/projects/scenes/review").status_code == 403
