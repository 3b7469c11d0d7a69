"""Webhooks in the browser: one is added, and its secret is shown once."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.e2e import world
from tests.e2e.conftest import DESK, PHONE, Visitor, axe_violations, own_sizes
from tests.e2e.test_imports import no_sideways_scroll, shoot

pytestmark = pytest.mark.browser


@own_sizes
def test_one_is_added(visitor: Visitor, scenes: world.World) -> None:
    visit = visitor(PHONE)
    page = visit.sign_in(scenes.admin, to=f"/admin/projects/{scenes.slug}/settings")
    page.get_by_role("link", name="Webhooks").click()
    page.get_by_label("Address").fill("https://8.8.8.8/hook")
    page.get_by_label("an import ends").check()
    page.get_by_role("button", name="Add webhook").press("Enter")
    expect(page.locator("#secret")).to_contain_text("whsec_")
    no_sideways_scroll(page)
    assert axe_violations(page) == []
    shoot(page, "phone-webhooks")
    page.reload()
    expect(page.get_by_role("heading", name="https://8.8.8.8/hook")).to_be_visible()
    expect(page.locator("#secret")).to_have_count(0)
    page.set_viewport_size({"width": DESK[0], "height": DESK[1]})
    assert axe_violations(page) == []
    shoot(page, "desk-webhooks")
