"""A lead's first time: an empty project, photos dropped in, answers, a round by hand, and the export in pandas."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from app.models import Project, Role, Round, RoundTrigger
from tests import factories
from tests.e2e import world
from tests.e2e.conftest import Site, Visitor, any_size, axe_violations

pytestmark = pytest.mark.browser
DROP = """
(target, files) => {
  const carried = new DataTransfer();
  for (const [name, data] of files) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    carried.items.add(new File([bytes], name, {type: "image/png"}));
  }
  for (const kind of ["dragover", "drop"]) {
    target.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: carried}));
  }
}
"""
QUESTIONS = ("What is it?", "What is on it?")


def check(page: Page) -> None:
    """The page is accessible and as wide as its window."""
    assert axe_violations(page) == []
    width, room = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width <= room


def drop_photos(page: Page) -> None:
    """Drop two pictures on the page."""
    pictures = [factories.image_bytes(size=(160, 120 + number)) for number in range(2)]
    files = [[f"photo {number}.png", base64.b64encode(data).decode()] for number, data in enumerate(pictures, 1)]
    page.locator(".drop-zone").evaluate(DROP, files)


@any_size
def test_from_an_empty_project_to_pandas(
    site: Site, visitor: Visitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.sessions.begin() as session:
        lead = factories.make_user(session, role=Role.admin, password=world.PASSWORD).email
    visit = visitor()
    page = visit.sign_in(lead, to="/admin/new-project")
    page.get_by_role("textbox", name="Name", exact=True).fill("Bird photos")
    expect(page.locator("#proposed-slug")).to_contain_text("bird-photos")
    page.locator(".save-bar button").click()
    expect(page.get_by_role("heading", name="Bird photos", level=1)).to_be_visible()

    page.goto(f"{site.url}/admin/projects/bird-photos/imports")
    check(page)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method) if request.url.endswith("/photos") else None)
    drop_photos(page)
    expect(page.get_by_role("heading", name="Photos", level=1)).to_be_visible()
    assert sent == ["POST", "POST"]  # one at a time, so that the page can say how far it is
    check(page)
    for number, question in enumerate(QUESTIONS, 1):
        page.locator(f"#question-{number}").fill(question)
        page.locator(f"#answer-{number}").fill("a bird")
        page.locator("details", has=page.locator(f"#candidates-{number}")).locator("summary").click()
        page.locator(f"#candidates-{number}").fill("it has feathers\nit is a bird")
    page.get_by_role("button", name="Add prompts").click()
    expect(page.get_by_role("rowheader")).to_have_count(2)
    check(page)

    page.goto(f"{site.url}/annotate/bird-photos")
    expect(page.locator(".judge")).to_have_attribute("data-state", "judging")
    instructions = page.get_by_role("button", name="Close the instructions")
    if instructions.is_visible():
        instructions.click()
    for question in QUESTIONS:
        expect(page.locator("body")).to_contain_text(question)
        page.wait_for_timeout(600)  # a verdict at once is taken for a second press of the key before
        page.locator(".candidate", has_text="it has feathers").first.click()
        page.get_by_role("button", name="Submit").click()
    expect(page.locator(".figures")).to_contain_text("2 today")

    page.goto(f"{site.url}/admin/projects/bird-photos/rounds/preview")
    page.locator("main form button.main").click()
    expect(page.get_by_role("heading", name="Training round 1", level=1)).to_be_visible()
    with site.sessions() as session:
        started = session.query(Round).join(Project).filter(Project.slug == "bird-photos").one()
        assert started.trigger is RoundTrigger.manual

    page.goto(f"{site.url}/admin/projects/bird-photos")
    page.get_by_role("link", name="Export", exact=True).first.click()
    check(page)
    page.get_by_label("Format").select_option("csv")
    download = page.get_by_role("link", name="Download bird-photos-verdicts.csv")
    with page.expect_download() as arriving:
        download.click()
    arriving.value.save_as(tmp_path / "bird-photos-verdicts.csv")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(page.locator("#code-pandas").inner_text(), scope)  # noqa: S102 - what the page says is tried
    rows = scope["rows"]
    assert list(rows["question"]) == list(QUESTIONS)  # type: ignore[index]
    assert list(rows["picked"]) == ["it has feathers"] * 2  # type: ignore[index]
