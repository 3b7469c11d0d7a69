"""The page of a round: its snapshot, its log, and retrying or rerunning it."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect
from sqlalchemy import select

from app.models import Round, RoundState
from tests.e2e import fortnight, world
from tests.e2e.conftest import Site, Visit, any_size

pytestmark = pytest.mark.browser


@any_size
def test_what_it_was_made_of(admin: Visit, history: world.World, site: Site) -> None:
    with site.sessions.begin() as session:
        fortnight.add_fortnight(session, history)
    page = admin.open("/admin/projects/scenes/rounds")
    page.get_by_role("link", name="Round 2", exact=True).click()
    log = page.get_by_role("log", name="Log entries")
    expect(log).to_contain_text("epoch 5, loss")
    expect(log).to_contain_text("succeeded after")
    snapshot = page.get_by_role("region", name="Snapshot")
    snapshot.get_by_text("Settings used").click()
    expect(snapshot.get_by_text("Learning rate")).to_be_visible()
    count = snapshot.get_by_role("definition").nth(1)
    expected = int(count.inner_text())
    count.get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Snapshot")
    expect(page.get_by_role("table").get_by_role("row")).to_have_count(expected + 1)


@any_size
def test_a_failed_one_goes_on_from_its_checkpoint(admin: Visit, history: world.World, site: Site) -> None:
    with site.sessions.begin() as session:
        world.add_running_round(session, history)
        found = session.scalars(select(Round).where(Round.number == 9)).one()
        found.state, found.error, found.worker = RoundState.failed, "The disk is full.", None
    page = admin.open("/admin/projects/scenes/rounds/9")
    expect(page.get_by_role("alert")).to_contain_text("This round failed. The disk is full.")
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("The training round resumes from its last checkpoint.")).to_be_visible()
    expect(page.get_by_role("heading", name=re.compile("^Training round 9 queued"))).to_be_visible()
    with site.sessions() as session:
        assert session.scalars(select(Round).where(Round.number == 9)).one().state is RoundState.queued


@any_size
def test_run_again_from_its_snapshot_with_the_same_seed(admin: Visit, site: Site) -> None:
    page = admin.open("/admin/projects/scenes/rounds/2")
    asked: list[str] = []

    def accept(question: object) -> None:
        asked.append(getattr(question, "message", ""))
        getattr(question, "accept")()  # noqa: B009 - the dialog's type is Playwright's own

    page.on("dialog", accept)
    page.get_by_role("button", name="Rerun from snapshot").click()
    expect(page.get_by_role("heading", name=re.compile("^Training round 4 queued"))).to_be_visible()
    assert asked == ["Start a new training round with the same data, settings and seed?"]
    with site.sessions() as session:
        first, again = session.scalars(select(Round).where(Round.number.in_((2, 4))).order_by(Round.number)).all()
        assert again.snapshot_id == first.snapshot_id
