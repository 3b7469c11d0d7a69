"""How many requests and bytes each page takes in a browser, in a project of photographs.

    python bench/weight.py [--photos 50] [--size 4000x3000] [--width 1280] [--scale 1] [--only TEXT]

Starts its own PostgreSQL and web server, with a project of three rounds whose prompts show `--photos` photographs of
`--size`. Opens each page in Chromium with an empty cache, scrolls to its end, and prints what was transferred:
requests, all bytes, and bytes of images; at the end the form for photographs that were dropped on the page of imports.
`--scale` is the number of device pixels to a pixel of the page. Exits with 1 where a page takes more than 1 MB, or
anything on it is an error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from playwright.sync_api import Browser, CDPSession, Page, sync_playwright
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from app.db import migrations
from app.db.engine import sqlalchemy_url
from app.http.dependencies import SESSION_COOKIE
from app.models import User
from app.processes import connect
from app.processes.embedded import Embedded
from app.services.accounts import sessions
from bench.serving import free_port, serve
from tests import factories
from tests.e2e import fortnight, world
from tests.e2e.conftest import DESK, FLAGS, PHONE, chromium
from tests.e2e.test_pages import ADMINS, CRITICS

LIMIT = 1_000_000
QUIET_MS = 1000
STEP_MS = 100
PATIENCE_MS = 300_000
MORE = (
    "/admin/projects/scenes/prompts?per=50",
    "/admin/projects/scenes/prompts?per=50&view=grid",
    "/admin/projects/scenes/rounds/3/snapshot?role=val",
    "/admin/erase/images/{image}",
    "/account",
)
IMPORTS = "/admin/projects/scenes/imports"


@dataclass
class Weight:
    """What one page transferred."""

    requests: int = 0
    total: int = 0
    images: int = 0
    errors: list[str] = field(default_factory=list)
    _kinds: dict[str, str] = field(default_factory=dict)
    _open: set[str] = field(default_factory=set)

    def watch(self, cdp: CDPSession) -> None:
        """Count what the page loads, until it is closed."""
        cdp.on("Network.requestWillBeSent", self._began)
        cdp.on("Network.requestServedFromCache", lambda event: self._open.discard(event["requestId"]))
        cdp.on("Network.responseReceived", self._answered)
        cdp.on("Network.loadingFinished", self._finished)
        cdp.on("Network.loadingFailed", self._failed)
        cdp.send("Network.enable")

    def wait(self, page: Page) -> None:
        """Wait until nothing has been under way for a while."""
        quiet = waited = 0
        while quiet < QUIET_MS:
            if waited > PATIENCE_MS:
                raise SystemExit(f"{page.url} did not come to an end: {len(self._open)} requests are under way")
            page.wait_for_timeout(STEP_MS)
            waited += STEP_MS
            quiet = 0 if self._open else quiet + STEP_MS

    def _began(self, event: dict[str, Any]) -> None:
        if event["type"] == "Document":  # another page: what came before is not part of it
            self.requests = self.total = self.images = 0
        self._open.add(event["requestId"])

    def _answered(self, event: dict[str, Any]) -> None:
        self._kinds[event["requestId"]] = event["type"]
        if event["response"]["status"] >= 400:
            self.errors.append(f"{event['response']['status']} {event['response']['url']}")

    def _finished(self, event: dict[str, Any]) -> None:
        if event["requestId"] not in self._open:
            return  # it came from the cache
        self._open.remove(event["requestId"])
        self.requests += 1
        self.total += int(event["encodedDataLength"])
        if self._kinds.get(event["requestId"]) == "Image":
            self.images += int(event["encodedDataLength"])

    def _failed(self, event: dict[str, Any]) -> None:
        self._open.discard(event["requestId"])
        if not event.get("canceled"):
            self.errors.append(f"{event['errorText']} {event['type']}")


@dataclass(frozen=True)
class Filled:
    """The project's photographs, and who looks at which pages."""

    photos: list[bytes]
    admin: str
    critic: str
    pages: tuple[str, ...]


