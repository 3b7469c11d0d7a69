"""Comparing versions in a browser: side by side by an admin, blindly by a critic."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect
from sqlalchemy import func, select

from app.models import Comparison, ComparisonState, Preference
from tests.e2e import world
from tests.e2e.conftest import Site, Visit, Visitor, any_size
from tests.e2e.test_judging import seen

pytestmark = pytest.mark.browser


def test_from_the_lineage_to_what_each_wrote(admin: Visit) -> None:
    page = admin.open("/admin/projects/scenes/versions")
    graph = page.get_by_role("region", name="Graph of versions")
    expect(graph.get_by_role("link")).to_have_count(4)
    expect(graph.get_by_role("link", name=re.compile("^v2 0.608.*active"))).to_be_visible()
    expect(page.get_by_role("link", name="Download the adapter of version 3")).to_be_visible()
    page.get_by_role("link", name="Compare version 3 with version 2").click()
    expect(page.get_by_role("heading", name="Version 2 against version 3")).to_be_visible()
    pairs = page.locator("li.pair")
    expect(pairs).to_have_count(12)
    first = pairs.first.locator(".badge").inner_text()
    assert first.startswith("+")
    page.get_by_label("Order").select_option("worse")
    page.get_by_role("button", name="Compare").click()
    expect(pairs.first.locator(".badge")).not_to_have_text(first)
    worse = page.get_by_role("navigation", name="Which prompts").get_by_role("link", name=re.compile("^worse"))
    count = int(worse.locator("strong").inner_text())
    worse.click()
    expect(pairs).to_have_count(count)


@any_size
def test_a_critic_compares_by_keys(visitor: Visitor, history: world.World, site: Site, size: tuple[int, int]) -> None:
    visit = visitor(size)
    page = visit.sign_in("dan@example.org", to="/annotate/scenes/compare")
    expect(page.get_by_role("img", name="Image 1 of 1")).to_be_visible()
    assert "ersion" not in page.locator("main").inner_text()
    texts = page.locator(".blind-text")
    left = page.locator(".blind-ask .numbers").inner_text()
    before = texts.all_inner_texts()
    with site.sessions() as session:
        count = session.scalar(select(func.count()).select_from(Preference)) or 0
    seen(page, ".blind")
    page.keyboard.press("1")
    page.keyboard.press("1")  # meant for the first pair: the second one has not been seen
    expect(texts.first).not_to_have_text(before[0])
    page.keyboard.press("2")  # nor has it now
    seen(page, ".blind")
    page.get_by_role("button", name="Neither is better").dblclick()
    expect(page.locator(".blind-ask .numbers")).to_have_text(str(int(left) - 2))
    seen(page, ".blind")
    with site.sessions() as session:
        given = session.scalars(select(Preference).order_by(Preference.id.desc())).all()
    assert len(given) == count + 2
    assert given[0].preferred == "neither"
    assert given[1].preferred == given[1].left
    assert given[1].seconds is not None
    before = texts.all_text_contents()
    page.keyboard.press("u")
    expect(page.get_by_role("button", name="Neither is better", pressed=True)).to_be_visible()
    seen(page, ".blind")
    page.keyboard.press("Escape")
    expect(texts).to_have_text(before)
    seen(page, ".blind")
    page.keyboard.press("u")
    expect(page.get_by_role("button", name="Neither is better", pressed=True)).to_be_visible()
    seen(page, ".blind")
    page.keyboard.press("2")
    expect(texts).to_have_text(before)
    with site.sessions() as session:
        changed = session.get_one(Preference, given[0].id)
        assert changed.preferred not in ("neither", changed.left)
        assert session.scalar(select(func.count()).select_from(Preference)) == count + 2
    page.set_viewport_size({"width": 640, "height": 400})
    box = page.get_by_role("img", name="Image 1 of 1").bounding_box()
    assert box is not None
    assert box["height"] >= 200


@any_size
def test_an_admin_sees_it_stand_and_closes_it(admin: Visit, site: Site) -> None:
    page = admin.open("/admin/projects/scenes/comparisons")
    card = page.get_by_role("region", name="Comparison 1")
    expect(card).to_contain_text(re.compile(r"6 of \d+ judgements"))
    card.get_by_role("link", name="Comparison 1").click()
    page.on("dialog", lambda question: question.accept())
    page.get_by_role("button", name="Close now").click()
    expect(page.get_by_text("Comparison closed.")).to_be_visible()
    with site.sessions() as session:
        assert session.scalars(select(Comparison)).one().state is ComparisonState.closed


@any_size
def test_agreement_and_a_critic_behind_it(admin: Visit) -> None:
    page = admin.open("/admin/projects/scenes/critics")
    agreement = page.get_by_role("region", name="Agreement", exact=True)
    expect(agreement).to_contain_text("95 % interval")
    agreement.get_by_text("By pair of critics").click()
    expect(agreement.get_by_role("rowheader", name=re.compile("ada.* and ben")).first).to_be_visible()
    page.get_by_role("link", name="ada@example.org").click()
    expect(page.get_by_role("heading", name="ada@example.org")).to_be_visible()
    expect(page.get_by_role("region", name="Verdicts", exact=True).get_by_role("listitem").first).to_be_visible()
