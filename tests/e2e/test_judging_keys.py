"""Keyboard shortcuts: editing, tagging, changing keys, and what is stored of that."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from app.models import VerdictKind
from tests.e2e.conftest import DESK, Site, Visit, Visitor, any_size, axe_violations
from tests.e2e.test_judging import candidate, question, ready, saved, stocked, verdicts, wait_for_verdicts

pytestmark = pytest.mark.browser


def texts(page: Page) -> list[str]:
    """The candidates on the page."""
    return page.locator(".candidate .text").all_inner_texts()


def test_a_candidate_is_edited_into_own_words(critic: Visit, site: Site) -> None:
    page = critic.page
    ready(page)
    wanted = texts(page)[1]
    page.keyboard.press("e")
    expect(page.get_by_role("group", name="Edit which one? Press its number.")).to_be_visible()
    page.keyboard.press("2")
    own = page.get_by_role("textbox", name="In your own words")
    expect(own).to_have_value(wanted)
    expect(own).to_be_focused()
    expect(page.get_by_text("edited from 2")).to_be_visible()
    page.keyboard.type(" u0 s f")  # shortcuts do nothing while typing
    page.reload()  # the draft survives
    ready(page)
    expect(own).to_have_value(f"{wanted} u0 s f")
    expect(page.get_by_text("edited from 2")).to_be_visible()
    own.press("Control+Enter")
    [given] = wait_for_verdicts(page, site, 1)
    assert given.rationale == f"{wanted} u0 s f"
    assert given.edited_from == given.shown[1]

    # The picked candidate is edited. Left unchanged, it is a pick, not an edit.
    ready(page)
    page.keyboard.press("1")
    page.keyboard.press("e")
    expect(own).to_be_focused()
    expect(candidate(page, 1)).not_to_be_checked()
    page.keyboard.press("Control+Enter")
    last = wait_for_verdicts(page, site, 2)[-1]
    assert (last.kind, last.rationale, last.edited_from) == (VerdictKind.picked, None, None)


def test_what_a_candidate_lacks_is_tagged_and_can_be_changed(critic: Visit, site: Site) -> None:
    page = critic.page
    ready(page)
    page.keyboard.press("t")
    page.keyboard.press("3")
    dialog = page.get_by_role("dialog", name="Explanation 3")
    expect(dialog).to_contain_text(texts(page)[2])
    assert axe_violations(page) == []
    page.keyboard.press("1")
    page.keyboard.press("4")
    expect(dialog.get_by_label("contradicts the image")).to_be_checked()
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator(".lacks").nth(2)).to_have_text("contradicts the imagebadly written")
    page.keyboard.press("0")
    [given] = wait_for_verdicts(page, site, 1)
    assert given.tags == {str(given.shown[2]): ["contradicts the image", "badly written"]}
    page.keyboard.press("u")
    expect(page.locator(".lacks").nth(2)).to_contain_text("badly written")
    ready(page)
    page.get_by_role("button", name="Explanation 3: say what's wrong with it").click()
    dialog.get_by_label("badly written").uncheck()
    dialog.get_by_role("button", name="Done").click()
    page.keyboard.press("0")
    expect(page.locator("#save-state")).to_have_text("Saved")
    [given] = verdicts(site)
    assert given.tags == {str(given.shown[2]): ["contradicts the image"]}


def test_keys_of_ones_own(critic: Visit, site: Site, visitor: Visitor, size: tuple[int, int]) -> None:
    page = critic.page
    ready(page)
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keyboard shortcuts")
    assert axe_violations(page) == []
    change = dialog.get_by_role("button", name="Change the shortcut: none fits")
    problem = dialog.get_by_role("alert")
    change.click()
    page.keyboard.press("s")
    expect(problem).to_contain_text("S is already used to “skip”")
    page.keyboard.press("4")
    expect(problem).to_contain_text("4 cannot be used")
    with page.expect_response(re.compile("/keys$")):
        page.keyboard.press("x")
    expect(problem).to_have_text("")
    change.click()
    page.keyboard.press("Escape")
    expect(dialog).to_be_visible()
    elsewhere = visitor().sign_in("critic@example.org", to="/annotate/scenes")
    expect(elsewhere.get_by_role("button", name=re.compile("^None fits"))).to_be_visible()
    expect(elsewhere.locator('.actions [data-key="none"]')).to_have_text("X")
    page.keyboard.press("Escape")
    expect(page.locator('.actions [data-key="none"]')).to_have_text("X")
    if size == DESK:  # on a phone buttons do not show their keys
        expect(page.get_by_role("button", name="None fits X")).to_be_visible()

    page.reload()
    ready(page)
    before = question(page)
    page.keyboard.press("0")
    assert question(page) == before
    page.keyboard.press("x")
    [given] = wait_for_verdicts(page, site, 1)
    assert given.kind is VerdictKind.none_fit

    ready(page)
    page.keyboard.press("?")
    with page.expect_response(re.compile("/keys$")):
        dialog.get_by_role("button", name="Reset to defaults").click()
    page.keyboard.press("Escape")
    page.keyboard.press("0")
    wait_for_verdicts(page, site, 2)
    elsewhere.reload()
    expect(elsewhere.locator('.actions [data-key="none"]')).to_have_text("0")


@any_size
def test_a_double_press_is_one_verdict(critic: Visit, site: Site) -> None:
    page = critic.page
    stocked(page)
    page.keyboard.press("0")
    page.keyboard.press("0")  # meant for the first prompt: the second one has not been seen
    wait_for_verdicts(page, site, 1)
    stocked(page)
    page.get_by_role("button", name=re.compile("^None fits")).dblclick()
    wait_for_verdicts(page, site, 2)
    stocked(page)
    page.keyboard.down("0")
    for _ in range(20):  # held down for longer than it takes to see the next prompt
        page.wait_for_timeout(30)
        page.keyboard.down("0")
    page.keyboard.up("0")
    wait_for_verdicts(page, site, 3)
    expect(saved(page)).to_have_text("Saved")
    assert len(verdicts(site)) == 3


@any_size
def test_a_double_click_on_a_reason_picks_nothing_on_the_next_prompt(critic: Visit, site: Site) -> None:
    page = critic.page
    stocked(page)
    page.keyboard.press("s")
    reason = page.get_by_role("dialog", name="Why skip this one?").get_by_role("button").first
    box = reason.bounding_box()
    assert box is not None
    # The dialog stands over the candidates of a narrow window; here the second click is made to hit one everywhere.
    page.mouse.click(box["x"] + 8, box["y"] + 8)
    expect(page.get_by_role("dialog")).to_be_hidden()
    pick = page.locator(".candidate").first
    pick.evaluate("(one) => one.dispatchEvent(new MouseEvent('click', { detail: 2, bubbles: true, cancelable: true }))")
    expect(candidate(page, 1)).not_to_be_checked()
    [given] = wait_for_verdicts(page, site, 1)
    assert given.kind is VerdictKind.skipped
    ready(page)
    pick.click()
    expect(candidate(page, 1)).to_be_checked()


@any_size
def test_enter_held_on_a_button_is_one_verdict(critic: Visit, site: Site) -> None:
    page = critic.page
    stocked(page)
    page.get_by_role("button", name=re.compile("^None fits")).focus()
    page.keyboard.down("Enter")
    wait_for_verdicts(page, site, 1)
    ready(page)
    page.keyboard.down("Enter")
    page.keyboard.down("Enter")
    page.keyboard.up("Enter")
    before = question(page)
    page.wait_for_timeout(300)
    assert question(page) == before
    assert len(verdicts(site)) == 1