def fill(database_url: str, count: int, size: tuple[int, int]) -> Filled:
    """Make the project, its photographs wide and tall in turn."""
    # A session of our own: storing so many bytes takes longer than the application allows a transaction.
    begin = sessionmaker(create_engine(sqlalchemy_url(database_url)), expire_on_commit=False).begin
    photos = [factories.photograph(size=size if n % 2 else size[::-1], seed=n) for n in range(count)]
    with begin() as session:
        project = world.build(session, prompts=max(12, count), rich=True, photos=photos)
        fortnight.add_fortnight(session, project)
        world.add_running_round(session, project)
        image = factories.make_image(session, photos[0]).sha256
    with begin() as session:
        admin, critic = (
            sessions.open_web_session(session, session.query(User).filter_by(email=email).one())[0]
            for email in (project.admin, project.critic)
        )
    prompt = f"/admin/projects/scenes/prompts/{project.prompt_ids[0]}"
    pages = (*ADMINS, *(path.format(image=image) for path in MORE), prompt, f"{prompt}/gold")
    return Filled(photos, admin, critic, pages)


def weigh(
    browser: Browser,
    base: str,
    path: str,
    cookie: str,
    *,
    width: int = DESK[0],
    scale: float = 1,
    act: Callable[[Page], None] | None = None,
) -> Weight:
    """Open one page with an empty cache, or what `act` leads on to from there, and scroll to its end."""
    context = browser.new_context(
        viewport={"width": width, "height": (DESK if width > PHONE[0] else PHONE)[1]},
        device_scale_factor=scale,
        reduced_motion="reduce",
    )
    context.set_default_timeout(PATIENCE_MS)
    context.add_cookies([{"name": SESSION_COOKIE, "value": cookie, "url": base}])
    page = context.new_page()
    found = Weight()
    found.watch(context.new_cdp_session(page))
    page.goto(base + path)
    if act is not None:
        act(page)
    found.wait(page)
    while page.evaluate("() => { const before = scrollY; scrollBy(0, innerHeight); return scrollY > before; }"):
        page.wait_for_timeout(STEP_MS)
    found.wait(page)
    context.close()
    return found


def drop_photos(photos: list[bytes], folder: Path) -> Callable[[Page], None]:
    """Choose the photographs on the page of imports, as dropping them does."""
    paths = []
    for number, data in enumerate(photos):
        paths.append(folder / f"photo {number}.jpg")
        paths[-1].write_bytes(data)

    def act(page: Page) -> None:
        page.set_input_files("#photos", paths)
        with page.expect_navigation():
            page.evaluate("document.getElementById('photos').form.requestSubmit()")

    return act


def weigh_all(base: str, filled: Filled, options: argparse.Namespace, folder: Path) -> dict[str, Weight]:
    """Weigh every page."""
    look = {"width": options.width, "scale": options.scale}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        asked = [*((filled.admin, path) for path in filled.pages), *((filled.critic, path) for path in CRITICS)]
        found = {path: weigh(browser, base, path, cookie, **look) for cookie, path in asked if options.only in path}
        form = f"{IMPORTS}/photos"
        if options.only in form:
            act = drop_photos(filled.photos, folder)
            found[form] = weigh(browser, base, IMPORTS, filled.admin, **look, act=act)
        browser.close()
    return found


def show(found: dict[str, Weight]) -> None:
    """The table, the heaviest first."""
    print(
        f"At most {LIMIT / 1000:,.0f} kB a page\n\n| page | requests | kB | of these images (kB) |\n|---|---|---|---|"
    )
    for path, one in sorted(found.items(), key=lambda item: -item[1].total):
        print(f"| `{path}` | {one.requests} | {one.total / 1000:.0f} | {one.images / 1000:.0f} |")
        for error in one.errors:
            print(f"{path}: {error}", file=sys.stderr)


def main() -> int:
    """Run against a database of our own."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=50)
    parser.add_argument("--size", default="4000x3000")
    parser.add_argument("--width", type=int, default=DESK[0], help="of the window")
    parser.add_argument("--scale", type=float, default=1, help="device pixels to a pixel of the page")
    parser.add_argument("--only", default="", help="only addresses with this in them")
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    with tempfile.TemporaryDirectory(prefix="illume-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with Embedded(folder) as services:
            urls = {"ILLUME_DATABASE_URL": services.database_url, "ILLUME_REDIS_URL": services.redis_url}
            connect.set_environment({**urls, "ILLUME_DATA_DIR": name, "ILLUME_SECRET_KEY": "a key for benchmarks"})
            migrations.upgrade(services.database_url)
            filled = fill(services.database_url, options.photos, (width, height))
            port = free_port()
            server = serve(port, 1, folder / "web.log")
            try:
                found = weigh_all(f"http://127.0.0.1:{port}", filled, options, folder)
            finally:
                server.terminate()
                server.wait(30)
                connect.forget_settings()
    show(found)
    return 0 if all(one.total <= LIMIT and not one.errors for one in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
