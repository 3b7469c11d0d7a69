"""The critic's day on the page: pace, what their picks trained, and a break."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.e2e import world
from tests.e2e.conftest import Visitor, any_size, axe_violations
from tests.e2e.test_judging import ready

pytestmark = pytest.mark.browser
MINUTE = 60_000


@any_size
def test_pace_credits_and_a_break(visitor: Visitor, history: world.World) -> None:
    visit = visitor()
    page = visit.sign_in(history.critic, to="/annotate")
    page.clock.install()
    page.goto(f"{visit.site.url}/annotate/scenes")
    ready(page)
    messages = page.get_by_role("region", name="Messages")
    page.clock.run_for(2000)
    expect(messages).to_contain_text("went into training round 3: no clear difference, +0.3 ROUGE-L")
    toast = messages.locator(".toast").filter(has_text="went into training round 3")
    expect(toast).not_to_have_class(re.compile("good"))
    page.get_by_role("button", name="s each").click()
    dialog = page.get_by_role("dialog", name="Your day")
    expect(dialog.get_by_role("listitem").last).to_contain_text(
        "went into training round 1: better, +6.1 ROUGE-L version 1"
    )
    expect(dialog.get_by_role("definition").first).to_contain_text("verdicts")
    assert axe_violations(page) == []
    dialog.get_by_label("Remind me to take a break").select_option(label="After 25 minutes")
    page.keyboard.press("Escape")
    for _ in range(7):
        page.clock.fast_forward(4 * MINUTE)
        page.keyboard.press("Shift")
    page.clock.run_for(MINUTE // 2)
    expect(messages).to_contain_text("You have been judging for 25 minutes")

    page.reload()
    ready(page)
    expect(page.get_by_label("Remind me to take a break", exact=False)).to_have_value("25")
    page.clock.run_for(2000)
    expect(messages).not_to_contain_text("went into training round 3")
