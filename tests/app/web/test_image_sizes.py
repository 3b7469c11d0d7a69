"""What pages load of large photographs: derivatives of the size they are shown in, never the original."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from sqlalchemy.orm import Session

from app.models import Image, Project, Role
from app.web.rendering import TEMPLATES, srcset
from tests import factories
from tests.app.web.conftest import Browser, person

URL = "/api/v1/images/x"


class Images(HTMLParser):
    """The `img` elements of a page, each with its addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            named = dict(attrs)
            candidates = [one.split()[0] for one in (named.get("srcset") or "").split(",") if one]
            self.found.append([named["src"] or "", *candidates])


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    return [factories.photograph(size=size, seed=n) for n, size in enumerate([(4000, 3000), (3000, 4000)])]


@pytest.fixture
def project(session: Session, photos: list[bytes]) -> Project:
    """A project with 50 prompts that show photographs of 12 megapixels, wide ones and tall ones."""
    project = factories.make_project(session, slug="scenes")
    images: list[Image] = [factories.make_image(session, photo) for photo in photos]
    for n in range(50):
        factories.make_prompt(session, project, images=[images[n % len(images)]])
    return project


@pytest.fixture
def signed_in(session: Session, browser: Browser) -> Browser:
    browser.sign_in(person(session, role=Role.admin))
    return browser


def heaviest(browser: Browser, addresses: list[str], known: dict[str, int]) -> int:
    """The bytes of an element's largest candidate."""
    for address in addresses:
        if address not in known:
            answer = browser.client.get(address)
            assert answer.status_code == 200
            known[address] = len(answer.content)
    return max(known[address] for address in addresses)


class TestPages:
    @pytest.mark.parametrize(("look", "most"), [("", 200_000), ("&view=grid", 1_000_000)])
    def test_fifty_photographs(
        self, signed_in: Browser, project: Project, photos: list[bytes], look: str, most: int
    ) -> None:
        text = signed_in.get(f"/admin/projects/{project.slug}/prompts?per=50{look}").text
        known: dict[str, int] = {}
        loaded = [heaviest(signed_in, one, known) for one in Images(text).found]
        assert len(loaded) == 50
        assert 50_000 < sum(loaded) < most
        assert sum(len(photo) for photo in photos) > most

    def test_where_one_is_looked_at(self, signed_in: Browser, session: Session, project: Project) -> None:
        image = factories.make_image(session, factories.image_bytes(size=(2000, 10)))
        prompt = factories.make_prompt(session, project, images=[image], priority=9)
        factories.make_candidate_set(session, project, prompt=prompt, priority=9)
        at = f"/admin/projects/{project.slug}/prompts/{prompt.id}"
        url = f"/api/v1/images/{image.sha256}"
        for page in (at, f"{at}/gold", f"/annotate/{project.slug}"):
            text = signed_in.get(page).text
            assert Images(text).found == [[f"{url}?width=480", *(f"{url}?width={n}" for n in (96, 480, 1600))]], page
            assert f'href="{url}"' in text or f'data-original="{url}"' in text, "the original is for zooming"


class TestSrcset:
    def test_the_original_is_its_own_largest(self) -> None:
        assert srcset(URL, 90) == f"{URL}?width=96 90w"
        assert srcset(URL, 480) == f"{URL}?width=96 96w, {URL}?width=480 480w"
        assert srcset(URL, 1600) == f"{URL}?width=96 96w, {URL}?width=480 480w, {URL}?width=1600 1600w"

    def test_a_larger_original_is_left_out(self) -> None:
        assert srcset(URL, 1601) == f"{URL}?width=96 96w, {URL}?width=480 480w, {URL}?width=1600 1600w"


class TestTemplates:
    def test_no_image_without_a_width(self) -> None:
        found = [
            (path.name, element)
            for path in TEMPLATES.rglob("*.html")
            for element in re.findall(r"<img .*?alt=", path.read_text())
        ]
        assert len(found) >= 9
        assert [one for one in found if not re.search(r"\b(at_width|sources)\(", one[1])] == []
