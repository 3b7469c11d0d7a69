"""Keyboard shortcuts: editing, tagging, changing keys, and what is stored of that."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from app.models import VerdictKind
from app.services.projects import projects
from tests import factories
from tests.e2e import fortnight, world
from tests.e2e.conftest import DESK, Site, Visit, Visitor, any_size, axe_violations
from tests.e2e.test_judging import candidate, question, ready, saved, seen, stocked, verdicts, wait_for_verdicts

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


@any_size
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


@any_size
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


def press(page: Page, key: str, code: str = "", **more: Any) -> bool:
    """Press a key as a keyboard of another layout, or an input method, reports it. Whether the page used it."""
    return not page.evaluate(
        """init => (document.activeElement ?? document.body).dispatchEvent(
            new KeyboardEvent("keydown", { ...init, bubbles: true, cancelable: true }))""",
        {"key": key, "code": code, **more},
    )


SHIFT, COMPOSING, AFTER_COMPOSING = {"shiftKey": True}, {"isComposing": True}, {"keyCode": 229}
# Keys by layout, in the order in which they are pressed: what is typed where, its names, and the name that is kept.
NAMES: list[tuple[str, str, dict[str, Any], list[str], str]] = [
    ("'", "KeyW", {}, ["'", "w"], "'"),  # Hebrew or Dvorak: nothing was typed that tells
    ("a", "KeyQ", {}, ["a"], "a"),  # AZERTY
    (",", "KeyM", {}, [","], ","),
    ("&", "Digit1", {}, ["1"], "1"),
    ("1", "Digit1", SHIFT, ["1"], "1"),
    ("7", "Digit2", SHIFT, ["7"], "7"),  # Dvorak for programmers
    ("!", "Digit1", SHIFT, ["!"], "!"),
    ("?", "Comma", SHIFT, ["?"], "?"),
    ("É", "Digit2", {}, ["2"], "2"),
    ("é", "KeyW", {}, ["é"], "é"),  # Bépo
    ("ы", "KeyS", {}, ["ы", "s"], "s"),  # Cyrillic
    ("Ы", "KeyS", SHIFT, ["ы", "s"], "s"),
    ("ד", "KeyS", {}, ["ד", "s"], "s"),  # Hebrew
    ("'", "KeyW", {}, ["'", "w"], "w"),
    ("W", "KeyW", SHIFT, ["w"], "w"),
    ("/", "KeyQ", {}, ["/", "q"], "q"),
    ("لا", "KeyB", {}, ["لا", "b"], "b"),  # Arabic
    ("؟", "Slash", SHIFT, ["?"], "?"),
    ("١", "Digit1", {}, ["1"], "1"),
    ("ก", "KeyD", {}, ["ก", "d"], "d"),  # Thai
    ("İ", "Quote", {}, ["i"], "i"),  # Turkish
    ("0", "Numpad0", {}, ["0"], "0"),
    ("End", "Numpad1", {}, ["1"], "1"),
    ("Enter", "NumpadEnter", {}, ["Enter"], "Enter"),
    ("4", "", {}, ["4"], "4"),  # a keyboard on the screen
    ("Enter", "Enter", COMPOSING, [], ""),
    ("Enter", "Enter", AFTER_COMPOSING, [], ""),
    ("Process", "KeyS", AFTER_COMPOSING, [], ""),
]


@any_size
def test_keys_have_the_same_names_on_every_layout(visitor: Visitor, site: Site) -> None:
    page = visitor().page
    page.goto(f"{site.url}/sign-in")
    found = page.evaluate(
        """keys => keys.map(([key, code, more]) => {
            const event = () => new KeyboardEvent("keydown", { key, code, ...more });
            return [window.illume.keyNames(event()), window.illume.keyName(event())];
        })""",
        [list(one[:3]) for one in NAMES],
    )
    assert found == [[names, kept] for *_, names, kept in NAMES]
    # What fills a form by itself sends keys without any name.
    assert page.evaluate("window.illume.keyNames(new Event('keydown'))") == []


@any_size
def test_enter_that_ends_a_composition_submits_no_form(visitor: Visitor, site: Site) -> None:
    visit = visitor()
    page = visit.page
    page.goto(f"{site.url}/sign-in")
    page.evaluate(
        """window.addEventListener("submit", (event) => {
            event.preventDefault();
            window.sent = (window.sent ?? 0) + 1;
        }, { capture: true })"""
    )
    page.get_by_label("Password").fill("日本")
    page.get_by_label("Email").fill("a@example.org")
    keys = visit.context.new_cdp_session(page)
    enter = {"type": "keyDown", "key": "Enter", "code": "Enter", "text": "\r"}
    keys.send("Input.dispatchKeyEvent", enter | {"windowsVirtualKeyCode": 229})
    assert page.evaluate("window.sent") is None
    keys.send("Input.dispatchKeyEvent", enter | {"windowsVirtualKeyCode": 13})
    assert page.evaluate("window.sent") == 1


@any_size
def test_twelve_explanations_on_any_layout(visitor: Visitor, site: Site) -> None:
    with site.sessions.begin() as session:
        made = world.build(session, prompts=1)
        admin = factories.make_admin(session)
        project = projects.get_project(session, admin, made.slug)
        projects.update_project(session, admin, made.slug, {"skip_reasons": [f"reason {n}" for n in range(1, 12)]})
        prompt = factories.make_prompt(session, project, images=[factories.make_image(session)], question="which?")
        texts = [f"explanation {number} of twelve" for number in range(12)]
        factories.make_candidate_set(session, project, prompt=prompt, texts=texts, priority=9)
    page = visitor().sign_in(made.critic, to="/annotate/scenes")
    ready(page)
    assert question(page) == "which?"
    keys = page.locator(".candidate .key")
    assert [one.replace("\n", "") for one in keys.all_text_contents()] == [
        *map(str, range(1, 10)), "10A", "11C", "12G"
    ]  # fmt: skip
    for key, code, number in (
        ("&", "Digit1", 1),
        ("3", "Numpad3", 3),
        ("ф", "KeyA", 10),
        ("c", "KeyC", 11),
        ("פ", "KeyG", 12),
    ):
        assert press(page, key, code)
        expect(candidate(page, number)).to_be_checked()
    assert press(page, "c", "KeyC")
    expect(candidate(page, 11)).not_to_be_checked()

    # What is wrong with the eleventh: asked for by its letter.
    assert press(page, "е", "KeyT")
    expect(page.get_by_role("group", name="Which one has a problem? Press its number or letter.")).to_be_visible()
    assert press(page, "с", "KeyC")
    dialog = page.get_by_role("dialog", name="Explanation 11")
    assert press(page, "é", "Digit2")
    expect(dialog.get_by_role("checkbox").nth(1)).to_be_checked()
    assert not press(page, "Enter", "Enter", **AFTER_COMPOSING)
    expect(dialog).to_be_visible()
    assert press(page, "Enter", "NumpadEnter")
    expect(dialog).to_be_hidden()

    # A shortcut of one's own takes its letter from the cards, and is kept by its Latin letter.
    assert press(page, "?", "Comma", **SHIFT)
    sheet = page.get_by_role("dialog", name="Keyboard shortcuts")
    sheet.get_by_role("button", name="Change the shortcut: none fits").click()
    press(page, "ы", "KeyS")
    expect(sheet.get_by_role("alert")).to_contain_text("S is already used to “skip”")
    with page.expect_response(re.compile("/keys$")):
        assert press(page, "ф", "KeyA")
    expect(sheet.locator('[data-key="none"]')).to_have_text("A")
    page.keyboard.press("Escape")
    expect(keys.nth(9)).to_have_text("10C")

    # Reasons beyond the ninth, and Enter that only ends a composition.
    assert press(page, "ы", "KeyS")
    reasons = page.get_by_role("dialog", name="Why skip this one?")
    expect(reasons.get_by_role("button", name="reason 11")).to_have_text("Greason 11")
    assert not press(page, "Enter", "Enter", **COMPOSING)
    expect(reasons).to_be_visible()
    page.keyboard.press("Escape")
    assert press(page, "ц", "KeyW")
    own = page.get_by_label("In your own words")
    expect(own).to_be_focused()
    own.fill("日本")
    for composing in (COMPOSING, AFTER_COMPOSING):
        assert not press(page, "Enter", "Enter", ctrlKey=True, **composing)
        assert not press(page, "Escape", "Escape", **composing)
        expect(own).to_be_focused()
    assert verdicts(site) == []
    assert press(page, "Enter", "Enter", ctrlKey=True)
    [given] = wait_for_verdicts(page, site, 1)
    assert (given.kind, given.rationale) == (VerdictKind.picked, "日本")


@any_size
def test_comparing_and_practising_on_any_layout(visitor: Visitor, history: world.World, site: Site) -> None:
    page = visitor().sign_in("dan@example.org", to="/annotate/scenes/compare")
    left = page.locator(".blind-ask .numbers")
    count = int(left.inner_text())
    seen(page, ".blind")
    assert not press(page, "Process", "Digit1", **AFTER_COMPOSING)
    assert press(page, "&", "Digit1")  # AZERTY
    expect(left).to_have_text(str(count - 1))
    seen(page, ".blind")
    assert press(page, "0", "Numpad0")
    expect(left).to_have_text(str(count - 2))
    seen(page, ".blind")
    assert press(page, "г", "KeyU")  # Cyrillic
    expect(page.get_by_text("You are changing your last comparison.")).to_be_visible()

    with site.sessions.begin() as session:
        fortnight.ask_practice(session, history)
    page = visitor().sign_in(history.critic, to="/annotate/scenes/practice")
    assert press(page, "é", "Digit2")
    expect(candidate(page, 2)).to_be_checked()
    assert press(page, "1", "Numpad1")
    expect(candidate(page, 1)).to_be_checked()
    seen(page, ".practice")
    assert not press(page, "Enter", "Enter", **AFTER_COMPOSING)
    assert press(page, "Enter", "Enter")
    expect(page.get_by_role("status").filter(has_text=re.compile("All correct|Not quite"))).to_be_visible()
