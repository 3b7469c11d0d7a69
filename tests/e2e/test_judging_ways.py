"""More of the critic's page: flags, practice, searching verdicts, breaks, touch, and a layout that does not shift."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select

from app.models import Pick, Prompt, PromptState, Review, ReviewState, Verdict, VerdictKind
from app.services.judging import decide
from app.services.kernel.actors import SYSTEM
from app.services.projects import projects
from tests.e2e import fortnight, world
from tests.e2e.conftest import Site, Visit, Visitor, any_size
from tests.e2e.test_judging import candidate, question, ready, seen, verdicts, wait_for_verdicts
from tests.e2e.test_judging_seeing import scale
from tests.e2e.test_pages import faults

pytestmark = pytest.mark.browser
# All layout shifts are added up, also those right after a key press, which the browser's own score ignores.
COUNT_SHIFTS = """window.shifts = [];
new PerformanceObserver((list) => {
    for (const one of list.getEntries()) {
        window.shifts.push([one.value, one.sources.map((source) => source.node?.className ?? source.node?.nodeName)]);
    }
}).observe({ type: "layout-shift", buffered: true });"""


@any_size
def test_a_flag_has_a_reason_by_one_key_and_holds_the_prompt(critic: Visit, site: Site) -> None:
    page = critic.page
    ready(page)
    flagged = question(page)
    page.keyboard.press("f")
    dialog = page.get_by_role("dialog", name="What's wrong with this prompt?")
    expect(dialog).to_contain_text("put on hold for everyone")
    reason = dialog.get_by_role("button").first.inner_text().split("\n")[-1]
    page.keyboard.press("1")
    expect(dialog).to_be_hidden()
    [given] = wait_for_verdicts(page, site, 1)
    assert (given.kind, given.reason) == (VerdictKind.flagged, reason)
    ready(page)
    assert question(page) != flagged
    with site.sessions() as session:
        assert session.get_one(Prompt, given.prompt_id).state is PromptState.held


@any_size
def test_a_returned_verdict_is_kept_or_changed(critic: Visit, site: Site) -> None:
    page = critic.page
    for count in (1, 2):
        ready(page)
        page.keyboard.press("f")
        page.keyboard.press("1")
        wait_for_verdicts(page, site, count)
    with site.sessions.begin() as session:
        for verdict in session.scalars(select(Verdict).order_by(Verdict.id)):
            review = session.scalars(select(Review.id).where(Review.verdict_id == verdict.id)).one()
            decide.send_back(session, SYSTEM, review, verdict.id, "Is it broken,\nor only dark?")
    page.reload()
    page.get_by_role("link", name=re.compile(r"^Returned.* \(2\)")).click()
    note = page.get_by_text("A reviewer asked you to take another look")
    expect(note).to_contain_text("only dark?")
    ready(page)
    assert faults(page) == []
    page.get_by_role("button", name="Keep my verdict").click()
    expect(page.get_by_role("region", name="Messages")).to_contain_text("Verdict kept")
    expect(note).to_be_hidden()
    page.get_by_role("link", name=re.compile(r"^Returned.* \(1\)")).click()
    expect(note).to_be_visible()
    ready(page)
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name=re.compile("^Returned"))).to_have_count(0)
    with site.sessions() as session:
        found = session.scalars(select(Verdict).where(Verdict.current).order_by(Verdict.id)).all()
        states = set(session.scalars(select(Review.state)))
    assert [one.kind for one in found] == [VerdictKind.flagged, VerdictKind.picked]
    assert states == {ReviewState.open, ReviewState.dismissed}


@any_size
def test_practice_comes_first_and_tells_what_is_right(
    visitor: Visitor, history: world.World, site: Site, size: tuple[int, int]
) -> None:
    with site.sessions.begin() as session:
        fortnight.ask_practice(session, history)
        before = len(session.scalars(select(Verdict.id)).all())
    page = visitor(size).sign_in(history.critic, to="/annotate/scenes")
    expect(page.get_by_role("heading", name="A short practice first")).to_be_visible()
    page.get_by_role("link", name="Start practice").click()
    expect(page.get_by_role("heading", name="Practice", level=1)).to_be_visible()
    expect(page.get_by_text("2 prompts left")).to_be_visible()
    picks = page.get_by_role("checkbox")
    wrong = page.locator(".candidate", has_text="because the answer is")
    wrong.click()
    expect(wrong.get_by_role("checkbox")).to_be_checked()
    seen(page, ".practice")
    page.get_by_role("button", name="Check my picks").dblclick()  # the second click does not go on
    expect(page.get_by_role("status")).to_contain_text("Not quite. Look at the highlighted ones. An explanation names")
    expect(page.locator(".candidate", has_text="you said otherwise").first).to_be_visible()
    expect(page.locator(".candidate", has_text="because the answer is")).to_contain_text("does not fit")
    seen(page, ".practice")
    page.keyboard.press("Enter")
    expect(page.get_by_text("1 prompt left")).to_be_visible()
    for number in range(picks.count()):
        if "because the answer is" not in page.locator(".candidate").nth(number).inner_text():
            page.keyboard.press(str(number + 1))
    seen(page, ".practice")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("All correct.")
    seen(page, ".practice")
    page.get_by_role("link", name="Start judging").click()
    ready(page)
    with site.sessions() as session:  # practice stores no verdict
        assert len(session.scalars(select(Verdict.id)).all()) == before


@any_size
def test_ones_own_verdicts_are_found_again(
    visitor: Visitor, history: world.World, site: Site, size: tuple[int, int]
) -> None:
    page = visitor(size).sign_in(history.critic, to="/annotate/scenes/history")
    rows = page.get_by_role("table").get_by_role("row")
    before = rows.count()
    word = page.get_by_role("rowheader").first.inner_text().split()[-2].strip("?")
    page.get_by_label("Search", exact=True).fill(word)
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_label("Search", exact=True)).to_have_value(word)
    assert 1 < rows.count() <= before
    for text in page.get_by_role("rowheader").all_inner_texts():
        row = page.get_by_role("row").filter(has_text=text)
        expect(row.first).to_contain_text(word)
    page.get_by_role("link", name="Show all").click()
    page.get_by_label("Verdict", exact=True).select_option("none_fit")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("cell", name=re.compile("none fits")).first).to_be_visible()
    assert rows.count() - 1 == page.get_by_text("none fits", exact=True).locator("visible=true").count()
    page.get_by_label("Search", exact=True).fill("no such words anywhere")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("heading", name="No matches")).to_be_visible()


@any_size
def test_a_reminder_that_is_turned_off_stays_off(critic: Visit) -> None:
    page = critic.page
    page.clock.install()
    page.reload()
    ready(page)
    page.get_by_role("button", name="Your day").click()
    page.get_by_label("Remind me to take a break").select_option(label="Never")
    page.keyboard.press("Escape")
    page.reload()
    ready(page)
    for _ in range(30):
        page.clock.fast_forward(4 * 60_000)
        page.keyboard.press("Shift")
    page.clock.run_for(30_000)
    expect(page.get_by_role("region", name="Messages")).not_to_contain_text("You have been judging for")
    expect(page.get_by_label("Remind me to take a break")).to_have_value("0")


def test_dragging_moves_a_zoomed_image_and_opens_nothing(critic: Visit) -> None:
    page = critic.page
    ready(page)
    box = page.locator(".picture").bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.wheel(0, -400)
    expect(page.locator(".picture")).to_have_class(re.compile("is-zoomed"))
    place = "new DOMMatrix(getComputedStyle(document.querySelector('.picture img')).transform).e"
    before = page.evaluate(place)
    page.mouse.down()
    page.mouse.move(middle[0] + 40, middle[1] + 10, steps=4)
    page.mouse.up()
    assert page.evaluate(place) == pytest.approx(before + 40, abs=2)
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_two_fingers_zoom(visitor: Visitor, scenes: world.World, size: tuple[int, int]) -> None:
    visit = visitor(size, has_touch=True)
    page = visit.sign_in(scenes.critic, to="/annotate/scenes")
    ready(page)
    box = page.locator(".picture").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    fingers = visit.context.new_cdp_session(page)

    def touch(kind: str, apart: float) -> None:
        points = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}] if apart else []
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 20)
    for apart in (25, 30, 40, 50, 60):
        touch("touchMove", apart)
    touch("touchEnd", 0)
    expect(page.locator(".picture")).to_have_class(re.compile("is-zoomed"))
    assert scale(page, 0) == pytest.approx(3, rel=0.2)
    assert page.evaluate("visualViewport.scale") == 1  # the image was zoomed, not the page


def test_nothing_jumps_from_prompt_to_prompt(critic: Visit, site: Site) -> None:
    page = critic.page
    critic.context.add_init_script(COUNT_SHIFTS)
    page.reload()
    ready(page)
    page.wait_for_timeout(300)
    assert sum(one[0] for one in page.evaluate("window.shifts")) < 0.01, page.evaluate("window.shifts")

    def places(page: Page) -> list[object]:
        return [page.locator(part).first.bounding_box() for part in (".actions", ".seeing", ".picture", "#question")]

    for count in (1, 2, 3):
        ready(page)
        before = places(page)[:2]
        page.keyboard.press("1")
        expect(candidate(page, 1)).to_be_checked()
        assert places(page)[:2] == before
        page.keyboard.press("Enter")
        wait_for_verdicts(page, site, count)
        ready(page)
        assert places(page)[:2] == before
        settled = places(page)
        page.wait_for_timeout(200)
        assert places(page) == settled


@any_size
def test_a_single_pick_is_a_verdict_where_the_project_says_so(critic: Visit, site: Site) -> None:
    page = critic.page
    with site.sessions.begin() as session:
        projects.update_project(session, SYSTEM, "scenes", {"submit_on_pick": True})
    page.reload()
    ready(page)
    page.keyboard.press("2")
    page.keyboard.press("2")  # the next prompt has not been seen: this is no verdict on it
    [given] = wait_for_verdicts(page, site, 1)
    assert not given.exhaustive
    with site.sessions() as session:
        assert session.scalars(select(Pick.candidate_id)).all() == [given.shown[1]]
    page.reload()
    ready(page)
    for number in (1, 2):
        if candidate(page, number).is_checked():
            candidate(page, number).locator("..").click()
    page.locator(".candidate").nth(2).click()
    wait_for_verdicts(page, site, 2)
    ready(page)
    page.get_by_label("In your own words").fill("my own, and a pick")
    page.locator(".candidate").first.click()
    assert len(verdicts(site)) == 2
    page.get_by_role("button", name="Submit").click()
    assert [one.exhaustive for one in wait_for_verdicts(page, site, 3)] == [False, False, True]


def test_submit_is_within_reach_of_the_candidates(critic: Visit) -> None:
    page = critic.page
    ready(page)
    submit = page.get_by_role("button", name="Submit").bounding_box()
    assert submit is not None
    for row in page.locator(".candidate").all():
        box = row.bounding_box()
        assert box is not None
        assert abs(box["x"] + box["width"] / 2 - submit["x"] - submit["width"] / 2) < 400


def test_instructions_open_on_the_first_visit_only(visitor: Visitor, scenes: world.World) -> None:
    visit = visitor()
    page = visit.sign_in(scenes.critic, to="/annotate")  # no judging page yet
    visit.open("/annotate/scenes")
    ready(page)
    panel = page.get_by_role("complementary", name="Instructions")
    expect(panel).to_be_visible()
    assert faults(page) == []
    page.get_by_role("button", name="Close the instructions").click()
    expect(panel).to_be_hidden()
    page.reload()
    ready(page)
    expect(panel).to_be_hidden()


def test_messages_do_not_cover_the_field_that_is_typed_in(critic: Visit) -> None:
    page = critic.page
    ready(page)
    field = page.get_by_label("In your own words")
    field.click()
    page.evaluate("for (const number of [1, 2, 3]) window.illume.toast(`Something has happened ${number}.`, 'warn')")
    own = field.bounding_box()
    assert own is not None
    for message in page.locator(".toast").all():
        box = message.bounding_box()
        assert box is not None
        is_beside = box["x"] >= own["x"] + own["width"] or box["x"] + box["width"] <= own["x"]
        is_above = box["y"] + box["height"] <= own["y"]
        assert is_beside or is_above
