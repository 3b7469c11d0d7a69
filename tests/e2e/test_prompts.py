"""The pages of prompts: the filtered list, one prompt with its verdicts, adding and changing one."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select

from app.models import Prompt, PromptState, Split, Verdict, VerdictKind
from tests import factories
from tests.e2e import fortnight, world
from tests.e2e.conftest import Site, Visit

pytestmark = pytest.mark.browser


def narrow(page: Page, label: str, value: str) -> int:
    """The number of prompts that match when a filter has a value."""
    page.goto(page.url.split("?")[0])
    page.get_by_label(label, exact=True).select_option(value)
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_label(label, exact=True)).to_have_value(value)
    return page.get_by_role("rowheader").count()


def test_found_by_words_and_filters(admin: Visit, history: world.World, site: Site) -> None:
    with site.sessions.begin() as session:
        fortnight.add_fortnight(session, history)
        flagged = session.scalars(select(Verdict).where(Verdict.kind == VerdictKind.flagged)).all()
        val = session.scalars(select(Prompt.id).where(Prompt.split == Split.val)).all()
        waiting = session.scalars(select(Prompt.id).where(Prompt.state == PromptState.waiting)).all()
    page = admin.open("/admin/projects/scenes/prompts")
    page.get_by_label("Question, answer or external id").fill("past-0003")
    page.keyboard.press("Enter")
    expect(page.get_by_role("rowheader")).to_have_count(1)
    expect(page.get_by_role("cell", name=re.compile("past-0003"))).to_be_visible()
    page.get_by_role("rowheader").get_by_role("link").click()
    expect(page.get_by_role("img", name="Image 1 of 1")).to_be_visible()
    page = admin.open("/admin/projects/scenes/prompts")
    assert narrow(page, "Split", "val") == len(val)
    assert narrow(page, "State", "waiting") == len(waiting)
    assert narrow(page, "Critics", "flagged") == len(flagged) >= 1
    assert narrow(page, "Critics", "apart") >= 1
    assert narrow(page, "Written by", "1") >= 1
    page.get_by_label("Question, answer or external id").fill("nothing of the sort")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("heading", name="No prompt fits")).to_be_visible()


def test_added_by_a_form_and_changed(admin: Visit, site: Site) -> None:
    admin.watch.allow.append("422")
    page = admin.open("/admin/projects/scenes/prompts")
    page.get_by_role("link", name="Add a prompt").click()
    picture = {"name": "lawn.png", "mimeType": "image/png", "buffer": factories.image_bytes(size=(64, 48))}
    page.get_by_label("Answer", exact=True).fill("a dog")
    page.get_by_role("button", name=re.compile("^Add")).click()
    expect(page.get_by_label("Images")).to_have_accessible_description(re.compile("Choose an image."))
    page.get_by_label("Images").set_input_files([picture])  # type: ignore[list-item]
    page.get_by_role("button", name=re.compile("^Add")).click()
    question = page.get_by_label("Question", exact=True)
    expect(question).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Answer", exact=True)).to_have_value("a dog")
    question.fill("what runs over the lawn?")
    page.get_by_label("Images").set_input_files([picture])  # type: ignore[list-item]
    page.get_by_role("button", name=re.compile("^Add")).click()
    expect(page.get_by_role("heading", name="what runs over the lawn?")).to_be_visible()
    expect(page.get_by_text("The prompt is saved.")).to_be_visible()
    page.get_by_role("link", name="Change", exact=True).click()
    page.get_by_label("Answer", exact=True).fill("a cat")
    page.get_by_role("button", name=re.compile("^Save")).click()
    expect(page.get_by_role("main")).to_contain_text("a cat")
    with site.sessions() as session:
        found = session.scalars(select(Prompt).where(Prompt.question == "what runs over the lawn?")).one()
        assert found.answer == "a cat"
