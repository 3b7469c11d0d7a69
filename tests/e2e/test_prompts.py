"""The pages of prompts: the filtered list, one prompt with its verdicts, adding and changing one."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import FilePayload, Page, expect
from sqlalchemy import select

from app.models import Project, Prompt, PromptState, Split, Verdict, VerdictKind
from app.web.admin.prompts import many
from tests import factories
from tests.e2e import fortnight, world
from tests.e2e.conftest import Site, Visit, any_size

pytestmark = pytest.mark.browser


def narrow(page: Page, label: str, value: str) -> int:
    """The number of prompts that match when a filter has a value."""
    page.goto(page.url.split("?")[0])
    page.get_by_label(label, exact=True).select_option(value)
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_label(label, exact=True)).to_have_value(value)
    return page.get_by_role("rowheader").count()


@any_size
def test_found_by_words_and_filters(admin: Visit, history: world.World, site: Site) -> None:
    with site.sessions.begin() as session:
        fortnight.add_fortnight(session, history)
        flagged = session.scalars(select(Verdict).where(Verdict.kind == VerdictKind.flagged)).all()
        val = session.scalars(select(Prompt.id).where(Prompt.split == Split.val)).all()
        waiting = session.scalars(select(Prompt.id).where(Prompt.state == PromptState.waiting)).all()
    page = admin.open("/admin/projects/scenes/prompts")
    page.get_by_label("Question, answer or external ID").fill("past-0003")
    page.keyboard.press("Enter")
    expect(page.get_by_role("rowheader")).to_have_count(1)
    expect(page.get_by_role("cell", name=re.compile("past-0003"))).to_be_visible()
    page.get_by_role("rowheader").get_by_role("link").click()
    expect(page.get_by_role("img", name="Image 1 of 1")).to_be_visible()
    page = admin.open("/admin/projects/scenes/prompts")
    assert narrow(page, "Split", "val") == len(val)
    assert narrow(page, "State", "waiting") == len(waiting)
    assert narrow(page, "Verdicts", "flagged") == len(flagged) >= 1
    assert narrow(page, "Verdicts", "apart") >= 1
    assert narrow(page, "Written by", "1") >= 1
    page.get_by_label("Question, answer or external ID").fill("nothing of the sort")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("heading", name="No matches")).to_be_visible()


@any_size
def test_added_by_a_form_and_changed(admin: Visit, site: Site) -> None:
    admin.watch.allow.append("422")
    page = admin.open("/admin/projects/scenes/prompts")
    page.get_by_role("link", name="Add a prompt").click()
    picture: FilePayload = {"name": "lawn.png", "mimeType": "image/png", "buffer": factories.image_bytes(size=(64, 48))}
    page.get_by_label("Answer", exact=True).fill("a dog")
    page.get_by_role("button", name=re.compile("^Add")).click()
    expect(page.get_by_label("Images")).to_have_accessible_description(re.compile("Choose an image."))
    page.get_by_label("Images").set_input_files([picture])
    page.get_by_role("button", name=re.compile("^Add")).click()
    question = page.get_by_label("Question", exact=True)
    expect(question).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Answer", exact=True)).to_have_value("a dog")
    question.fill("what runs over the lawn?")
    page.get_by_label("Images").set_input_files([picture])
    page.get_by_role("button", name=re.compile("^Add")).click()
    expect(page.get_by_role("heading", name="what runs over the lawn?")).to_be_visible()
    expect(page.get_by_text("Prompt saved.")).to_be_visible()
    page.get_by_role("link", name="Edit", exact=True).click()
    page.get_by_label("Answer", exact=True).fill("a cat")
    page.get_by_role("button", name=re.compile("^Save")).click()
    expect(page.get_by_role("main")).to_contain_text("a cat")
    with site.sessions() as session:
        found = session.scalars(select(Prompt).where(Prompt.question == "what runs over the lawn?")).one()
        assert found.answer == "a cat"


COVERED = """() => {
  const field = document.activeElement.getBoundingClientRect();
  return [...document.querySelectorAll(".toast")].some((toast) => {
    const box = toast.getBoundingClientRect();
    return box.left < field.right && box.right > field.left && box.top < field.bottom && box.bottom > field.top;
  });
}"""


SCROLL_TO = "(field, share) => window.scrollBy(0, field.getBoundingClientRect().bottom - innerHeight * share)"


def test_messages_never_cover_the_field_that_is_typed_in(admin: Visit) -> None:
    page = admin.open("/admin/projects/scenes/prompts/new")
    page.evaluate("document.querySelector('main').style.minHeight = '200vh'")
    fields = page.locator("form.form input.input, form.form textarea, form.form select").all()
    assert len(fields) >= 7
    said = [f"Message {number}: something went wrong, and this is how it can be mended." for number in range(2)]
    for first in ("message", "field"):
        for field in fields:
            for below in (0.95, 0.05):  # near the bottom of the window, and near its top
                page.evaluate("document.querySelectorAll('.toast').forEach((one) => one.remove())")
                if first == "message":
                    page.evaluate("(said) => said.forEach((text) => window.illume.toast(text))", said)
                field.focus()
                place = (
                    "(field, share) => window.scrollBy(0, field.getBoundingClientRect().bottom - innerHeight * share)"
                )
                field.evaluate(place, below)
                if first == "field":
                    page.evaluate("(said) => said.forEach((text) => window.illume.toast(text))", said)
                page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
                assert page.locator(".toast").count() == 2
                assert not page.evaluate(COVERED), (field.get_attribute("name"), below, first)


@any_size
def test_all_that_match_are_changed_in_steps(
    admin: Visit, history: world.World, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "STEP", 40)
    with site.sessions.begin() as session:
        project = session.get_one(Project, history.project_id)
        for number in range(70):
            factories.make_prompt(session, project, question=f"a boat, number {number}?")
    page = admin.open("/admin/projects/scenes/prompts?q=a+boat")
    expect(page.get_by_label(re.compile("^Select all"))).to_have_count(0)
    page.get_by_label("All on this page").check()
    page.get_by_label("Select all 70 that match").check()
    page.get_by_label("What to do with the selected prompts").select_option("Set priority")
    page.get_by_label("Priority", exact=True).fill("7")
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_text("70 prompts set to priority 7.")).to_be_visible()
    expect(page.get_by_role("rowheader")).to_have_count(50)
    with site.sessions() as session:
        changed = session.scalars(select(Prompt.question).where(Prompt.priority == 7)).all()
        assert len(changed) == 70
        assert all(one.startswith("a boat") for one in changed)
    # The list that came with the last step works like the first one.
    page.get_by_label("All on this page").check()
    everything = page.get_by_label("Select all 70 that match")
    everything.check()
    page.get_by_role("checkbox", name="Select: a boat, number 3?").uncheck()
    expect(everything).not_to_be_checked()
    expect(page.get_by_text("49 selected")).to_be_visible()
