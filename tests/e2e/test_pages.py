"""Every page: accessible, light, within the policy, at a desk and on a phone, in light and dark."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, Request, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Project
from app.services import gold
from app.services.actors import SYSTEM
from app.services.gold import GoldCandidate, GoldIn
from tests.e2e import world
from tests.e2e.conftest import DESK, PHONE, Site, Visit, Visitor, axe_violations

pytestmark = pytest.mark.browser

CRITICS = ("/annotate", "/annotate/scenes", "/annotate/scenes/history", "/annotate/scenes/compare")
ADMINS = (
    "/admin",
    "/admin/projects/scenes",
    "/admin/projects/scenes/rounds",
    "/admin/projects/scenes/rounds/preview",
    "/admin/projects/scenes/rounds/3",
    "/admin/projects/scenes/rounds/9",
    "/admin/projects/scenes/rounds/3/snapshot",
    "/admin/projects/scenes/versions",
    "/admin/projects/scenes/compare",
    "/admin/projects/scenes/comparisons",
    "/admin/projects/scenes/comparisons/1",
    "/admin/projects/scenes/prompts",
    "/admin/projects/scenes/prompts/new",
    "/admin/projects/scenes/gold",
    "/admin/projects/scenes/critics",
    "/admin/projects/scenes/critics/2",
    "/admin/projects/scenes/settings",
    "/admin/new-project",
    "/admin/users",
    "/admin/users/1",
    "/admin/audit",
)
MOST_BYTES = 150_000


def faults(page: Page) -> list[str]:
    """What is wrong with the page: rules of accessibility, or a need to scroll sideways."""
    found = axe_violations(page)
    width = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    return [*found, *([f"scrolls sideways: {width}"] if width[0] > width[1] else [])]


def add_gold(session: Session, prompt_id: int) -> None:
    """Make a prompt a gold one."""
    project = session.scalars(select(Project).where(Project.slug == "scenes")).one()
    known = [GoldCandidate(text="it can be seen", fits=True), GoldCandidate(text="it is so", fits=False)]
    gold.add_gold(session, SYSTEM, project, GoldIn(prompt=str(prompt_id), candidates=known))


def test_the_judging_page_is_one_screen(visitor: Visitor, scenes: world.World) -> None:
    for size in (DESK, PHONE):
        visit = visitor(size)
        page = visit.sign_in(scenes.critic, to="/annotate/scenes")
        expect(page.locator(".judge")).to_have_attribute("data-state", "judging")
        assert page.evaluate("document.documentElement.scrollHeight") == size[1]
        assert page.get_by_role("button", name="Submit").is_visible()


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (PHONE, "dark")], ids=["desk-light", "phone-dark"])
def test_every_page_is_accessible(
    visitor: Visitor, history: world.World, site: Site, size: tuple[int, int], scheme: str
) -> None:
    with site.sessions.begin() as session:
        world.add_running_round(session, history)
        add_gold(session, history.prompt_ids[1])
    wrong: dict[str, list[str]] = {}

    def look(visit: Visit, paths: tuple[str, ...]) -> None:
        for path in paths:
            page = visit.open(path)
            if path == "/annotate/scenes":
                expect(page.locator(".judge")).to_have_attribute("data-state", "judging")
            if found := faults(page):
                wrong[path] = found

    stranger = visitor(size, color_scheme=scheme)
    look(stranger, ("/sign-in",))
    critic = visitor(size, color_scheme=scheme)
    critic.sign_in(history.critic)
    look(critic, CRITICS)
    admin = visitor(size, color_scheme=scheme)
    admin.sign_in(history.admin)
    prompt = f"/admin/projects/scenes/prompts/{history.prompt_ids[0]}"
    look(admin, (*ADMINS, prompt, f"{prompt}/gold"))
    assert wrong == {}


def test_dialogs_of_the_judging_page_are_accessible(critic: Visit) -> None:
    page = critic.page
    expect(page.locator(".judge")).to_have_attribute("data-state", "judging")
    wrong = {}
    for key in ("s", "f", "?", "z"):
        page.keyboard.press(key)
        expect(page.get_by_role("dialog")).to_be_visible()
        wrong[key] = axe_violations(page)
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_be_hidden()
    assert not any(wrong.values()), wrong


def test_pages_are_light_on_first_load(visitor: Visitor, scenes: world.World) -> None:
    visit = visitor()
    visit.sign_in(scenes.critic, to="/annotate")
    sizes: dict[str, int] = {}

    def weigh(request: Request) -> None:
        answer = request.response()
        if "/api/v1/images/" not in request.url and answer and answer.ok:
            sizes[request.url] = request.sizes()["responseBodySize"]

    fresh = visitor()
    fresh.context.add_cookies(visit.context.cookies())
    fresh.page.on("requestfinished", weigh)
    fresh.open("/annotate/scenes")
    fresh.page.wait_for_load_state("networkidle")
    assert sum(size > 0 for size in sizes.values()) > 10, sizes
    assert sum(sizes.values()) < MOST_BYTES, sizes


def test_the_theme_is_chosen_and_kept(critic: Visit) -> None:
    page = critic.page
    page.get_by_role("button", name="Theme: as the system").click()
    page.get_by_role("button", name="Theme: light").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
