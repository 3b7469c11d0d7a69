"""Every empty page says what to do next, to those who may do it."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.models import AuditEvent, Project, Role, User
from app.services.kernel.actors import SYSTEM
from app.services.rounds import rounds
from tests import factories
from tests.app.services.feedback import judge
from tests.app.web.conftest import Browser, person

BASE = "/admin/projects/scenes"
JUDGE = ("/annotate/scenes", "Judge some prompts")
START = (f"{BASE}/rounds/preview", "Start a training round")
WAITING_FOR_A_ROUND = ("/versions", "/compare", "/comparisons", "/rounds")
LINK = re.compile(r'<a class="button[^"]*" href="([^"]+)"[^>]*>([^<]+)</a>')


def links_of(browser: Browser, path: str) -> list[tuple[str, str]]:
    """The buttons of a page's empty state that are links."""
    page = browser.get(path)
    assert page.status_code == 200
    found = re.search(r'<div class="empty">.*?(?=</main>)', page.text, re.DOTALL)
    assert found, path
    return LINK.findall(found[0].split("</section>")[0])


class TestForAnAdmin:
    @pytest.mark.usefixtures("admin")
    @pytest.mark.parametrize("path", WAITING_FOR_A_ROUND)
    def test_what_waits_for_a_round_leads_to_judging_then_to_a_round(
        self, browser: Browser, session: Session, project: Project, admin: User, path: str
    ) -> None:
        assert links_of(browser, BASE + path) == [JUDGE]
        judge(session, project, factories.actor_of(admin))
        assert links_of(browser, BASE + path) == [START]
        rounds.start(session, SYSTEM, project)
        if path != "/rounds":
            assert links_of(browser, BASE + path) == [(f"{BASE}/rounds/1", "See training round 1")]

    @pytest.mark.usefixtures("admin")
    def test_a_round_that_cannot_start_says_what_to_do(
        self, browser: Browser, session: Session, project: Project, admin: User
    ) -> None:
        page = browser.get(START[0]).text
        assert "nothing to train on" in page
        assert JUDGE in LINK.findall(page)
        judge(session, project, factories.actor_of(admin))
        page = browser.get(START[0]).text
        assert JUDGE not in LINK.findall(page)
        assert "Start training</button>" in page
        rounds.start(session, SYSTEM, project)
        assert (f"{BASE}/rounds/1", "See training round 1") in LINK.findall(browser.get(START[0]).text)

    @pytest.mark.usefixtures("admin")
    @pytest.mark.parametrize(
        ("path", "links"),
        [
            ("/critics", [("/admin/users", "Invite people"), JUDGE]),
            ("/review", [JUDGE]),
            ("/export", [JUDGE]),
            ("/export?split=val", [(f"{BASE}/export", "Clear choices")]),
            (
                "/prompts",
                [
                    (f"{BASE}/imports", "Import prompts"),
                    (f"{BASE}/prompts/new", "Add a prompt"),
                    ("/api/docs", "REST interface"),
                ],
            ),
            ("/prompts?q=nowhere", [(f"{BASE}/prompts", "Clear filters")]),
        ],
    )
    def test_leads_to_the_next_step(self, browser: Browser, path: str, links: list[tuple[str, str]]) -> None:
        assert links_of(browser, BASE + path) == links
        assert [browser.get(url).status_code for url, _ in links] == [200] * len(links)

    def test_no_project_leads_to_a_new_one(self, browser: Browser, session: Session) -> None:
        browser.sign_in(person(session, role=Role.admin))
        for path in ("/admin", "/annotate"):
            assert links_of(browser, path) == [("/admin/new-project", "New project")]

    @pytest.mark.usefixtures("admin")
    def test_the_audit_log_tells_no_activity_from_no_match(self, browser: Browser, session: Session) -> None:
        session.execute(delete(AuditEvent))
        page = browser.get("/admin/audit").text
        assert "No activity yet" in page
        assert "filters." not in page
        assert links_of(browser, "/admin/audit?person=nobody") == [("/admin/audit", "All activity")]

    @pytest.mark.usefixtures("admin")
    def test_a_way_out_is_offered_once(self, browser: Browser) -> None:
        for path, name in (
            ("/admin/audit?person=nobody", "All activity"),
            (f"{BASE}/prompts?q=nowhere", "Clear filters"),
        ):
            assert browser.get(path).text.count(f">{name}</a>") == 1

    @pytest.mark.usefixtures("admin")
    def test_erasures_lead_to_whom_to_erase(self, browser: Browser) -> None:
        assert links_of(browser, "/admin/erasures") == [("/admin/users", "Choose a person")]


@pytest.mark.parametrize("path", [*WAITING_FOR_A_ROUND, "/critics", "/export", "/prompts"])
def test_a_viewer_is_offered_nothing_they_may_not_do(
    browser: Browser, session: Session, project: Project, path: str
) -> None:
    browser.sign_in(factories.make_member(session, project, Role.viewer, user=person(session)))
    assert links_of(browser, BASE + path) == []
    assert 'href="/annotate/scenes"' not in browser.get(BASE + path).text


def test_a_viewer_does_not_start_rounds_or_judge(browser: Browser, session: Session, project: Project) -> None:
    judge(session, project, factories.make_critic(session, project))
    browser.sign_in(factories.make_member(session, project, Role.viewer, user=person(session)))
    assert "Start training</button>" not in browser.get(START[0]).text
    for path in (BASE, f"{BASE}/first-steps"):
        assert 'href="/annotate/scenes"' not in browser.get(path).text


def test_a_reviewer_judges_but_starts_nothing(browser: Browser, session: Session, project: Project) -> None:
    reviewer = factories.make_member(session, project, Role.reviewer, user=person(session))
    browser.sign_in(reviewer)
    judge(session, project, factories.actor_of(reviewer))
    assert links_of(browser, f"{BASE}/rounds") == [JUDGE]


def test_somebody_in_no_project_waits_for_an_admin(browser: Browser, session: Session, project: Project) -> None:
    browser.sign_in(person(session, role=Role.critic))
    assert links_of(browser, "/annotate") == []
    assert project.name not in browser.get("/annotate").text
