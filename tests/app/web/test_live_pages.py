"""Polling tabs are answered without rendering. They see every change, and nothing that is not theirs."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.http import live_pages
from app.models import Project, Role, RoundState, WebSession
from app.web.admin.projects import overview
from tests import factories
from tests.app.web.conftest import Browser, person

PATH = "/admin/projects/scenes"
FRAGMENT = {"HX-Request": "true"}


@pytest.fixture
def project(session: Session) -> Project:
    """A project."""
    return factories.make_project(session, slug="scenes", name="Scenes")


@pytest.fixture
def etag(session: Session, browser: Browser, project: Project) -> str:
    """The ETag of the page that an admin sees."""
    browser.sign_in(person(session, role=Role.admin))
    return str(browser.get(PATH, headers=FRAGMENT).headers["etag"])


@pytest.fixture
def renderings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever the page is rendered."""
    times: list[int] = []
    make = overview.make_stations

    def counting(*args: object) -> object:
        times.append(1)
        return make(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(overview, "make_stations", counting)
    return times


def ask(browser: Browser, etag: str) -> int:
    return browser.client.get(PATH, headers={**FRAGMENT, "If-None-Match": etag}).status_code


def test_an_unchanged_page_is_not_rendered_again(browser: Browser, etag: str, renderings: list[int]) -> None:
    assert [ask(browser, etag) for _ in range(3)] == [304, 304, 304]
    assert renderings == []


def test_another_etag_gets_the_cached_page(browser: Browser, etag: str, renderings: list[int]) -> None:
    first = browser.client.get(PATH, headers=FRAGMENT)
    again = browser.client.get(PATH, headers={**FRAGMENT, "If-None-Match": '"an older one"'})
    assert (again.status_code, again.text, again.headers["etag"]) == (200, first.text, etag)
    assert again.headers["cache-control"] == "no-store"
    assert "text/html" in again.headers["content-type"]
    assert renderings == []


def test_people_see_only_their_own_pages(browser: Browser, etag: str, session: Session, project: Project) -> None:
    factories.make_round(session, project, state=RoundState.training)
    assert "Cancel round" in browser.client.get(PATH, headers=FRAGMENT).text
    viewer = person(session, role=Role.viewer)
    factories.make_member(session, project, Role.viewer, user=viewer)
    browser.sign_in(viewer)
    theirs = browser.client.get(PATH, headers={**FRAGMENT, "If-None-Match": etag})
    assert theirs.status_code == 200
    assert "Cancel round" not in theirs.text


def test_a_change_renders_the_page_again(
    browser: Browser, etag: str, renderings: list[int], session: Session, project: Project
) -> None:
    project.name = "Renamed"
    session.flush()
    ask(browser, etag)
    assert renderings == [1]
    factories.make_candidate_set(session, project)
    assert ask(browser, etag) == 200


def test_an_old_page_is_rendered_again(
    browser: Browser, etag: str, renderings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    later = time.monotonic() + live_pages.MAX_AGE + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert ask(browser, etag) == 304
    assert renderings == [1]


def test_a_signed_out_visitor_gets_nothing(browser: Browser, etag: str, session: Session) -> None:
    session.execute(delete(WebSession))
    assert ask(browser, etag) == 401


def test_only_the_newest_pages_are_kept(
    browser: Browser, etag: str, renderings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_pages, "MAX_PAGES", 1)
    browser.client.get(f"{PATH}/rounds", headers=FRAGMENT)
    assert ask(browser, etag) == 304
    assert renderings == [1]
