"""What `bench/weight.py` counts of a page: each request once, its bytes, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from sqlalchemy.orm import Session

from app.models import Image, Role
from app.services.accounts import sessions
from bench.weight import Weight, drop_photos, weigh
from tests import factories
from tests.e2e.conftest import FLAGS, PHONE, Site, chromium

pytestmark = pytest.mark.browser
HEADERS = 1500


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield browser
        browser.close()


def fill(session: Session) -> tuple[str, list[Image]]:
    """A project `one` with a prompt and `four` with four, two of which show the same image. The cookie and the images.

    Images are wide enough for no derivative to be as large as they are.
    """
    pictures = [factories.make_image(session, factories.image_bytes(size=(90, 60 + n))) for n in range(4)]
    for slug, shown in (("one", pictures[:1]), ("four", [*pictures[1:], pictures[1]])):
        project = factories.make_project(session, slug=slug)
        for image in shown:
            factories.make_prompt(session, project, images=[image])
    admin = factories.make_user(session, role=Role.admin)
    return sessions.open_web_session(session, admin)[0], pictures


def test_each_request_counts_once_with_its_bytes(site: Site, browser: Browser) -> None:
    with site.sessions.begin() as session:
        cookie, pictures = fill(session)

    def prompts_of(slug: str) -> Weight:
        return weigh(browser, site.url, f"/admin/projects/{slug}/prompts", cookie, width=PHONE[0])

    one, four = prompts_of("one"), prompts_of("four")
    assert one.errors == four.errors == []
    assert four.requests - one.requests == 2
    first, *others = [image.size for image in pictures]
    assert first < one.images < first + HEADERS
    assert sum(others) < four.images < sum(others) + 3 * HEADERS
    assert one.total > one.images + 20_000  # the page, its styles and scripts


def test_what_goes_wrong_is_named(site: Site, browser: Browser) -> None:
    with site.sessions.begin() as session:
        cookie, _ = fill(session)
    assert weigh(browser, site.url, "/nothing", cookie).errors == [f"404 {site.url}/nothing"]
    assert weigh(browser, site.url, "/admin/projects/one", "nobody").errors == []  # it leads to the sign-in page


def test_photographs_that_are_dropped_are_counted_without_the_page_before(
    site: Site, browser: Browser, tmp_path: Path
) -> None:
    with site.sessions.begin() as session:
        cookie, _ = fill(session)
    photos = [factories.image_bytes(size=(90, 60 + n)) for n in range(5)]
    page = "/admin/projects/one/imports"
    found = weigh(browser, site.url, page, cookie, act=drop_photos(photos, tmp_path))
    assert found.errors == []
    assert found.images > 5 * 90
    assert found.total < weigh(browser, site.url, page, cookie).total
