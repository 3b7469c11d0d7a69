"""Verdicts that a reviewer sent back: what their critic sees, and what reviewers see of those that are still out."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Project, Review, Role, User, Verdict
from app.services.judging import decide
from app.services.kernel.actors import SYSTEM
from app.services.kernel.verdict_schema import parse_verdict
from app.services.quality import reviews
from tests import factories, judging
from tests.app.services.judging.test_claim_order import must_claim, project_with
from tests.app.web.conftest import Browser, person
from tests.app.web.judging.test_annotate import FRAGMENT

NOTE = "Is the <i>tail</i> red?"
BADGE = "Returned to you (1)"
LINK = 'Returned<span class="to-you"> to you</span> (1)'


@pytest.fixture
def project(session: Session) -> Project:
    """A project."""
    return project_with(session, slug="scenes")


@pytest.fixture
def critic(session: Session, project: Project) -> User:
    """A critic of it."""
    return factories.make_member(session, project, user=person(session, role=Role.critic))


@pytest.fixture
def verdict(session: Session, project: Project, critic: User) -> Verdict:
    """A flag of the critic that a reviewer has sent back."""
    factories.make_candidate_set(session, project)
    actor = factories.actor_of(critic)
    flag = parse_verdict({"kind": "flagged", "reason": "Offensive"})
    given = judging.give(session, actor, must_claim(session, actor, project).assignment_id, flag)
    review = reviews.list_reviews(session, SYSTEM, project).items[0]
    decide.send_back(session, SYSTEM, int(review["id"]), int(given.body["id"]), NOTE)
    return session.get_one(Verdict, int(given.body["id"]))


@pytest.mark.usefixtures("verdict")
def test_the_critic_sees_it_everywhere_and_keeps_it(
    browser: Browser, session: Session, project: Project, critic: User, verdict: Verdict
) -> None:
    browser.sign_in(critic)
    assert BADGE in browser.get("/annotate").text
    assert LINK in browser.get("/annotate/scenes").text
    assert "Is the &lt;i&gt;tail&lt;/i&gt; red?" in browser.get("/annotate/scenes/history").text
    led = browser.get("/annotate/scenes/returned")
    assert led.headers["location"] == f"/annotate/scenes?verdict={verdict.id}"
    shown = browser.get(led.headers["location"]).text
    assert "Is the &lt;i&gt;tail&lt;/i&gt; red?" in shown
    assert "Is the &lt;i&gt;tail&lt;/i&gt; red?" in browser.get("/annotate/scenes/back", headers=FRAGMENT).text
    [asked] = decide.list_returned(session, factories.actor_of(critic), project)
    kept = browser.post(f"/annotate/scenes/returned/{asked['id']}/keep", headers=FRAGMENT)
    assert kept.status_code == 200
    assert 'data-returned="0"' in kept.text
    assert LINK not in browser.get("/annotate/scenes").text
    assert_nothing_is_returned(browser)
    assert browser.post(f"/annotate/scenes/returned/{asked['id']}/keep", headers=FRAGMENT).status_code == 404
    assert session.scalars(select(Verdict)).one().current
    assert [one["id"] for one in reviews.list_reviews(session, SYSTEM, project).items] == [str(asked_review(session))]


def assert_nothing_is_returned(browser: Browser) -> None:
    """Nothing is waiting for the critic, and the page says so with links to what they can do."""
    page = browser.get("/annotate/scenes/returned")
    assert page.status_code == 200
    assert "Nothing has been returned to you" in page.text
    assert 'href="/annotate/scenes">Go to judging</a>' in page.text
    assert 'href="/annotate/scenes/history">My verdicts</a>' in page.text


def asked_review(session: Session) -> int:
    """The review of the verdict."""
    return int(session.scalars(select(Review.id)).one())


def test_a_change_answers_it_too(browser: Browser, critic: User, verdict: Verdict) -> None:
    browser.sign_in(critic)
    browser.get("/annotate/scenes")
    answer = browser.post(f"/annotate/scenes/verdicts/{verdict.id}", {"kind": "none_fit"}, headers=FRAGMENT)
    assert answer.status_code == 201
    assert 'data-returned="0"' in answer.text


def test_nobody_is_asked_once_a_reviewer_has_decided(
    browser: Browser, session: Session, critic: User, verdict: Verdict
) -> None:
    decide.dismiss(session, SYSTEM, asked_review(session))
    browser.sign_in(critic)
    assert LINK not in browser.get("/annotate/scenes").text
    assert "A reviewer asked you" not in browser.get(f"/annotate/scenes?verdict={verdict.id}").text


@pytest.mark.usefixtures("verdict")
def test_anothers_is_not_shown(browser: Browser, session: Session, project: Project) -> None:
    browser.sign_in(factories.make_member(session, project, user=person(session, role=Role.critic)))
    assert LINK not in browser.get("/annotate/scenes").text
    assert_nothing_is_returned(browser)


def test_reviewers_see_what_is_still_out(
    browser: Browser, session: Session, project: Project, critic: User, verdict: Verdict
) -> None:
    browser.sign_in(factories.make_member(session, project, Role.reviewer, user=person(session)))
    queue = browser.get("/admin/projects/scenes/review").text
    assert "Nothing to review" in queue
    assert "Sent back 1</a>" in queue
    out = browser.get("/admin/projects/scenes/review?kind=sent_back").text
    assert "waiting for an answer" in out
    assert "not answered yet: Is the &lt;i&gt;tail&lt;/i&gt; red?" in out
    [asked] = decide.list_returned(session, factories.actor_of(critic), project)
    decide.confirm_returned(session, factories.actor_of(critic), int(asked["id"]))
    assert "Nothing is waiting for a critic" in browser.get("/admin/projects/scenes/review?kind=sent_back").text
    assert "Sent back before: Is the" in browser.get("/admin/projects/scenes/review").text
