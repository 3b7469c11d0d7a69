"""The pictures in docs/screens, from a made-up history of three rounds.

    python -m tests.e2e.screens [--all FOLDER [--language CODE]]

Takes those that the documentation shows; with `--all` those of every page instead, to look at, in a folder elsewhere,
and in any of the languages.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from sqlalchemy import create_engine, update
from sqlalchemy.orm import sessionmaker

from app.db import migrations
from app.db.engine import sqlalchemy_url
from app.languages import languages
from app.models import Project, User
from app.processes.connect import forget_settings
from app.processes.embedded import Embedded
from app.services.quality import set_agreements
from app.settings import ROOT
from tests.e2e import fortnight, world
from tests.e2e.conftest import DESK, FLAGS, PHONE, Site, chromium, free_port

SCREENS = ROOT / "docs" / "screens"
SHOWN = re.compile(r"\]\((?:docs/)?screens/([\w-]+\.png)")
LOOP = "/admin/projects/scenes"
Look = tuple[Literal["light", "dark"], tuple[int, int]]
ADMIN, CRITIC, ADA = "admin@example.org", "critic@example.org", "ada@example.org"


@dataclass(frozen=True)
class Shot:
    """A page to take pictures of. `keys` are pressed before; with `phone` there is a picture at a phone's size too."""

    name: str
    email: str
    path: str
    keys: str = ""
    phone: bool = False

    @property
    def looks(self) -> dict[str, Look]:
        """The name of each picture's file, with the scheme and the size of the window."""
        looks: dict[str, Look] = {"light": ("light", DESK), "dark": ("dark", DESK)}
        if self.phone:
            looks["phone"] = ("light", PHONE)
        return {f"{self.name}-{name}.png": look for name, look in looks.items()}


SHOTS = (
    Shot("annotate", CRITIC, "/annotate/scenes", phone=True),
    Shot("instructions", CRITIC, "/annotate/scenes", keys="i d"),
    Shot("keys", CRITIC, "/annotate/scenes", keys="?"),
    Shot("flag", CRITIC, "/annotate/scenes", keys="f"),
    Shot("lacks", CRITIC, "/annotate/scenes", keys="t 2", phone=True),
    Shot("projects-of-a-critic", CRITIC, "/annotate"),
    Shot("history", CRITIC, "/annotate/scenes/history", phone=True),
    Shot("compare", ADA, "/annotate/scenes/compare", phone=True),
    Shot("projects", ADMIN, "/admin"),
    Shot("loop", ADMIN, LOOP, phone=True),
    Shot("rounds", ADMIN, f"{LOOP}/rounds"),
    Shot("start-a-round", ADMIN, f"{LOOP}/rounds/preview"),
    Shot("round", ADMIN, f"{LOOP}/rounds/2", phone=True),
    Shot("snapshot", ADMIN, f"{LOOP}/rounds/3/snapshot"),
    Shot("versions", ADMIN, f"{LOOP}/versions", phone=True),
    Shot("side-by-side", ADMIN, f"{LOOP}/compare"),
    Shot("comparisons", ADMIN, f"{LOOP}/comparisons"),
    Shot("comparison", ADMIN, f"{LOOP}/comparisons/1"),
    Shot("prompts", ADMIN, f"{LOOP}/prompts", phone=True),
    Shot("prompt", ADMIN, f"{LOOP}/prompts/1"),
    Shot("prompt-form", ADMIN, f"{LOOP}/prompts/new"),
    Shot("gold", ADMIN, f"{LOOP}/gold"),
    Shot("gold-form", ADMIN, f"{LOOP}/prompts/1/gold"),
    Shot("imports", ADMIN, f"{LOOP}/imports"),
    Shot("import-draft", ADMIN, f"{LOOP}/imports/3"),
    Shot("import-running", ADMIN, f"{LOOP}/imports/2"),
    Shot("import-done", ADMIN, f"{LOOP}/imports/1"),
    Shot("review", ADMIN, f"{LOOP}/review", phone=True),
    Shot("critics", ADMIN, f"{LOOP}/critics", phone=True),
    Shot("critic", ADMIN, f"{LOOP}/critics/2"),
    Shot("export", ADMIN, f"{LOOP}/export", phone=True),
    Shot("settings", ADMIN, f"{LOOP}/settings"),
    Shot("webhooks", ADMIN, f"{LOOP}/webhooks"),
    Shot("new-project", ADMIN, "/admin/new-project"),
    Shot("users", ADMIN, "/admin/users"),
    Shot("user", ADMIN, "/admin/users/3"),
    Shot("audit", ADMIN, "/admin/audit"),
    Shot("erase", ADMIN, "/admin/erase/users/3"),
    Shot("erasures", ADMIN, "/admin/erasures"),
)
# Taken later: while a round runs and the pool is empty; and with a practice round first.
LATER = (
    Shot("loop-running", ADMIN, LOOP),
    Shot("round-running", ADMIN, f"{LOOP}/rounds/9"),
    Shot("empty", ADMIN, "/annotate/scenes"),
)
PRACTICE = (
    Shot("practice-first", CRITIC, "/annotate/scenes"),
    Shot("practice", CRITIC, "/annotate/scenes/practice", phone=True),
)


