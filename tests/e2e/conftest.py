"""A served site on a database of its own, and a Chromium that fails the test on any console error or CSP report."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Playwright, expect, sync_playwright
from sqlalchemy import create_engine, pool, select
from sqlalchemy.orm import Session, sessionmaker

from app.db.engine import sqlalchemy_url
from app.http.dependencies import SESSION_COOKIE
from app.main import create_app
from app.models import User
from app.processes.embedded import Embedded
from app.services.accounts import sessions as account_sessions
from app.services.quality import set_agreements
from app.settings import ROOT
from tests.conftest import MIGRATED, CommittedDatabase, copy_database
from tests.e2e import world

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESK = (1280, 800)
PHONE = (390, 844)
AXE = (ROOT / "node_modules" / "axe-core" / "axe.min.js", ROOT / "static" / "vendor" / "axe.min.js")
# Generous limits for a busy machine; they do not slow down tests that pass.
SERVER_SECONDS = 60.0
PATIENCE_MS = 60_000


@dataclass
class Site:
    """The served application. With `stop` and `start` a test can make the server unavailable for a while."""

    url: str
    sessions: sessionmaker[Session]
    port: int
    _server: uvicorn.Server | None = None
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Serve until `stop`."""
        config = uvicorn.Config(
            create_app(),
            host="127.0.0.1",
            port=self.port,
            ws="none",
            log_config=None,  # as in tests/serving.py
            log_level="error",
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + SERVER_SECONDS
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop serving; connections are refused then."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(SERVER_SECONDS)
        assert not self._thread.is_alive(), "the server did not stop"
        self._server = self._thread = None


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def site(committed_db: CommittedDatabase, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The application, served with the test's own database."""
    monkeypatch.setenv("ILLUME_SIGN_IN_TRIES", "1000")
    monkeypatch.setenv("ILLUME_GATE_WAIT", str(SERVER_SECONDS))
    port = free_port()
    monkeypatch.setenv("ILLUME_PUBLIC_URL", f"http://127.0.0.1:{port}")
    site = Site(f"http://127.0.0.1:{port}", committed_db.sessions, port)
    site.start()
    try:
        yield site
    finally:
        site.stop()


@pytest.fixture(scope="session")
def plain_world(embedded: Embedded) -> world.World:
    """The plain world, in the database `world_plain` that tests copy."""
    return build_world(embedded, "world_plain", rich=False)


@pytest.fixture(scope="session")
def rich_world(embedded: Embedded) -> world.World:
    """The world with a history, in the database `world_rich` that tests copy."""
    return build_world(embedded, "world_rich", rich=True)


def build_world(embedded: Embedded, name: str, *, rich: bool) -> world.World:
    """Build a world in its own database, once: building a history takes seconds, copying it a fraction of one."""
    engine = create_engine(sqlalchemy_url(copy_database(embedded, name, MIGRATED)), poolclass=pool.NullPool)
    try:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            made = world.build(session, rich=rich)
        with Session(engine) as session, session.begin():
            set_agreements.follow_feed(session)  # what the sweep would do; the site of a test has none
        return made
    finally:
        engine.dispose()


@pytest.fixture
def template(request: pytest.FixtureRequest) -> str:
    """The database to copy for the test: the one with the world that it asks for."""
    for fixture, built, name in (("history", "rich_world", "world_rich"), ("scenes", "plain_world", "world_plain")):
        if fixture in request.fixturenames:
            request.getfixturevalue(built)
            return name
    return MIGRATED


@pytest.fixture
def scenes(site: Site, plain_world: world.World) -> world.World:
    """A project with a dozen prompts ready to judge."""
    return plain_world


@pytest.fixture
def history(site: Site, rich_world: world.World) -> world.World:
    """A project with three rounds behind it."""
    return rich_world


def chromium() -> str:
    """The path of the browser. Fails, rather than skips, where there is none."""
    named = os.environ.get("ILLUME_CHROMIUM")
    found = named or next((path for name in CHROMIUMS if (path := shutil.which(name))), None)
    if not found:
        pytest.fail("No Chromium or Chrome is installed: run `make test`, which installs one, or set ILLUME_CHROMIUM.")
    return found


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    """Playwright, shared by the whole run."""
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """Chromium, shared by the whole run; each test has its own contexts."""
    expect.set_options(timeout=PATIENCE_MS)
    browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
    yield browser
    browser.close()


@dataclass
class Watch:
    """Errors that the pages of a test logged. `allow` names those that the test causes itself."""

    complaints: list[str] = field(default_factory=list)
    allow: list[str] = field(default_factory=list)

    def on_console(self, message: ConsoleMessage) -> None:
        """Record an error or warning of the console."""
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def unexpected(self) -> list[str]:
        """The errors that were not allowed."""
        return [text for text in self.complaints if not any(part in text for part in self.allow)]


@dataclass
class Visit:
    """A person with a browser of their own."""

    site: Site
    context: BrowserContext
    page: Page
    watch: Watch

    def open(self, path: str) -> Page:
        """Go to a page."""
        self.page.goto(self.site.url + path)
        return self.page

    def sign_in(self, email: str, *, to: str = "/") -> Page:
        """Open a session without the form, and go to `to` until its scripts have run."""
        with self.site.sessions.begin() as session:
            user = session.scalars(select(User).where(User.email == email)).one()
            secret, _ = account_sessions.open_web_session(session, user)
        self.context.add_cookies(
            [{"name": SESSION_COOKIE, "value": secret, "url": self.site.url, "httpOnly": True, "sameSite": "Lax"}]
        )
        self.open(to)
        expect(self.page.get_by_label(f"Account {email}")).to_be_visible()
        instructions = self.page.get_by_role("button", name="Close the instructions")
        if instructions.is_visible():  # they open on the first visit, and the tests are about the visits after it
            instructions.click()
        return self.page

    def sign_in_by_form(self, email: str, *, to: str) -> Page:
        """Sign in with the form, and arrive at `to` until its scripts have run."""
        self.open(f"/sign-in?next={to}")
        self.page.get_by_label("Email").fill(email)
        self.page.get_by_label("Password").fill(world.PASSWORD)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page.get_by_label(f"Account {email}")).to_be_visible()
        self.page.wait_for_load_state()
        return self.page


Visitor = Callable[..., Visit]


@pytest.fixture
def visitor(site: Site, browser: Browser, size: tuple[int, int]) -> Iterator[Visitor]:
    """Makes visits. After the test their consoles must have no errors."""
    with contextlib.ExitStack() as closing:
        visits: list[Visit] = []

        def make(other: tuple[int, int] | None = None, **options: object) -> Visit:
            width, height = other or size
            viewport = {"width": width, "height": height}
            context = browser.new_context(viewport=viewport, **options)  # type: ignore[arg-type]
            closing.callback(context.close)
            context.set_default_timeout(PATIENCE_MS)
            visit = Visit(site, context, context.new_page(), Watch())
            visit.page.on("console", visit.watch.on_console)
            visit.page.on("pageerror", lambda error: visit.watch.complaints.append(str(error)))
            visits.append(visit)
            return visit

        yield make
        for visit in visits:
            assert visit.watch.unexpected() == []


any_size = pytest.mark.parametrize(
    "size", [pytest.param(DESK, id="desk"), pytest.param(PHONE, id="phone", marks=pytest.mark.slow)]
)
"""For tests of what no layout changes: rows, keys, the network. The phone's size is for the slow tests."""

own_sizes = pytest.mark.parametrize("size", [pytest.param(DESK, id="sizes")])
"""For tests that set the sizes of their windows themselves."""


@pytest.fixture(params=[DESK, PHONE], ids=["desk", "phone"])
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    """The size of the window. A test that asks for it, a critic or an admin runs at a desktop's and a phone's size."""
    found: tuple[int, int] = request.param
    return found


@pytest.fixture
def critic(visitor: Visitor, scenes: world.World, size: tuple[int, int]) -> Visit:
    """A critic who is signed in, on the judging page."""
    visit = visitor(size)
    visit.sign_in(scenes.critic, to=f"/annotate/{scenes.slug}")
    return visit


@pytest.fixture
def admin(visitor: Visitor, history: world.World, size: tuple[int, int]) -> Visit:
    """An admin who is signed in, on a project with a history."""
    visit = visitor(size)
    visit.sign_in(history.admin, to=f"/admin/projects/{history.slug}")
    return visit


def axe_source() -> Path:
    """The accessibility checker."""
    found = next((path for path in AXE if path.exists()), None)
    if found is None:
        pytest.fail("axe-core is not fetched: run `make assets`.")
    return found


def axe_violations(page: Page) -> list[str]:
    """The violations of WCAG 2.2 AA that axe finds on the current page."""
    # Evaluated through the debugger, the script is not subject to the page's CSP.
    page.evaluate(axe_source().read_text(encoding="utf-8") + "; null")
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    result = page.evaluate("tags => axe.run(document, {runOnly: tags, resultTypes: ['violations']})", tags)
    return [
        f"{one['id']}: {one['help']}: {[node['target'] for node in one['nodes']]}: {one['nodes'][0]['failureSummary']}"
        for one in result["violations"]
    ]
