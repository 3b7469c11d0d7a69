"""Importing prompts in the browser: upload a file, set what its columns mean, import it, read what was rejected."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from app.models import Import, ImportState, Prompt
from app.services.imports.running import run_import
from tests import factories
from tests.app.services.imports.importing import archive
from tests.e2e import world
from tests.e2e.conftest import DESK, PHONE, Visitor, any_size, axe_violations

pytestmark = pytest.mark.browser
SHOTS = os.environ.get("ILLUME_SHOTS", "")


def shoot(page: Page, name: str) -> None:
    """Save pictures of the page, light and dark, where a folder for them is set."""
    if SHOTS:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=Path(SHOTS) / f"{name}-{scheme}.png", full_page=True)
        page.emulate_media(color_scheme="light")


def no_sideways_scroll(page: Page) -> None:
    """The page fits the width of its window."""
    width, room = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width <= room


def a_file() -> bytes:
    """A zip with a table of 330 rows whose columns have names of their own, three of them bad."""
    rows = [
        {"pic": "images/1.png", "frage": f"What is it, {number}?", "antwort": "a <b>tree</b>", "why": "it is green"}
        for number in range(330)
    ]
    rows[1]["pic"] = "images/none.png"
    rows[7]["frage"] = ""
    lines = b"\n".join(json.dumps(row).encode() for row in rows) + b"\n{broken\n"
    return archive({"t.jsonl": lines, "images/1.png": factories.image_bytes()})


@pytest.mark.parametrize(("size", "name"), [(DESK, "desk"), (PHONE, "phone")], ids=["desk", "phone"])
def test_the_whole_way(visitor: Visitor, scenes: world.World, size: tuple[int, int], name: str) -> None:
    visit = visitor(size)
    visit.watch.allow.append("422")
    page = visit.sign_in(scenes.admin, to=f"/admin/projects/{scenes.slug}/prompts")
    page.get_by_role("link", name="Import prompts").click()
    expect(page.get_by_role("heading", name="Import prompts", level=1)).to_be_visible()
    no_sideways_scroll(page)
    assert axe_violations(page) == []
    shoot(page, f"{name}-1-choose")

    # An unreadable file is reported beside the file field.
    page.get_by_label("Prompts file").set_input_files({"name": "x.zip", "mimeType": "", "buffer": archive({})})
    page.get_by_role("button", name="Preview").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("must hold one table")
    expect(page.get_by_label("Prompts file")).to_have_accessible_description(re.compile("must hold one table"))

    page.get_by_label("Prompts file").set_input_files({"name": "trees.zip", "mimeType": "", "buffer": a_file()})
    page.get_by_label("Split for rows without one").select_option("val")
    page.get_by_role("button", name="Preview").press("Enter")
    expect(page.get_by_text("Nothing has been imported yet")).to_be_visible()
    expect(page.get_by_text("8 of the first 8 rows would be rejected")).to_be_visible()
    shoot(page, f"{name}-2-columns")

    for column, target in (("pic", "Image"), ("frage", "Question"), ("antwort", "Answer")):
        page.get_by_label(column, exact=True).select_option(target)
    page.get_by_label("why", exact=True).select_option("Reference explanation")
    page.get_by_role("button", name="Refresh preview").press("Enter")
    expect(page.get_by_text("2 of the first 8 rows would be rejected")).to_be_visible()
    expect(page.get_by_text("There is no file 'images/none.png' in the zip or folder.")).to_be_visible()
    expect(page.get_by_text("a <b>tree</b>").first).to_be_visible()  # shown as text, not as markup
    no_sideways_scroll(page)
    assert axe_violations(page) == []
    shoot(page, f"{name}-3-looked")

    page.get_by_role("button", name="Start import").press("Enter")
    expect(page.get_by_role("status").filter(has_text="Waiting for a worker.")).to_be_visible()
    with visit.site.sessions() as session:
        import_id = session.query(Import.id).one()[0]
        assert session.get_one(Import, import_id).state is ImportState.queued
    run_import(import_id, worker="w", check=lambda: None, seconds=0.0)
    expect(page.get_by_text("200 of 331")).to_be_visible()
    shoot(page, f"{name}-4-going")
    run_import(import_id, worker="w", check=lambda: None)
    expect(page.get_by_role("status").filter(has_text="Done.")).to_be_visible()
    rejected = page.get_by_role("table").get_by_role("row")
    expect(rejected).to_have_count(4)
    expect(rejected.nth(3)).to_contain_text("not valid JSON")
    no_sideways_scroll(page)
    assert axe_violations(page) == []
    shoot(page, f"{name}-5-done")
    with page.expect_download() as download:
        page.get_by_role("link", name="All as CSV").click()
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in lines] == ["line", "2", "8", "331"]

    page.reload()
    expect(page.get_by_role("status").filter(has_text="Done.")).to_be_visible()
    with visit.site.sessions() as session:
        added = session.query(Prompt).filter_by(project_id=scenes.project_id, split="val").all()
        assert len(added) == 328
        assert all(prompt.references == ["it is green"] for prompt in added)


@any_size
def test_a_draft_is_discarded_and_a_template_downloaded(visitor: Visitor, scenes: world.World) -> None:
    visit = visitor()
    page = visit.sign_in(scenes.admin, to=f"/admin/projects/{scenes.slug}/imports")
    with page.expect_download() as download:
        page.get_by_role("link", name="zip", exact=True).click()
    template = Path(download.value.path()).read_bytes()
    page.get_by_label("Prompts file").set_input_files({"name": "prompts.zip", "mimeType": "", "buffer": template})
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_text("All of the first 2 rows would be imported.")).to_be_visible()
    page.on("dialog", lambda question: question.accept())
    page.get_by_role("button", name="Discard").click()
    expect(page.get_by_text("Nothing was imported")).to_be_visible()
    with visit.site.sessions() as session:
        assert session.query(Import).count() == 0


@any_size
def test_a_new_project_is_tried_with_sample_photographs(visitor: Visitor, scenes: world.World) -> None:
    visit = visitor(DESK)
    with visit.site.sessions.begin() as session:
        new = factories.make_project(session, slug="new", name="New")
    page = visit.sign_in(scenes.admin, to="/admin/projects/new")
    page.get_by_role("region", name="First steps").get_by_role("link", name="Add pictures").click()
    page.get_by_role("button", name="Try with 8 sample photographs").click()
    expect(page.get_by_role("heading", name="photographs.zip")).to_be_visible()
    with visit.site.sessions() as session:
        import_id = session.query(Import.id).filter_by(project_id=new.id).one()[0]
    run_import(import_id, worker="w", check=lambda: None)
    page.goto(visit.site.url + "/admin/projects/new")
    steps = page.get_by_role("region", name="First steps").get_by_role("listitem")
    expect(steps.filter(has_text="done")).to_have_count(1)
    expect(steps.filter(has_text="done")).to_contain_text("Add pictures")
    steps.get_by_role("link", name="Give the first verdict").click()
    expect(page.locator(".judge")).to_have_attribute("data-state", "judging")
    expect(page.locator(".candidate").first).to_be_visible()