@dataclass(frozen=True)
class Album:
    """Where pictures go. With `names` only those files are made, and no other picture stays there."""

    folder: Path
    names: frozenset[str] | None = None

    def looks(self, shot: Shot) -> dict[str, Look]:
        """The pictures of a page that are wanted."""
        return {name: look for name, look in shot.looks.items() if self.names is None or name in self.names}

    def prepare(self) -> None:
        """Make the folder, and remove the pictures that will not be taken."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.names is not None:
            for name in {old.name for old in self.folder.glob("*.png")} - self.names:
                (self.folder / name).unlink()


def shown_names() -> frozenset[str]:
    """The files of docs/screens that the documentation shows."""
    pages = (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    return frozenset(name for page in pages for name in SHOWN.findall(page.read_text(encoding="utf-8")))


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="take the pictures of every page, into FOLDER")
    parser.add_argument("--language", default="", choices=tuple(languages()), help="of the pages, such as ar")
    options = parser.parse_args()
    if options.language and not options.all:
        parser.error("docs/screens is in English: name a folder with --all")
    album = Album(options.all) if options.all else Album(SCREENS, shown_names())
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
            migrations.upgrade(services.database_url)
            photograph(services.database_url, album, options.language)
        finally:
            forget_settings()
            services.stop()


def photograph(database_url: str, album: Album, language: str) -> None:
    """Fill the database, serve it, and take the pictures for people who chose this language."""
    sessions = sessionmaker(create_engine(sqlalchemy_url(database_url)), expire_on_commit=False)
    with sessions.begin() as session:
        made = world.build(session, prompts=24, rich=True)
        fortnight.add_fortnight(session, made)
        session.get_one(Project, made.project_id).checklist_dismissed = True
        session.execute(update(User).values(language=language))
    with sessions.begin() as session:
        set_agreements.follow_feed(session)
    port = free_port()
    site = Site(f"http://127.0.0.1:{port}", sessions, port)
    site.start()
    album.prepare()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
            take_all(browser, site, album, SHOTS, stranger=True)
            with sessions.begin() as session:
                world.add_running_round(session, made)
                world.empty_pool(session, made)
            take_all(browser, site, album, LATER)
            with sessions.begin() as session:
                fortnight.ask_practice(session, made)
            take_all(browser, site, album, PRACTICE)
            browser.close()
    finally:
        site.stop()


def take_all(browser: Browser, site: Site, album: Album, shots: Sequence[Shot], *, stranger: bool = False) -> None:
    """Take the pictures of some pages, each signed in as it needs; a `stranger` sees the sign-in form."""
    contexts: dict[str, BrowserContext] = {}
    for shot in shots:
        if not album.looks(shot):
            continue
        with site.sessions.begin() as session:
            world.beat_workers(session)
        if shot.email not in contexts:
            contexts[shot.email] = browser.new_context(reduced_motion="reduce")
            sign_in(contexts[shot.email], site, shot.email)
        take(contexts[shot.email], site, album, shot)
    if stranger:
        contexts[""] = browser.new_context(reduced_motion="reduce")
        take(contexts[""], site, album, Shot("sign-in", "", "/sign-in"))
    for context in contexts.values():
        context.close()


def sign_in(context: BrowserContext, site: Site, email: str) -> None:
    """Sign in with the form."""
    page = context.new_page()
    page.goto(f"{site.url}/sign-in?next=/annotate")
    page.get_by_label("Email").fill(email)
    page.get_by_label("Password").fill(world.PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator(".account-menu")).to_be_visible()
    page.close()


def take(context: BrowserContext, site: Site, album: Album, shot: Shot) -> None:
    """Take the pictures of one page: light, dark, and perhaps at a phone's size."""
    page = context.new_page()
    # Each picture shows the page as it is when it is opened for the first time.
    page.add_init_script("localStorage.clear()")
    for name, (scheme, size) in album.looks(shot).items():
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.emulate_media(color_scheme=scheme)
        page.goto(site.url + shot.path)
        instructions = page.locator("#instructions [data-do=instructions]")
        if instructions.is_visible():  # they open on the first visit
            instructions.click()
        if page.locator(".candidate").count():
            pick_some(page)
        page.wait_for_load_state("networkidle")
        for key in shot.keys.split():
            page.keyboard.press(key)
        for toast in page.locator(".toast [data-dismiss]").all():
            toast.click()
        keep(page.screenshot(), album.folder / name)
    page.close()


def keep(picture: bytes, target: Path) -> None:
    """Store a picture with a palette of 256 colours, which keeps it small and looks the same."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    palette = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    palette.save(target, optimize=True)


def pick_some(page: Page) -> None:
    """Pick two candidates that mention the thing in the question."""
    if page.locator(".judge").count():
        expect(page.locator(".judge")).to_have_attribute("data-state", "judging")
    thing = page.get_by_role("heading", level=1).inner_text().rstrip("?").split()[-1]
    for candidate in page.locator(".candidate").filter(has_text=thing).all()[:2]:
        candidate.click()


if __name__ == "__main__":
    main()
