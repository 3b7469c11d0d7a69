"""A critic's first time: an invitation, instructions, an answer that a reviewer sends back, and the account page."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect
from sqlalchemy import select

from app.models import LinkPurpose, Review, Role, User, Verdict, VerdictKind
from app.services.accounts import one_time_links, users
from app.services.judging import decide
from app.services.kernel.actors import SYSTEM
from app.services.projects import projects
from app.services.quality import reviews
from tests.e2e import world
from tests.e2e.conftest import Site, Visitor
from tests.e2e.test_judging import candidate, question, ready, verdicts, wait_for_verdicts
from tests.e2e.test_lead_walk import check

pytestmark = pytest.mark.browser
EMAIL, NOTE = "eve@example.org", "Is that really why?\nLook at the left half."


def invite(site: Site, slug: str) -> str:
    """The path of the link that an admin sends to a new critic."""
    with site.sessions.begin() as session:
        person = users.add_user(session, SYSTEM, email=EMAIL, role=Role.critic, project_slugs=[slug])
        _, plain = one_time_links.make_link(session, SYSTEM, person.id, LinkPurpose.invitation)
    return f"/account/link/{plain}"


def send_back(site: Site, scenes: world.World, given: Verdict) -> None:
    """What a reviewer does who doubts a verdict."""
    with site.sessions.begin() as session:
        project = projects.get_project(session, SYSTEM, scenes.slug)
        reviews.ask_for_review(session, SYSTEM, project, given.prompt_id)
        review = session.scalars(select(Review.id).where(Review.candidate_set_id == given.candidate_set_id)).one()
        decide.send_back(session, SYSTEM, review, given.id, NOTE)


def test_from_an_invitation_to_the_account_page(site: Site, visitor: Visitor, scenes: world.World) -> None:
    visit = visitor()
    page = visit.open(invite(site, scenes.slug))
    expect(page.get_by_role("heading", name="Welcome")).to_be_visible()
    check(page)
    page.get_by_label("Your name").fill("Eve Critic")
    for label in ("Password", "Repeat password"):
        page.get_by_label(label, exact=True).fill(world.PASSWORD)
    page.get_by_role("button", name="Set password").click()
    expect(page.get_by_role("heading", name="Projects to judge")).to_be_visible()
    check(page)

    page.get_by_role("link", name="Judge Scenes").click()
    instructions = page.get_by_role("complementary", name="Instructions")
    expect(instructions).to_contain_text("Pick every explanation that is true of the image")
    check(page)
    instructions.get_by_role("button", name="Close the instructions").click()
    expect(instructions).to_be_hidden()
    ready(page)
    first = question(page)
    page.locator(".candidate").first.click()
    page.get_by_role("button", name="Submit").click()
    [given] = wait_for_verdicts(page, site, 1)
    assert (given.kind, len(given.shown)) == (VerdictKind.picked, 6)

    send_back(site, scenes, given)
    page.reload()
    expect(instructions).to_be_hidden()  # they open on the first visit only
    page.get_by_role("link", name=re.compile(r"^Returned.* \(1\)")).click()
    returned = page.locator(".returned")
    expect(returned).to_contain_text("A reviewer asked you to take another look")
    expect(returned.locator(".as-typed")).to_have_text(NOTE)
    assert question(page) == first
    ready(page)
    check(page)
    expect(candidate(page, 1)).to_be_checked()
    page.locator(".candidate").nth(0).click()
    page.locator(".candidate").nth(1).click()
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("link", name=re.compile("^Returned"))).to_have_count(0)
    [changed] = verdicts(site)
    assert changed.supersedes == given.id
    page.goto(f"{site.url}/annotate/{scenes.slug}/history")
    expect(page.get_by_role("rowheader")).to_have_count(1)
    check(page)

    page.get_by_label(f"Account {EMAIL}").click()
    menu = page.get_by_role("group", name="Account")
    expect(menu).to_contain_text("Eve Critic")
    check(page)
    menu.get_by_role("link", name="Your account").click()
    expect(page.get_by_label("Your name")).to_have_value("Eve Critic")
    page.get_by_label("Your name").fill("Eve")
    page.get_by_role("button", name="Save name").click()
    expect(page.get_by_text("Your name is saved.")).to_be_visible()
    check(page)
    with site.sessions() as session:
        assert session.scalars(select(User.name).where(User.email == EMAIL)).one() == "Eve"
