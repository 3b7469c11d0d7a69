"""What a critic sees: zooming in place, several images, differences, folded texts, blur, changed instructions."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from app.models import Role, VerdictKind
from app.services.kernel.actors import Actor
from app.services.projects import projects
from tests import factories
from tests.e2e import world
from tests.e2e.conftest import Site, Visit, Visitor, any_size, axe_violations
from tests.e2e.test_judging import question, ready, verdicts, wait_for_verdicts

pytestmark = pytest.mark.browser
LONG = "because the kite in the upper left corner of the picture has a tail of many colours " * 6


@pytest.fixture
def two_images(site: Site) -> world.World:
    """A project with one prompt that has two images and long, similar candidates."""
    with site.sessions.begin() as session:
        made = world.build(session, prompts=1)
        project = projects.get_project(session, factories.make_admin(session), made.slug)
        images = [factories.make_image(session, factories.image_bytes(size=(640, 480))) for _ in range(2)]
        prompt = factories.make_prompt(session, project, images=images, question="which one is older?", answer="A")
        texts = ("the left one has a crack", "the left one has no crack", LONG)
        factories.make_candidate_set(session, project, prompt=prompt, texts=texts, priority=9)
    return made


def scale(page: Page, number: int) -> float:
    """The scale of an image in place."""
    found: float = page.evaluate(
        "n => new DOMMatrix(getComputedStyle(document.querySelectorAll('.picture img')[n]).transform).a", number
    )
    return found


@any_size
def test_the_original_is_loaded_to_zoom(visitor: Visitor, site: Site) -> None:
    with site.sessions.begin() as session:
        made = world.build(session, prompts=1)
        project = projects.get_project(session, factories.make_admin(session), made.slug)
        images = [factories.make_image(session, factories.image_bytes(size=(2400, 1800))) for _ in range(2)]
        prompt = factories.make_prompt(session, project, images=images, question="which one is larger?")
        factories.make_candidate_set(session, project, prompt=prompt, priority=9)
        first, second = (f"/api/v1/images/{image.sha256}" for image in images)
    visit = visitor()
    page = visit.page
    loaded: list[str] = []
    page.on("request", lambda request: loaded.append(request.url.removeprefix(site.url)))
    visit.sign_in(made.critic, to="/annotate/scenes")
    ready(page)
    assert question(page) == "which one is larger?"
    assert {url.split("?")[0] for url in loaded} >= {first, second}
    assert not {first, second} & set(loaded)

    page.keyboard.press("+")
    shown = page.locator(".picture img").first
    expect(shown).to_have_js_property("currentSrc", site.url + first)
    assert second not in loaded
    page.keyboard.press("z")
    page.keyboard.press("2")
    enlarged = page.locator(".zoom-pane img")
    expect(enlarged).to_have_js_property("currentSrc", site.url + second)
    # White lies behind the picture alone, which leaves a part of the pane free.
    expect(enlarged).to_have_attribute("style", re.compile("background-size"))
    width, height = enlarged.evaluate("e => e.style.backgroundSize.split(' ').map(parseFloat)")
    box = enlarged.bounding_box()
    assert box
    assert (width + 1) / (height + 1) == pytest.approx(2400 / 1800, abs=0.01)
    assert width <= box["width"]
    assert height <= box["height"]
    assert width * height < 0.9 * box["width"] * box["height"]
    expect(page.locator(".picture img").nth(1)).not_to_have_js_property("currentSrc", site.url + second)


@pytest.mark.parametrize("size", [(640, 400), (820, 600), (520, 560)], ids=["half", "large half", "upright"])
def test_the_picture_keeps_half_the_height_at_200_percent(
    visitor: Visitor, scenes: world.World, size: tuple[int, int]
) -> None:
    page = visitor().sign_in(scenes.critic, to="/annotate/scenes")
    ready(page)
    picture, desk = (page.locator(one).first.bounding_box() for one in (".picture", ".desk"))
    candidate = page.locator(".candidate").first.bounding_box()
    assert picture is not None
    assert desk is not None
    assert candidate is not None
    # Beside the candidates it has half of the window; above them, half of what the bars leave.
    assert picture["height"] >= (size[1] / 2 if size[0] > size[1] else desk["height"] / 2 - 16)
    assert candidate["y"] + candidate["height"] <= desk["y"] + desk["height"]
    assert candidate["width"] >= 200
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") == 0


GROWTH = """
async ([name, size]) => {
    const { comparableWords, diffWords } = await import("/static/judge/word_diff.js");
    const texts = {
        "the same words": (n) => ["x y ".repeat(n), "y x x ".repeat(n)],
        "marks before a letter": (n) => ["!".repeat(10 * n) + "a!", "b"],
        "one change in the middle": (n) => ["old ", ""].map((one) => "x y ".repeat(n) + one + "y z ".repeat(n)),
        "no spaces": (n) => ["红色的球，", "แมวสีดำ"].map((one) => one.repeat(n / 2)),
    };
    const [one, other] = texts[name](size);
    const began = performance.now();
    const found = diffWords(comparableWords(one), comparableWords(other));
    return [performance.now() - began, found && found.changed.length];
}
"""


@any_size
@pytest.mark.parametrize("name", ["the same words", "marks before a letter", "one change in the middle", "no spaces"])
def test_comparing_words_takes_no_longer_than_the_texts(visitor: Visitor, site: Site, name: str) -> None:
    # As in tests/app/services/imports/test_growth.py: quadratic work takes 16 times as long for four times the text.
    page = visitor().page
    page.goto(f"{site.url}/sign-in")
    short = min(page.evaluate(GROWTH, [name, 4000])[0] for _ in range(3))
    assert any(page.evaluate(GROWTH, [name, 16_000])[0] <= 9 * short + 250 for _ in range(3))


@any_size
def test_long_texts_are_compared_where_little_differs(visitor: Visitor, site: Site) -> None:
    page = visitor().page
    page.goto(f"{site.url}/sign-in")
    assert page.evaluate(GROWTH, ["one change in the middle", 2000])[1] == 1
    assert page.evaluate(GROWTH, ["the same words", 2000])[1] is None
    assert page.evaluate(GROWTH, ["the same words", 20])[1] is not None


MARKED = """
async ([one, other]) => {
    const { comparableWords, diffWords, markWords } = await import("/static/judge/word_diff.js");
    const place = document.createElement("p");
    markWords(place, one, new Set(diffWords(comparableWords(one), comparableWords(other)).changed));
    return [[...place.querySelectorAll("mark")].map((mark) => mark.textContent), place.textContent];
}
"""
# Two texts, and the words that are marked in the first of them.
DIFFERENCES = [
    ("红色的球在左边。", "红色的球在右边。", ["左边。"]),
    ("猫は赤い帽子です。", "猫は青い帽子です。", ["赤い"]),
    ("แมวสีดำ", "แมวสีแดง", ["ดำ"]),
    ("AI模型很好, it says", "AI模型很好, he says", ["it"]),
    ("लड़की खड़ी है", "लड़का खड़ी है", ["लड़की"]),
    ("so happy 😀 today", "so happy 😢 today", ["😀"]),
    ("the <i>old</i> bridge.", "the <i>new</i> Bridge", ["<i>old</i>"]),
    ("红色的球" * 200 + "左边" + "，在这里" * 200, "红色的球" * 200 + "，在这里" * 200, ["左边，"]),
]


@any_size
def test_words_that_differ_in_any_script(visitor: Visitor, site: Site) -> None:
    page = visitor().page
    page.goto(f"{site.url}/sign-in")
    found = [page.evaluate(MARKED, [one, other]) for one, other, _ in DIFFERENCES]
    assert found == [[marked, one] for one, _, marked in DIFFERENCES]


def test_several_images_differences_and_folds(visitor: Visitor, two_images: world.World, site: Site) -> None:
    visit = visitor()
    page = visit.sign_in(two_images.critic, to="/annotate/scenes")
    ready(page)
    if question(page) != "which one is older?":
        page.keyboard.press("0")
        expect(page.get_by_role("heading", name="which one is older?")).to_be_visible()
        ready(page)
    first, second = page.get_by_role("img", name=re.compile("^Image")).all()
    one, other = first.bounding_box(), second.bounding_box()
    assert one is not None
    assert other is not None
    assert one["x"] + one["width"] <= other["x"]  # side by side
    assert page.evaluate("document.documentElement.scrollHeight - window.innerHeight") == 0

    page.mouse.move(other["x"] + 20, other["y"] + 200)
    page.mouse.wheel(0, -400)
    expect(page.locator(".picture").nth(1)).to_have_class(re.compile("is-zoomed"))
    assert scale(page, 1) > 2
    assert scale(page, 0) == 1
    page.keyboard.press("+")
    assert scale(page, 0) == 1.5
    page.keyboard.press("-")

    page.keyboard.press("z")
    large = page.get_by_role("img", name=re.compile("Enlarged image, 1 of 2"))
    expect(large).to_be_visible()
    page.keyboard.press("2")
    expect(page.get_by_role("img", name=re.compile("Enlarged image, 2 of 2"))).to_be_visible()
    page.keyboard.press("z")
    expect(page.get_by_role("dialog")).to_be_hidden()

    page.keyboard.press("d")
    expect(page.get_by_role("button", name="Differences")).to_have_attribute("aria-pressed", "true")
    marked = {re.sub(r"\s+", " ", mark.inner_text()) for mark in page.locator(".candidate mark").all()}
    assert marked == {"a", "no"}
    page.keyboard.press("d")
    expect(page.locator(".candidate mark")).to_have_count(0)

    long = page.locator(".candidate .text", has_text="upper left corner")
    folded = long.bounding_box()
    page.keyboard.press("l")
    unfolded = long.bounding_box()
    assert folded is not None
    assert unfolded is not None
    assert unfolded["height"] > 1.4 * folded["height"]
    assert axe_violations(page) == []


@any_size
def test_blurred_images_and_new_instructions(visitor: Visitor, scenes: world.World, site: Site) -> None:
    boss = Actor(0, "system", Role.admin)
    with site.sessions.begin() as session:
        projects.update_project(session, boss, "scenes", {"blur_images": True})
    visit = visitor()
    page = visit.sign_in(scenes.critic, to="/annotate/scenes")
    judge = page.locator(".judge")
    expect(judge).to_have_attribute("data-state", "blurred")
    expect(judge).to_have_attribute("data-seen", "yes")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    messages = page.get_by_role("region", name="Messages")
    expect(messages).to_contain_text("Press B to see it first")
    assert verdicts(site) == []
    page.keyboard.press("b")
    ready(page)
    with site.sessions.begin() as session:
        projects.update_project(
            session, boss, "scenes", {"instructions": projects.INSTRUCTIONS + " Beware of <i>shadows</i>."}
        )
    page.keyboard.press("Enter")
    [given] = wait_for_verdicts(page, site, 1)
    assert given.kind is VerdictKind.picked
    expect(messages).to_contain_text("The instructions have changed")
    page.keyboard.press("i")
    panel = page.get_by_role("complementary", name="Instructions")
    expect(panel).to_contain_text("Version 2, updated")
    assert [one.inner_text() for one in panel.locator("mark").all()] == ["Beware", "of", "<i>shadows</i>."]
    assert axe_violations(page) == []
    page.keyboard.press("i")
    expect(panel).to_be_hidden()


@any_size
def test_time_counts_while_the_prompt_is_seen_only(critic: Visit, site: Site) -> None:
    page = critic.page
    ready(page)
    hide = """hidden => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    since: float = page.evaluate("performance.now() / 1000")
    page.evaluate(hide, True)
    page.wait_for_timeout(4000)
    page.evaluate(hide, False)
    until: float = page.evaluate("performance.now() / 1000")
    page.keyboard.press("0")
    [given] = wait_for_verdicts(page, site, 1)
    assert given.seconds is not None
    assert 0 < given.seconds < until - since - 0.5  # the time before was not counted


