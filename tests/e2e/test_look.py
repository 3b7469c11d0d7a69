"""What all pages share: figures, dates, motion, the loop; and what live updates leave unchanged."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect
from sqlalchemy import select

from app.models import Round, RoundState
from tests.e2e import world
from tests.e2e.conftest import DESK, Site, Visit, Visitor, any_size

pytestmark = pytest.mark.browser


def test_figures_line_up_and_lead_to_what_they_count(admin: Visit, size: tuple[int, int]) -> None:
    page = admin.page
    stations = page.get_by_role("region", name="Progress of the project").get_by_role("listitem")
    expect(stations).to_have_count(4)
    places = [station.get_by_role("link").first.get_attribute("href") for station in stations.all()]
    assert [str(place).rsplit("/", 1)[-1].split("?")[0] for place in places] == [
        "prompts",
        "critics",
        "rounds",
        "versions",
    ]
    page = admin.open("/admin/projects/scenes/critics")
    figure = page.get_by_role("cell").filter(has=page.get_by_role("link")).first
    assert figure.evaluate("one => getComputedStyle(one).fontVariantNumeric") == "tabular-nums"
    if size == DESK:  # on a phone a row is a card, with each figure after its name
        assert figure.evaluate("one => getComputedStyle(one).textAlign") == "end"
    count = int(figure.get_by_role("link").inner_text())
    figure.get_by_role("link").click()
    verdicts = page.get_by_role("region", name="Verdicts", exact=True)
    expect(verdicts.get_by_role("listitem")).to_have_count(count)


@any_size
def test_dates_are_relative_with_the_exact_one_on_hover(admin: Visit) -> None:
    page = admin.open("/admin/projects/scenes/versions")
    made = page.get_by_role("table").first.get_by_role("time").first
    expect(made).to_have_text(re.compile(r"^(just now|\d+ (s|min|h|days?) ago|\d+ \w+ \d{4})$"))
    expect(made).to_have_attribute("title", re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC$"))


@any_size
@pytest.mark.parametrize(("motion", "most"), [("no-preference", 0.15), ("reduce", 0.0)])
def test_motion_is_short_or_none(visitor: Visitor, history: world.World, motion: str, most: float) -> None:
    visit = visitor(reduced_motion=motion)
    visit.sign_in(history.admin)
    for path in ("/annotate/scenes", "/admin/projects/scenes", "/admin/projects/scenes/versions"):
        page = visit.open(path)
        page.wait_for_load_state()
        slowest = page.evaluate(
            """() => Math.max(...[...document.querySelectorAll("*")].flatMap((one) =>
                getComputedStyle(one).transitionDuration.split(",").map(parseFloat)))"""
        )
        assert slowest <= most, path


@any_size
def test_focus_stays_while_the_page_follows_the_server(
    visitor: Visitor, history: world.World, site: Site, size: tuple[int, int]
) -> None:
    with site.sessions.begin() as session:
        world.add_running_round(session, history)
    page = visitor(size).sign_in(history.admin, to="/admin/projects/scenes")
    link = page.get_by_role("region", name="Current training round").get_by_role("link", name="Training round 9")
    link.focus()
    place = page.evaluate("scrollY")
    with site.sessions.begin() as session:
        running = session.scalars(select(Round).where(Round.number == 9)).one()
        running.progress = {**running.progress, "fraction": 0.81}
    expect(page.get_by_text("81 %").first).to_be_visible()
    expect(link).to_be_focused()
    assert page.evaluate("scrollY") == place
    # Only a new stage is announced, once, not every figure.
    status = page.get_by_role("region", name="Progress of the project").get_by_role("status")
    expect(status).to_have_text(re.compile("^Training round: "))
    with site.sessions.begin() as session:
        running = session.scalars(select(Round).where(Round.number == 9)).one()
        running.state, running.worker = RoundState.failed, None
    expect(status).not_to_have_text(re.compile("^Training round: "))
