"""The review queue in a browser: accessible at a desktop's and a phone's size, and a decision takes a few clicks."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect
from sqlalchemy import update

from app.models import CandidateSet, CandidateSetState, Project
from app.services.kernel.actors import SYSTEM
from app.services.kernel.verdict_schema import parse_verdict
from app.services.quality import standings
from tests import factories, judging
from tests.e2e import world
from tests.e2e.conftest import DESK, PHONE, Site, Visitor
from tests.e2e.test_judging import seen
from tests.e2e.test_pages import faults

pytestmark = pytest.mark.browser


def disagree(site: Site, scenes: world.World) -> None:
    """Two critics pick differently; a third one flags and is paused."""
    with site.sessions.begin() as session:
        project = session.get_one(Project, scenes.project_id)
        session.execute(
            update(CandidateSet)
            .where(CandidateSet.project_id == project.id, CandidateSet.state == CandidateSetState.ready)
            .values(state=CandidateSetState.replaced)
        )
        factories.make_candidate_set(session, project, slots=2)
        for place in (0, 1):
            critic = factories.make_critic(session, project)
            claimed = judging.claim(session, critic, project)
            assert claimed is not None
            picks = sorted(one["id"] for one in claimed.candidates)[place : place + 1]
            judging.give(session, critic, claimed.assignment_id, parse_verdict({"kind": "picked", "picks": picks}))
        factories.make_candidate_set(session, project)
        critic = factories.make_critic(session, project)
        claimed = judging.claim(session, critic, project)
        assert claimed is not None
        flag = parse_verdict({"kind": "flagged", "reason": "The image is broken"})
        judging.give(session, critic, claimed.assignment_id, flag)
        standings.pause(session, SYSTEM, project, critic.user_id)


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (PHONE, "dark")], ids=["desk-light", "phone-dark"])
def test_review(visitor: Visitor, scenes: world.World, site: Site, size: tuple[int, int], scheme: str) -> None:
    disagree(site, scenes)
    visit = visitor(size, color_scheme=scheme)
    page = visit.sign_in(scenes.admin, to="/admin/projects/scenes/review")
    expect(page.get_by_role("heading", name="Review", exact=True)).to_be_visible()
    expect(page.get_by_role("heading", name="Paused critics")).to_be_visible()
    assert faults(page) == []
    card = page.locator("section.review").filter(has_text="Disagreement").first
    card.get_by_role("checkbox").first.check()
    seen(page, "section.review")
    card.get_by_role("button", name="Save decision").click()
    expect(page.get_by_text("It replaces what the critics said")).to_be_visible()
    expect(page.locator("section.review").filter(has_text="Disagreement")).to_have_count(0)
