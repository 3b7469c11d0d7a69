"""Every page: accessible, small, compliant with the CSP, at a desktop's and a phone's size, in light and dark."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal

import pytest
from playwright.sync_api import Page, expect

from app.languages import languages
from tests.e2e import fortnight, world
from tests.e2e.conftest import DESK, PHONE, Site, Visit, Visitor, any_size, axe_violations, own_sizes

pytestmark = pytest.mark.browser

CRITICS = ("/annotate", "/annotate/scenes", "/annotate/scenes/history", "/annotate/scenes/compare")
ADMINS = (
    "/admin",
    "/admin/projects/scenes",
    "/admin/projects/scenes/first-steps",
    "/admin/projects/scenes/rounds",
    "/admin/projects/scenes/rounds/preview",
    "/admin/projects/scenes/rounds/3",
    "/admin/projects/scenes/rounds/9",
    "/admin/projects/scenes/rounds/3/snapshot",
    "/admin/projects/scenes/versions",
    "/admin/projects/scenes/compare",
    "/admin/projects/scenes/comparisons",
    "/admin/projects/scenes/comparisons/1",
    "/admin/projects/scenes/prompts",
    "/admin/projects/scenes/prompts/new",
    "/admin/projects/scenes/gold",
    "/admin/projects/scenes/critics",
    "/admin/projects/scenes/critics/2",
    "/admin/projects/scenes/export",
    "/admin/projects/scenes/export?format=preference",
    "/admin/projects/scenes/settings",
    "/admin/projects/scenes/imports",
    "/admin/projects/scenes/imports/1",
    "/admin/projects/scenes/imports/2",
    "/admin/projects/scenes/imports/3",
    "/admin/projects/scenes/webhooks",
    "/admin/projects/scenes/review",
    "/admin/new-project",
    "/admin/users",
    "/admin/users/1",
    "/admin/audit",
    "/admin/engines",
    "/admin/erasures",
    "/admin/erase/users/3",
    "/admin/erase/projects/scenes",
)
MOST_BYTES = 150_000
LEAST_FILES = 5  # the page, its styles and scripts: with fewer, the measurement failed


def faults(page: Page) -> list[str]:
    """The problems of the page: violated accessibility rules, or horizontal scrolling."""
    found = axe_violations(page)
    width = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    return [*found, *([f"scrolls sideways: {width}"] if width[0] > width[1] else [])]


@own_sizes
def test_the_judging_page_is_one_screen(visitor: Visitor, scenes: world.World) -> None:
    for size in (DESK, PHONE):
        visit = visitor(size)
        page = visit.sign_in(scenes.critic, to="/annotate/scenes")
        expect(page.locator(".judge")).to_have_attribute("data-state", "judging")
        assert page.evaluate("document.documentElement.scrollHeight") == size[1]
        assert page.get_by_role("button", name="Submit").is_visible()


Look = tuple[Literal["light", "dark"], tuple[int, int]]
Looks = Callable[[Page], Iterator[str]]


def show(page: Page, looks: Sequence[Look]) -> Iterator[str]:
    """Show the page in these colours and at these sizes. Yields the name of each variant."""
    for scheme, size in looks:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": size[0], "height": size[1]})
        yield f"{scheme}, {size[0]} wide"


ACROSS: tuple[Look, ...] = (("light", DESK), ("dark", PHONE))
ALL: tuple[Look, ...] = (("light", DESK), ("light", PHONE), ("dark", DESK), ("dark", PHONE))
any_looks = pytest.mark.parametrize(
    "looks",
    [
        pytest.param(partial(show, looks=ACROSS), id="across"),
        pytest.param(partial(show, looks=ALL), id="all", marks=pytest.mark.slow),
    ],
)
"""For tests of pages in both colours and at both sizes; each colour at each size is for the slow tests."""


def weight(page: Page) -> dict[str, int]:
    """The transferred bytes of the first load, by address and without images."""
    # What the browser has from another page counts as it did there; 300 bytes stand for an answer's headers.
    found: dict[str, int] = page.evaluate(
        """() => Object.fromEntries(
            [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
                .filter((one) => !one.name.includes("/api/v1/images/"))
                .map((one) => [one.name, one.encodedBodySize + 300]))"""
    )
    return found


def assert_good(visit: Visit, paths: Iterable[str], looks: Looks) -> None:
    """Pages are small on first load, accessible, and no wider than the screen."""
    wrong: dict[str, object] = {}
    for path in paths:
        page = visit.open(path)
        if path == "/annotate/scenes":
            expect(page.locator(".judge")).to_have_attribute("data-state", "judging")
        sizes = weight(page)
        if sum(sizes.values()) >= MOST_BYTES or len(sizes) < LEAST_FILES:
            wrong[f"{path}: bytes"] = sizes
        for name in looks(page):
            if found := faults(page):
                wrong[f"{path}: {name}"] = found
    assert not wrong, json.dumps(wrong, indent=1)


@own_sizes
@any_looks
def test_pages_of_critics_are_accessible_and_light(
    visitor: Visitor, history: world.World, site: Site, looks: Looks
) -> None:
    assert_good(visitor(reduced_motion="reduce"), ("/sign-in",), looks)
    critic = visitor(reduced_motion="reduce")  # a colour on its way to another is neither
    critic.sign_in(history.critic)
    assert_good(critic, CRITICS, looks)
    with site.sessions.begin() as session:
        fortnight.ask_practice(session, history)
    assert_good(critic, ("/annotate/scenes/practice",), looks)
    critic.watch.allow += ["403", "404"]
    assert_good(critic, ("/admin/users", "/nothing"), looks)


@own_sizes
@any_looks
def test_pages_of_admins_are_accessible_and_light(
    visitor: Visitor, history: world.World, site: Site, looks: Looks
) -> None:
    with site.sessions.begin() as session:
        fortnight.add_fortnight(session, history)
        world.add_running_round(session, history)
    admin = visitor(reduced_motion="reduce")
    admin.sign_in(history.admin)
    prompt = f"/admin/projects/scenes/prompts/{history.prompt_ids[0]}"
    assert_good(admin, (*ADMINS, prompt, f"{prompt}/gold"), looks)


def faults_in(visit: Visit, language: str, paths: Iterable[str], looks: Looks) -> dict[str, list[str]]:
    """The problems of pages in one of the languages, by path and look."""
    visit.context.set_extra_http_headers({"Accept-Language": language})
    wrong: dict[str, list[str]] = {}
    for path in paths:
        page = visit.open(path)
        expect(page.locator("html")).to_have_attribute("lang", language)
        if path == "/annotate/scenes":
            expect(page.locator(".judge")).to_have_attribute("data-state", "judging")
        wrong |= {f"{language} {path}: {name}": found for name in looks(page) if (found := faults(page))}
    return wrong


LANGUAGES = sorted(one.tag for one in languages().values() if one.tag != "en")


@own_sizes
def test_pages_are_accessible_in_every_language(visitor: Visitor, history: world.World) -> None:
    """The page with most words of its own, and one with tables and charts; the slow test has all of them."""
    visit = visitor(reduced_motion="reduce")
    visit.sign_in(history.admin)
    wrong: dict[str, list[str]] = {}
    for language in LANGUAGES:
        wrong |= faults_in(visit, language, ("/annotate/scenes",), partial(show, looks=ACROSS[1:]))
        wrong |= faults_in(visit, language, ("/admin/projects/scenes/rounds/3",), partial(show, looks=ACROSS[:1]))
    assert not wrong, json.dumps(wrong, indent=1)


@own_sizes
@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_is_accessible_in_every_language(
    visitor: Visitor, history: world.World, site: Site, language: str
) -> None:
    with site.sessions.begin() as session:
        fortnight.add_fortnight(session, history)
        world.add_running_round(session, history)
    visit = visitor(reduced_motion="reduce")
    wrong = faults_in(visit, language, ("/sign-in",), partial(show, looks=ALL))
    visit.context.set_extra_http_headers({})
    visit.sign_in(history.admin)
    prompt = f"/admin/projects/scenes/prompts/{history.prompt_ids[0]}"
    paths = (*CRITICS, *ADMINS, prompt, f"{prompt}/gold")
    wrong |= faults_in(visit, language, paths, partial(show, looks=ALL))
    assert not wrong, json.dumps(wrong, indent=1)


def table_parts(page: Page) -> dict[str, Counter[str]]:
    """The roles of the parts of tables that are cards on a phone: as intended, and as Chromium reports them."""
    meant = page.evaluate(
        """() => [...document.querySelectorAll(".stacks, .stacks *")].map((one) => ({
            table: "table", tr: "row", td: "cell", th: one.scope === "row" ? "rowheader" : "columnheader",
        })[one.localName]).filter(Boolean)"""
    )
    # What is folded is unfolded, and tables that stay tables are not counted.
    page.evaluate(
        """() => {
            for (const one of document.querySelectorAll("main details")) one.open = true;
            for (const one of document.querySelectorAll("table:not(.stacks)")) one.setAttribute("role", "none");
        }"""
    )
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    kinds = {"table", "row", "cell", "rowheader", "columnheader"}
    told = [node["role"]["value"] for node in nodes if not node["ignored"] and node["role"]["value"] in kinds]
    return {"meant": Counter(meant), "told": Counter(told)}


@own_sizes
def test_cards_on_a_phone_are_tables_to_who_cannot_see_them(visitor: Visitor, history: world.World, site: Site) -> None:
    with site.sessions.begin() as session:
        fortnight.add_fortnight(session, history)
        world.add_running_round(session, history)
    visit = visitor(PHONE)
    visit.sign_in(history.admin)
    seen = 0
    for path in (*ADMINS, f"/admin/projects/scenes/prompts/{history.prompt_ids[0]}", "/annotate/scenes/history"):
        page = visit.open(path)
        if not page.locator(".stacks").count():
            continue
        seen += 1
        assert page.locator(".stacks tr").last.evaluate("one => getComputedStyle(one).display") == "flex"
        parts = table_parts(page)
        assert parts["told"] == parts["meant"], path
        assert parts["meant"]["row"] >= 2
    assert seen >= 12
    page = visit.open("/admin/projects/scenes/versions")
    row = page.get_by_role("row", name=re.compile("^Version 2 active"))
    expect(row.get_by_role("rowheader")).to_contain_text("Version 2")
    expect(row.get_by_role("cell", name=re.compile("^Answer accuracy 8"))).to_be_visible()


def test_dialogs_of_the_judging_page_are_accessible(critic: Visit) -> None:
    page = critic.page
    expect(page.locator(".judge")).to_have_attribute("data-state", "judging")
    expect(page.locator(".judge")).to_have_attribute("data-seen", "yes")
    wrong = {}
    for key in ("s", "f", "?", "z"):
        page.keyboard.press(key)
        expect(page.get_by_role("dialog")).to_be_visible()
        wrong[key] = axe_violations(page)
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_be_hidden()
    assert not any(wrong.values()), wrong


@any_size
def test_the_theme_is_chosen_and_kept(critic: Visit) -> None:
    page = critic.page
    page.get_by_role("button", name="Theme: as the system").click()
    page.get_by_role("button", name="Theme: light").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()


@own_sizes
def test_the_narrowest_and_the_widest(visitor: Visitor, history: world.World) -> None:
    visit = visitor(reduced_motion="reduce")
    visit.sign_in(history.admin)
    project = "/admin/projects/scenes"
    admins = ("/rounds", "/rounds/3", "/rounds/3/snapshot", "/compare", "/settings")
    paths = ("/annotate/scenes", "/annotate/scenes/history", "/admin", *(project + path for path in admins))
    for size in ((360, 740), (3840, 2160)):
        visit.page.set_viewport_size({"width": size[0], "height": size[1]})
        for path in paths:
            page = visit.open(path)
            width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert width[0] <= width[1], (path, size)
            # Text keeps a length that can be read: nothing is stretched over a wall of pixels.
            widest = page.evaluate(
                "Math.max(0, ...[...document.querySelectorAll('.card')].map((one) => one.offsetWidth))"
            )
            assert widest <= 2400, (path, widest)


@any_size
def test_paper_is_light_and_has_no_buttons(visitor: Visitor, history: world.World) -> None:
    visit = visitor(color_scheme="dark")
    page = visit.sign_in(history.admin, to="/admin/projects/scenes/rounds/3")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 28, 31)"
    expect(page.get_by_role("navigation", name="Project")).to_be_hidden()
    expect(page.get_by_role("button", name="Run again")).to_be_hidden()
    expect(page.get_by_role("img", name=re.compile("^Loss: loss from"))).to_be_visible()


@any_size
def test_by_keyboard_alone(visitor: Visitor, history: world.World) -> None:
    page = visitor().open("/sign-in?next=/admin/projects/scenes")
    expect(page.get_by_label("Email")).to_be_focused()
    page.keyboard.type(history.admin)
    page.keyboard.press("Tab")
    page.keyboard.type(world.PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Scenes", level=1)).to_be_visible()
    page.wait_for_load_state()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("#main").get_by_role("link", name="Judge", exact=True)).to_be_focused()
    page.get_by_role("link", name="Start a training round…").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Start a training round")
    expect(dialog.get_by_role("button", name="Start training")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("link", name="Start a training round…")).to_be_focused()
    page.get_by_label(f"Account {history.admin}").press("Enter")
    for name in ("Your account", "REST API"):
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name=name)).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Sign out", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
