"""The critic's page, as a person with a keyboard uses it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import APIResponse, Locator, Page, Route, expect
from sqlalchemy import func, select

from app.models import Assignment, Verdict, VerdictKind, Worker
from app.services.judging import assignments
from tests.e2e import world
from tests.e2e.conftest import PHONE, Site, Visit, Visitor, any_size

pytestmark = pytest.mark.browser


def ready(page: Page) -> None:
    """Wait until the image is painted, and has been for long enough for a verdict."""
    expect(page.locator(".judge")).to_have_attribute("data-state", "judging")
    expect(page.locator(".judge")).to_have_attribute("data-seen", "yes")


def stocked(page: Page) -> None:
    """Wait until the next prompts are there too, with their images decoded."""
    ready(page)
    expect(page.locator(".judge")).to_have_attribute("data-ahead", "2")


def seen(page: Page, part: str) -> None:
    """Wait until a part of a page has been there for long enough to be pressed."""
    expect(page.locator(part).first).to_have_attribute("data-seen", "yes")


def question(page: Page) -> str:
    """The current question."""
    return page.get_by_role("heading", level=1).inner_text()


def saved(page: Page) -> Locator:
    """The indicator of whether everything is saved."""
    return page.locator("#save-state")


def verdicts(site: Site) -> list[Verdict]:
    """All verdicts that have not been superseded, in order."""
    with site.sessions() as session:
        return list(session.scalars(select(Verdict).where(Verdict.current).order_by(Verdict.id)))


def wait_for_verdicts(page: Page, site: Site, count: int) -> list[Verdict]:
    """The verdicts, once there are `count` of them and the page shows them as saved."""
    expect(page.get_by_role("link", name=re.compile(rf"^{count} today"))).to_be_visible()
    found = verdicts(site)
    assert len(found) == count
    return found


def candidate(page: Page, number: int) -> Locator:
    """The checkbox of a candidate."""
    return page.get_by_role("checkbox").nth(number - 1)


class TestJudging:
    @any_size
    def test_two_keys_a_verdict(self, critic: Visit, site: Site) -> None:
        page = critic.page
        ready(page)
        first = question(page)
        page.keyboard.press("1")
        expect(candidate(page, 1)).to_be_checked()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).not_to_have_text(first)
        found = wait_for_verdicts(page, site, 1)
        assert found[0].kind is VerdictKind.picked
        assert found[0].seconds is not None
        assert found[0].seconds > 0

    @any_size
    def test_picks_are_those_that_were_shown_there(self, critic: Visit, site: Site) -> None:
        page = critic.page
        ready(page)
        texts = page.locator(".candidate .text").all_inner_texts()
        page.keyboard.press("2")
        page.keyboard.press("3")
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        [given] = wait_for_verdicts(page, site, 1)
        page.get_by_role("link", name="1 today").click()
        expect(page.get_by_text(texts[2], exact=True)).to_be_visible()
        expect(page.get_by_text(texts[1], exact=True)).to_have_count(0)
        assert len(given.shown) == len(texts)

    @any_size
    def test_the_next_prompt_is_there_at_once(self, critic: Visit) -> None:
        page = critic.page
        stocked(page)
        # The next one shows without the server: it was claimed and its image decoded before.
        page.route("**/annotate/**", lambda route: route.abort())
        critic.watch.allow.append("net::ERR_FAILED")
        before = question(page)
        page.keyboard.press("0")
        expect(page.get_by_role("heading", level=1)).not_to_have_text(before)
        ready(page)

    @any_size
    def test_none_fits_needs_no_pick(self, critic: Visit, site: Site) -> None:
        page = critic.page
        ready(page)
        page.keyboard.press("1")
        page.keyboard.press("0")
        expect(candidate(page, 1)).not_to_be_checked()
        assert verdicts(site) == []
        page.keyboard.press("0")
        [given] = wait_for_verdicts(page, site, 1)
        assert given.kind is VerdictKind.none_fit

    @any_size
    def test_nothing_picked_is_nothing_submitted(self, critic: Visit, site: Site) -> None:
        page = critic.page
        ready(page)
        before = question(page)
        page.keyboard.press("Enter")
        expect(page.get_by_role("region", name="Messages")).to_contain_text("Pick what fits")
        assert question(page) == before
        assert verdicts(site) == []

    @any_size
    def test_own_words(self, critic: Visit, site: Site) -> None:
        page = critic.page
        ready(page)
        page.keyboard.press("w")
        own = page.get_by_label("In your own words")
        expect(own).to_be_focused()
        page.keyboard.type("10 trees, <b>wisps</b> of fog")
        expect(page.get_by_role("checkbox", checked=True)).to_have_count(0)
        page.keyboard.press("Control+Enter")
        [given] = wait_for_verdicts(page, site, 1)
        assert given.rationale == "10 trees, <b>wisps</b> of fog"
        page.get_by_role("link", name="1 today").click()
        expect(page.get_by_text("“10 trees, <b>wisps</b> of fog”")).to_be_visible()

    @any_size
    def test_skipping_asks_for_a_reason_by_one_key(self, critic: Visit, site: Site) -> None:
        page = critic.page
        ready(page)
        page.keyboard.press("s")
        expect(page.get_by_role("dialog", name="Why skip this one?")).to_be_visible()
        page.keyboard.press("2")
        [given] = wait_for_verdicts(page, site, 1)
        assert (given.kind, given.reason) == (VerdictKind.skipped, "Too hard to see")

    @any_size
    def test_escape_leaves_the_reasons(self, critic: Visit, site: Site) -> None:
        page = critic.page
        ready(page)
        before = question(page)
        page.keyboard.press("f")
        dialog = page.get_by_role("dialog", name="What's wrong with this prompt?")
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        assert question(page) == before
        assert verdicts(site) == []

    @any_size
    def test_by_mouse_alone(self, critic: Visit, site: Site) -> None:
        page = critic.page
        ready(page)
        page.locator(".candidate").first.click()
        page.get_by_role("button", name="Submit").click()
        [given] = wait_for_verdicts(page, site, 1)
        assert given.kind is VerdictKind.picked

    @any_size
    def test_the_key_sheet_and_turning_keys_off(self, critic: Visit) -> None:
        page = critic.page
        ready(page)
        page.keyboard.press("?")
        expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
        page.get_by_label("Use shortcuts on this page").uncheck()
        page.keyboard.press("Escape")
        page.keyboard.press("1")
        expect(candidate(page, 1)).not_to_be_checked()

    def test_zoom(self, critic: Visit) -> None:
        page = critic.page
        ready(page)
        page.keyboard.press("z")
        pane = page.get_by_role("img", name=re.compile("Enlarged image"))
        expect(pane).to_be_visible()
        page.keyboard.press("+")
        expect(pane.locator("img")).to_have_css("transform", re.compile(r"matrix\(1\.5"))
        page.keyboard.press("Escape")
        expect(pane).to_be_hidden()


class TestGoingBack:
    @any_size
    def test_the_last_verdict_is_changed(self, critic: Visit, site: Site) -> None:
        page = critic.page
        ready(page)
        first = question(page)
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        wait_for_verdicts(page, site, 1)
        ready(page)
        second = question(page)
        page.keyboard.press("u")
        expect(page.get_by_text("You are changing your verdict")).to_be_visible()
        assert question(page) == first
        expect(candidate(page, 1)).to_be_checked()
        ready(page)
        page.keyboard.press("1")
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text(second)
        expect(saved(page)).to_have_text("Saved")
        [given] = verdicts(site)
        assert given.supersedes is not None
        page.get_by_role("link", name="1 today").click()
        expect(page.get_by_role("row")).to_have_count(2)

    @any_size
    def test_further_back_and_leaving_it(self, critic: Visit, site: Site) -> None:
        page = critic.page
        questions = []
        for count in (1, 2):
            ready(page)
            questions.append(question(page))
            page.keyboard.press("0")
            wait_for_verdicts(page, site, count)
        ready(page)
        third = question(page)
        page.keyboard.press("u")
        expect(page.get_by_role("heading", level=1)).to_have_text(questions[1])
        page.keyboard.press("u")
        expect(page.get_by_role("heading", level=1)).to_have_text(questions[0])
        page.keyboard.press("Escape")
        expect(page.get_by_role("heading", level=1)).to_have_text(third)
        assert [verdict.supersedes for verdict in verdicts(site)] == [None, None]

    def test_from_the_list_of_verdicts(self, critic: Visit, site: Site) -> None:
        page = critic.page
        ready(page)
        first = question(page)
        page.keyboard.press("0")
        wait_for_verdicts(page, site, 1)
        critic.open("/annotate/scenes/history")
        page.get_by_role("link", name=f"Change the verdict on: {first}").click()
        expect(page.get_by_text("You are changing your verdict")).to_contain_text("none fits")
        ready(page)
        page.keyboard.press("Escape")  # leaves it, and leads back
        expect(page.get_by_role("heading", name="My verdicts")).to_be_visible()
        page.get_by_label("Verdict", exact=True).select_option("none_fit")
        page.get_by_role("button", name="Search").click()
        page.get_by_role("link", name=f"Change the verdict on: {first}").click()
        ready(page)
        page.keyboard.press("3")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="My verdicts")).to_be_visible()
        expect(page.get_by_label("Verdict", exact=True)).to_have_value("none_fit")
        [given] = verdicts(site)
        assert given.kind is VerdictKind.picked


@any_size
class TestNothingIsLost:
    def test_offline_verdicts_are_sent_when_the_net_is_back(self, critic: Visit, site: Site) -> None:
        page = critic.page
        critic.watch.allow += ["net::ERR_INTERNET_DISCONNECTED"]
        stocked(page)
        page.keyboard.press("0")
        wait_for_verdicts(page, site, 1)
        ready(page)
        critic.context.set_offline(True)
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        expect(saved(page)).to_have_text("Offline, 1 waiting")
        assert len(verdicts(site)) == 1
        critic.context.set_offline(False)
        expect(saved(page)).to_have_text("Saved")
        assert len(verdicts(site)) == 2

    def test_the_queue_survives_a_reload_and_a_restart(self, critic: Visit, site: Site) -> None:
        page = critic.page
        critic.watch.allow += ["net::ERR_CONNECTION_REFUSED", "net::ERR_CONNECTION_RESET", "net::ERR_EMPTY_RESPONSE"]
        ready(page)
        stocked(page)
        judged = question(page)
        site.stop()
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        expect(saved(page)).to_have_text("Offline, 1 waiting")
        site.start()
        page.reload()
        expect(saved(page)).to_have_text("Saved")
        wait_for_verdicts(page, site, 1)
        expect(page.get_by_role("heading", level=1)).not_to_have_text(judged)

    def test_a_reload_that_is_overtaken_by_a_verdict_brings_the_next_prompt(self, critic: Visit, site: Site) -> None:
        page = critic.page
        critic.watch.allow.append("net::ERR_FAILED")
        stocked(page)
        judged = page.locator("#work").get_attribute("data-assignment")
        held: list[tuple[Route, APIResponse]] = []

        def hold(route: Route) -> None:
            answer = route.fetch()
            assert f'data-assignment="{judged}"' in answer.text()
            held.append((route, answer))

        def overtake(route: Route) -> None:
            if not held:
                route.abort()
                return
            route.fulfill(response=route.fetch())
            reload, answer = held.pop()
            reload.fulfill(response=answer)

        page.route(page.url, hold, times=1)
        page.route(re.compile("/verdict$"), overtake)
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        expect(saved(page)).to_have_text("Offline, 1 waiting")
        page.reload()
        ready(page)
        assert page.locator("#work").get_attribute("data-assignment") != judged
        assert len(verdicts(site)) == 1

    def test_an_answer_that_is_lost_is_no_second_verdict(self, critic: Visit, site: Site) -> None:
        page = critic.page
        critic.watch.allow.append("net::ERR_FAILED")
        ready(page)
        lost: list[APIResponse] = []

        def lose_first(route: Route) -> None:
            if not lost:
                lost.append(route.fetch())
                route.abort()
            else:
                route.continue_()

        page.route(re.compile("/verdict$"), lose_first)
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        wait_for_verdicts(page, site, 1)
        expect(saved(page)).to_have_text("Saved")
        assert len(lost) == 1
        with site.sessions() as session:
            assert session.scalar(select(func.count()).select_from(Verdict)) == 1

    def test_an_ended_session_loses_nothing(self, critic: Visit, site: Site, scenes: world.World) -> None:
        page = critic.page
        critic.watch.allow.append("401")
        stocked(page)
        critic.context.clear_cookies()
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name="Your session has ended")
        expect(dialog).to_contain_text("1 verdict")
        dialog.get_by_role("button", name="Not yet").click()
        ready(page)
        page.get_by_label("In your own words").fill("half a sent")
        assert verdicts(site) == []
        expect(saved(page)).to_have_text("Signed out, 1 waiting")
        drafted = question(page)
        # The verdict is answered before the page's request for a prompt: both must bring the one with the draft.
        page.route("**/next", lambda route: (wait_for_verdicts(page, site, 1), route.continue_()))
        critic.sign_in_by_form(scenes.critic, to="/annotate/scenes")
        wait_for_verdicts(page, site, 1)
        expect(saved(page)).to_have_text("Saved")
        expect(page.get_by_label("In your own words")).to_have_value("half a sent")
        assert question(page) == drafted

    def test_a_draft_outlives_its_claim(self, critic: Visit, site: Site) -> None:
        page = critic.page
        ready(page)
        drafted = question(page)
        page.get_by_label("In your own words").fill("before lunch")
        critic.open("/annotate")
        with site.sessions.begin() as session:
            for held in session.scalars(select(Assignment)):
                held.expires_at = datetime.now(UTC) - timedelta(minutes=1)
            session.flush()
            assert assignments.expire_claims(session) >= 1
        critic.open("/annotate/scenes")
        ready(page)
        assert question(page) == drafted
        expect(page.get_by_label("In your own words")).to_have_value("before lunch")

    def test_words_of_a_verdict_that_is_refused_stay_in_sight(self, critic: Visit) -> None:
        page = critic.page
        critic.watch.allow.append("422")
        ready(page)
        page.get_by_label("In your own words").fill("a long thought")
        page.route(re.compile("/verdict$"), lambda route: route.fulfill(status=422, body="<p data-text>Not so.</p>"))
        page.keyboard.press("Control+Enter")
        messages = page.get_by_role("region", name="Messages")
        expect(messages).to_contain_text("Not so. You wrote: “a long thought”")

    def test_anothers_queue_is_not_sent(self, critic: Visit, site: Site, scenes: world.World) -> None:
        page = critic.page
        critic.watch.allow += ["401", "403"]
        stocked(page)
        critic.context.clear_cookies()
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog", name="Your session has ended")).to_be_visible()
        critic.sign_in(scenes.admin, to="/annotate/scenes")
        ready(page)
        expect(saved(page)).to_have_text("Saved")
        assert verdicts(site) == []

    def test_a_verdict_that_is_refused_is_explained(self, critic: Visit, site: Site, visitor: Visitor) -> None:
        page = critic.page
        critic.watch.allow.append("409")
        ready(page)
        other = visitor()
        other.watch.allow.append("409")
        other.sign_in("critic@example.org", to="/annotate/scenes")
        ready(other.page)
        assert question(other.page) == question(page)
        other.page.keyboard.press("0")
        wait_for_verdicts(other.page, site, 1)
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        messages = page.get_by_role("region", name="Messages")
        expect(messages).to_contain_text("Already judged in another tab; your first verdict stands.")
        expect(saved(page)).to_have_text("Saved")
        assert len(verdicts(site)) == 1


@any_size
class TestFairness:
    def test_two_critics_never_get_the_same_set(self, critic: Visit, visitor: Visitor, site: Site) -> None:
        other = visitor()
        other.sign_in("admin@example.org", to="/annotate/scenes")
        for page in (critic.page, other.page):
            ready(page)
            page.keyboard.press("1")
            page.keyboard.press("Enter")
            expect(page.get_by_role("link", name="1 today")).to_be_visible()
        found = verdicts(site)
        assert len({verdict.candidate_set_id for verdict in found}) == 2

    def test_no_verdict_before_the_image_is_rendered(self, visitor: Visitor, scenes: world.World, site: Site) -> None:
        visit = visitor()
        page = visit.sign_in(scenes.critic, to="/annotate")  # this page has no images that could be blocked
        held: list[Route] = []
        released = False

        def hold(route: Route) -> None:
            if released:
                route.continue_()
            else:
                held.append(route)

        page.route("**/api/v1/images/*", hold)
        page.goto(f"{site.url}/annotate/scenes", wait_until="domcontentloaded")  # the load event waits for the image
        expect(page.locator(".judge")).to_have_attribute("data-seen", "yes")
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        expect(page.get_by_role("region", name="Messages")).to_contain_text("The image is still loading")
        assert verdicts(site) == []
        released = True
        for route in held:
            route.continue_()
        ready(page)
        page.keyboard.press("Enter")
        wait_for_verdicts(page, site, 1)


class TestEmptyStates:
    @any_size
    def test_the_pool_is_being_filled_and_the_prompt_appears(
        self, visitor: Visitor, scenes: world.World, site: Site
    ) -> None:
        with site.sessions.begin() as session:
            world.empty_pool(session, scenes)
            session.add(Worker(name="here:1", queues="model", device="cpu"))
        visit = visitor()
        page = visit.sign_in(scenes.critic, to="/annotate/scenes")
        expect(page.get_by_role("heading", name="Explanations are being written")).to_be_visible()
        expect(page.get_by_text("12 prompts are waiting for explanations")).to_be_visible()
        with site.sessions.begin() as session:
            world.refill(session, scenes)
        ready(page)

    @any_size
    def test_all_done(self, visitor: Visitor, site: Site) -> None:
        with site.sessions.begin() as session:
            small = world.build(session, prompts=1)
        visit = visitor()
        page = visit.sign_in(small.critic, to="/annotate/scenes")
        ready(page)
        page.keyboard.press("0")
        expect(page.get_by_role("heading", name="All done")).to_be_visible()

    @any_size
    def test_a_round_that_pauses_sampling(self, visitor: Visitor, scenes: world.World, site: Site) -> None:
        with site.sessions.begin() as session:
            world.empty_pool(session, scenes)
            world.add_running_round(session, scenes)
        visit = visitor()
        page = visit.sign_in(scenes.critic, to="/annotate/scenes")
        expect(page.get_by_role("heading", name="Training round 9 is running")).to_be_visible()

    @any_size
    def test_not_a_member(self, visitor: Visitor, scenes: world.World, site: Site) -> None:
        with site.sessions.begin() as session:
            world.named(session, "guest")
        visit = visitor()
        visit.watch.allow.append("404")
        page = visit.sign_in("guest@example.org", to="/annotate")
        expect(page.get_by_role("heading", name="No projects yet")).to_be_visible()
        visit.open("/annotate/scenes")
        expect(page.get_by_text("you are not a member of it")).to_be_visible()


class TestPhone:
    def test_image_in_sight_while_cards_scroll(self, visitor: Visitor, scenes: world.World, site: Site) -> None:
        visit = visitor(PHONE)
        page = visit.sign_in(scenes.critic, to="/annotate/scenes")
        ready(page)
        image = page.get_by_role("img", name=re.compile("^Image 1 of 1"))
        before = image.bounding_box()
        page.get_by_label("In your own words").scroll_into_view_if_needed()
        assert image.bounding_box() == before
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        page.locator(".candidate").first.click()
        page.get_by_role("button", name="Submit").click()
        wait_for_verdicts(page, site, 1)
