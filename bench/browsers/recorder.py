"""Records what Chromium sends while a critic judges by keys."""

from __future__ import annotations

import random
import time
from urllib.parse import urlsplit

from playwright.sync_api import Page, expect, sync_playwright

from bench.browsers.installation import Installation
from bench.browsers.proxy import Proxy
from bench.browsers.recording import Recording, make_recording
from bench.browsers.stock import Person, Stock
from tests.e2e.conftest import DESK, FLAGS, chromium

SLUG = "recorded"
COOKIE = "illume_session"
IMAGES = 500
KEYS_OF_VERDICT = (("1",), ("2",), ("1", "3"), ("4",), ("0",), ("2",), ("1",), ("3", "5"), ("6",), ("1",))
"""What a critic presses, in turn: picks, then Enter; `0` says by itself that none fits."""


def record(installation: Installation, *, minutes: float, pause: float) -> Recording:
    """Have a critic judge for so long, a verdict every `pause` seconds or so, and write down what Chromium sends."""
    with installation.serving(1):
        stock = Stock(installation)
        stock.add_images(IMAGES)
        person = stock.add_people(1)[0]
        stock.let_in(stock.add_project(SLUG, prompts=IMAGES, overlap=1), [person])
        with Proxy(installation.port) as proxy:
            version = judge_by_keys(f"http://127.0.0.1:{proxy.port}", person, minutes=minutes, pause=pause)
            return make_recording(proxy.exchanges, chromium=version, slug=SLUG, pause=pause)


def judge_by_keys(url: str, person: Person, *, minutes: float, pause: float) -> str:
    """Judge in Chromium; its version."""
    draw = random.Random(5)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        context = browser.new_context(viewport={"width": DESK[0], "height": DESK[1]})
        host = urlsplit(url).hostname or ""
        context.add_cookies(
            [{"name": COOKIE, "value": person.cookie, "domain": host, "path": "/", "httpOnly": True, "sameSite": "Lax"}]
        )
        page = context.new_page()
        end = time.monotonic() + 60 * minutes
        page.goto(f"{url}/annotate/{SLUG}")
        number = 0
        while time.monotonic() < end:
            page.wait_for_timeout(1000 * pause * draw.uniform(0.7, 1.3))
            give(page, KEYS_OF_VERDICT[number % len(KEYS_OF_VERDICT)])
            number += 1
        page.wait_for_timeout(2000)
        expect(page.locator("#save-state")).to_have_text("Saved", timeout=30_000)
        version = browser.version
        browser.close()
    return version


def give(page: Page, keys: tuple[str, ...]) -> None:
    """Give one verdict, once the page takes it."""
    page.locator(".judge[data-state=judging][data-seen=yes]").wait_for(timeout=30_000)
    for key in keys:
        page.keyboard.press(key)
    if keys != ("0",):
        page.keyboard.press("Enter")
