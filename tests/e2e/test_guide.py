"""The guide in a browser, under the content security policy: accessible, no wider than the screen, searchable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from playwright.sync_api import expect

from app.settings import ROOT
from app.web import guide
from tests.e2e import world
from tests.e2e.conftest import PHONE, Visitor, any_size, own_sizes
from tests.e2e.test_pages import Looks, any_looks, faults

pytestmark = pytest.mark.browser

PAGES = ("", "data/exports/", "glossary/", "reference/", "decisions/0003-the-gate/")
"""The start, one with code and tables, a long list, the one that is made of docstrings, a short one."""


@pytest.fixture(scope="module", autouse=True)
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The guide of these sources, in place of one that is built already."""
    folder = tmp_path_factory.mktemp("guide") / "help"
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guide, "FOLDER", folder)
        yield


@own_sizes
@any_looks
def test_pages_are_accessible_and_fit_the_screen(built: None, visitor: Visitor, looks: Looks) -> None:
    look_through(PAGES, visitor, looks)


@pytest.mark.slow
@own_sizes
@any_looks
def test_all_pages_are_accessible_and_fit_the_screen(built: None, visitor: Visitor, looks: Looks) -> None:
    paths = sorted(page.parent.relative_to(guide.FOLDER).as_posix() + "/" for page in guide.FOLDER.rglob("index.html"))
    assert len(paths) >= 30, paths
    look_through(["" if path == "./" else path for path in paths], visitor, looks)


def look_through(paths: Sequence[str], visitor: Visitor, looks: Looks) -> None:
    """Open each page of the guide and fail with what is wrong on any of them."""
    visit = visitor(reduced_motion="reduce")
    wrong = {}
    for path in paths:
        page = visit.open(f"/help/{path}")
        expect(page.get_by_role("main")).to_be_visible()
        for name in looks(page):
            if found := faults(page):
                wrong[f"{path}: {name}"] = found
    assert not wrong, wrong


@any_size
def test_a_word_is_found_without_a_network(built: None, visitor: Visitor, scenes: world.World) -> None:
    visit = visitor()
    page = visit.sign_in(scenes.critic, to="/annotate")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.get_by_role("link", name="Help").click()
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    field = page.get_by_role("textbox", name="Search")
    if visit.page.viewport_size == {"width": PHONE[0], "height": PHONE[1]}:
        page.locator("header label[for=__search]").first.click()
    field.press_sequentially("krippendorff")  # the search listens to keys, not to what is filled in
    page.locator(".md-search-result__link").filter(has_text="Glossary").first.click()
    expect(page.get_by_role("heading", name="Glossary", level=1)).to_be_visible()
    assert requests
    assert [url for url in requests if not url.startswith(visit.site.url)] == []
