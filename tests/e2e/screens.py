"""`python -m tests.e2e.screens`: pictures of the pages for docs/screens, from a made-up history of three rounds."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from app import db, migrate
from app.connect import forget_settings
from app.embedded import Embedded
from app.settings import ROOT
from tests.e2e import world
from tests.e2e.conftest import DESK, FLAGS, PHONE, Site, chromium, free_port

SCREENS = ROOT / "docs" / "screens"
LOOP = "/admin/projects/scenes"
PICTURES = (
    ("annotate-light", "critic@example.org", "/annotate/scenes", DESK, "light"),
    ("annotate-dark", "critic@example.org", "/annotate/scenes", DESK, "dark"),
    ("annotate-phone", "critic@example.org", "/annotate/scenes", PHONE, "light"),
    ("history-light", "critic@example.org", "/annotate/scenes/history", DESK, "light"),
    ("loop-light", "admin@example.org", LOOP, DESK, "light"),
    ("loop-dark", "admin@example.org", LOOP, DESK, "dark"),
    ("loop-phone", "admin@example.org", LOOP, PHONE, "dark"),
    ("rounds-light", "admin@example.org", f"{LOOP}/rounds", DESK, "light"),
    ("round-light", "admin@example.org", f"{LOOP}/rounds/2", DESK, "light"),
    ("round-dark", "admin@example.org", f"{LOOP}/rounds/2", DESK, "dark"),
    ("versions-light", "admin@example.org", f"{LOOP}/versions", DESK, "light"),
    ("side-by-side-light", "admin@example.org", f"{LOOP}/compare", DESK, "light"),
    ("side-by-side-dark", "admin@example.org", f"{LOOP}/compare", DESK, "dark"),
    ("comparison-light", "admin@example.org", f"{LOOP}/comparisons/1", DESK, "light"),
    ("compare-light", "ada@example.org", "/annotate/scenes/compare", DESK, "light"),
    ("compare-phone", "ada@example.org", "/annotate/scenes/compare", PHONE, "dark"),
    ("prompts-light", "admin@example.org", f"{LOOP}/prompts", DESK, "light"),
    ("prompt-light", "admin@example.org", f"{LOOP}/prompts/1", DESK, "light"),
    ("critics-light", "admin@example.org", f"{LOOP}/critics", DESK, "light"),
    ("critics-dark", "admin@example.org", f"{LOOP}/critics", DESK, "dark"),
    ("critic-light", "admin@example.org", f"{LOOP}/critics/2", DESK, "light"),
    ("settings-dark", "admin@example.org", f"{LOOP}/settings", DESK, "dark"),
    ("users-light", "admin@example.org", "/admin/users", DESK, "light"),
    ("user-dark", "admin@example.org", "/admin/users/3", DESK, "dark"),
    ("audit-light", "admin@example.org", "/admin/audit", DESK, "light"),
    ("versions-dark", "admin@example.org", f"{LOOP}/versions", DESK, "dark"),
    ("settings-light", "admin@example.org", f"{LOOP}/settings", DESK, "light"),
)


def main() -> None:
    """Make all pictures anew."""
    with tempfile.TemporaryDirectory(prefix="illume-screens-") as folder:
        Path(folder).chmod(0o711)  # as root PostgreSQL runs as another account and has to pass
        os.environ["ILLUME_DATA_DIR"] = folder
        os.environ["ILLUME_SIGN_IN_TRIES"] = "1000"
        services = Embedded(Path(folder), durable=False)
        services.start()
        try:
            os.environ["ILLUME_DATABASE_URL"], os.environ["ILLUME_REDIS_URL"] = (
                services.database_url,
                services.redis_url,
            )
            forget_settings()
            migrate.upgrade(services.database_url)
            photograph(services.database_url)
        finally:
            forget_settings()
            services.stop()


def photograph(database_url: str) -> None:
    """Fill the database, serve it, and take the pictures."""
    sessions = sessionmaker(create_engine(db.sqlalchemy_url(database_url)), expire_on_commit=False)
    with sessions.begin() as session:
        world.build(session, prompts=24, rich=True)
    port = free_port()
    site = Site(f"http://127.0.0.1:{port}", sessions, port)
    site.start()
    SCREENS.mkdir(parents=True, exist_ok=True)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
            for name, email, path, size, scheme in PICTURES:
                keep_workers(sessions)
                take(browser, site, email, path, size, scheme, SCREENS / f"{name}.png")
            browser.close()
    finally:
        site.stop()


def keep_workers(sessions: sessionmaker[Session]) -> None:
    """Let the made-up workers be alive at this moment."""
    with sessions.begin() as session:
        world.beat_workers(session)


def take(browser: Browser, site: Site, email: str, path: str, size: tuple[int, int], scheme: str, target: Path) -> None:
    """One picture."""
    viewport = {"width": size[0], "height": size[1]}
    context = browser.new_context(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{site.url}/sign-in?next={path}")
    page.get_by_label("E-mail").fill(email)
    page.get_by_label("Password").fill(world.PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_label(f"Account {email}")).to_be_visible()
    if path == "/annotate/scenes":
        pick_some(page)
    page.wait_for_load_state("networkidle")
    page.screenshot(path=target)
    context.close()


def pick_some(page: Page) -> None:
    """Pick two candidates that speak of what the question asks for."""
    expect(page.locator(".judge")).to_have_attribute("data-state", "judging")
    thing = page.get_by_role("heading", level=1).inner_text().rstrip("?").split()[-1]
    for candidate in page.locator(".candidate").filter(has_text=thing).all()[:2]:
        candidate.click()


if __name__ == "__main__":
    main()
