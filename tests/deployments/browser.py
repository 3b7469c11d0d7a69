"""A critic in a browser, before an installation of which only the address is known."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

from tests.e2e.conftest import FLAGS, PATIENCE_MS, chromium


@dataclass
class Visit:
    """What a browser saw: requests that left the installation, requests that failed, and the cookies at the end."""

    outside: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    cookies: Sequence[Mapping[str, Any]] = ()


def judge_in_browser(url: str, slug: str, *, email: str, password: str, sets: int) -> Visit:
    """Sign in at `url` on the way to a project, judge `sets` sets with the keyboard, and open the help."""
    visit = Visit()
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        context = browser.new_context(ignore_https_errors=True)
        page = context.new_page()
        inside = (f"{url}/", "data:")
        page.on("request", lambda asked: None if asked.url.startswith(inside) else visit.outside.append(asked.url))
        page.on("response", lambda answer: visit.failed.append(answer.url) if answer.status >= 400 else None)
        page.goto(f"{url}/annotate/{slug}")
        page.get_by_label("Email").fill(email)
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Sign in").click()
        await_set(page)
        closing = page.get_by_role("button", name="Close the instructions")
        if closing.is_visible():
            closing.click()
        for number in range(1, sets + 1):
            await_set(page)
            page.keyboard.press("1")
            page.keyboard.press("Enter")
            expect(page.get_by_role("link", name=re.compile(f"^{number} today"))).to_be_visible(timeout=PATIENCE_MS)
        visit.cookies = context.cookies()
        page.get_by_role("link", name="Help").click()
        page.wait_for_load_state()
        browser.close()
    return visit


def await_set(page: Page) -> None:
    """Wait until a set can be judged: its pictures have been seen."""
    expect(page.locator(".judge")).to_have_attribute("data-seen", "yes", timeout=PATIENCE_MS)