# The elements that show a text of several lines on one line.
COLLAPSED = """() => {
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const shown = node.textContent.includes("upper line\\n") && node.parentElement.checkVisibility();
        if (shown && !getComputedStyle(node.parentElement).whiteSpace.startsWith("pre")) found.push(node.textContent);
    }
    return found;
}"""


@any_size
def test_line_breaks_are_shown_everywhere(visitor: Visitor, site: Site) -> None:
    def lines(what: str) -> str:
        return f"{what} upper line\nlower line"

    with site.sessions.begin() as session:
        made = world.build(session, prompts=1)
        project = projects.get_project(session, factories.make_admin(session), made.slug)
        prompt = factories.make_prompt(
            session, project, images=[factories.make_image(session)], question=lines("question"), answer=lines("answer")
        )
        factories.make_candidate_set(session, project, prompt=prompt, texts=[lines("first"), "second"], priority=9)
        prompt_id = prompt.id
    visit = visitor()
    page = visit.sign_in(made.critic, to="/annotate/scenes")
    ready(page)
    assert question(page) == lines("question")
    assert lines("first") in page.locator(".candidate .text").all_inner_texts()
    assert page.evaluate(COLLAPSED) == []
    page.get_by_label("In your own words").fill(lines("own"))
    page.keyboard.press("Control+Enter")
    wait_for_verdicts(page, site, 1)
    visit.open("/annotate/scenes/history")
    expect(page.get_by_text("own upper line")).to_be_visible()
    assert page.evaluate(COLLAPSED) == []
    admin = visitor()
    admin.sign_in(made.admin)
    for path in (f"prompts/{prompt_id}", "prompts", f"prompts/{prompt_id}/gold", ""):
        admin.open(f"/admin/projects/scenes/{path}".rstrip("/"))
        expect(admin.page.get_by_text("question upper line").first).to_be_attached()
        assert admin.page.evaluate(COLLAPSED) == [], path
