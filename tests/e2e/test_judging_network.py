"""Judging over bad networks: interrupted in the middle of a verdict, and slow for two critics at once."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, Route, expect
from sqlalchemy import func, select

from app.models import Pick, Verdict, VerdictKind
from tests.e2e import world
from tests.e2e.conftest import Site, Visit, Visitor, any_size
from tests.e2e.test_judging import candidate, question, ready, saved, stocked, verdicts

pytestmark = [pytest.mark.browser, any_size]


def all_verdicts(site: Site) -> int:
    """The number of verdicts, including changes and repeats."""
    with site.sessions() as session:
        return session.scalar(select(func.count()).select_from(Verdict)) or 0


def slow(page: Page, milliseconds: int) -> None:
    """Delay every request of a page."""
    wire = page.context.new_cdp_session(page)
    wire.send(
        "Network.emulateNetworkConditions",
        {"offline": False, "latency": milliseconds, "downloadThroughput": -1, "uploadThroughput": -1},
    )


def judge_some(page: Page, count: int) -> None:
    """Give verdicts as fast as prompts arrive."""
    for _ in range(count):
        ready(page)
        before = question(page)
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).not_to_have_text(before)


def test_the_network_is_cut_in_the_middle_of_a_verdict(critic: Visit, site: Site) -> None:
    page = critic.page
    critic.watch.allow += ["net::ERR_INTERNET_DISCONNECTED", "net::ERR_FAILED"]
    stocked(page)

    def cut(route: Route) -> None:
        route.fetch()  # the server stores the verdict
        critic.context.set_offline(True)
        route.abort()  # and its response is lost

    page.route(re.compile("/verdict$"), cut, times=1)
    judge_some(page, 2)
    expect(saved(page)).to_have_text("Offline, 2 waiting")
    assert all_verdicts(site) == 1
    critic.context.set_offline(False)
    expect(saved(page)).to_have_text("Saved")
    assert all_verdicts(site) == len(verdicts(site)) == 2
    ready(page)


def test_what_waits_to_be_sent_is_taken_back(critic: Visit, site: Site) -> None:
    page = critic.page
    critic.watch.allow += ["net::ERR_INTERNET_DISCONNECTED", "net::ERR_FAILED"]
    stocked(page)

    def cut(route: Route) -> None:
        route.fetch()  # the server stores the first verdict, and its response is lost
        critic.context.set_offline(True)
        route.abort()

    page.route(re.compile("/verdict$"), cut, times=1)
    asked = [question(page)]
    judge_some(page, 1)
    asked.append(question(page))
    judge_some(page, 1)
    asked.append(question(page))
    expect(saved(page)).to_have_text("Offline, 2 waiting")

    page.keyboard.press("u")
    expect(page.get_by_role("heading", level=1)).to_have_text(asked[1])
    expect(page.get_by_text("You took this verdict back")).to_be_visible()
    expect(candidate(page, 1)).to_be_checked()
    expect(saved(page)).to_have_text("Offline, 1 waiting")
    page.keyboard.press("2")
    page.keyboard.press("Escape")  # keeps it as it was given
    expect(page.get_by_role("heading", level=1)).to_have_text(asked[2])
    expect(saved(page)).to_have_text("Offline, 2 waiting")

    page.keyboard.press("u")
    expect(page.get_by_role("heading", level=1)).to_have_text(asked[1])
    expect(candidate(page, 2)).not_to_be_checked()
    page.keyboard.press("u")
    expect(page.get_by_role("heading", level=1)).to_have_text(asked[0])
    ready(page)
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(asked[1])
    ready(page)
    page.keyboard.press("0")
    page.keyboard.press("0")
    expect(page.get_by_role("heading", level=1)).to_have_text(asked[2])
    critic.context.set_offline(False)
    expect(saved(page)).to_have_text("Saved")
    first, second = verdicts(site)
    assert all_verdicts(site) == 3
    assert first.supersedes is not None
    assert second.kind is VerdictKind.none_fit
    with site.sessions() as session:
        picked = session.scalars(select(Pick.candidate_id).where(Pick.verdict_id == first.id))
        assert set(picked) == set(first.shown[:2])


def test_two_critics_with_two_seconds_of_latency(visitor: Visitor, scenes: world.World, site: Site) -> None:
    pages = []
    for email in (scenes.critic, scenes.admin):
        page = visitor().sign_in(email, to="/annotate/scenes")
        slow(page, 2000)
        pages.append(page)
    for _ in range(3):
        for page in pages:
            judge_some(page, 1)
    for page in pages:
        expect(saved(page)).to_have_text("Saved", timeout=60_000)
        ready(page)
    given = verdicts(site)
    assert all_verdicts(site) == len(given) == 6
    assert len({verdict.candidate_set_id for verdict in given}) == 6
