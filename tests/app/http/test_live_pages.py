"""Tabs that only wait are answered without the page being made, and see every change and nothing that is not theirs."""

from __future__ import annotations

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
    """The tag of the page as an admin has it."""
    browser.sign_in(person(session, role=Role.admin))
    return str(browser.get(PATH, headers=FRAGMENT).headers["etag"])


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever the page is made."""
    times: list[int] = []
    make = overview.stations_of

    def counting(*args: object) -> object:
        times.append(1)
        return make(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(overview, "stations_of", counting)
    return times


def ask(browser: Browser, etag: str) -> int:
    return browser.client.get(PATH, headers={**FRAGMENT, "If-None-Match": etag}).status_code


def test_nothing_new_is_said_without_making_the_page(browser: Browser, etag: str, made: list[int]) -> None:
    assert [ask(browser, etag) for _ in range(3)] == [304, 304, 304]
    assert made == []


def test_another_tag_is_answered_with_the_page_as_it_was_made(browser: Browser, etag: str, made: list[int]) -> None:
    first = browser.client.get(PATH, headers=FRAGMENT)
    again = browser.client.get(PATH, headers={**FRAGMENT, "If-None-Match": '"an older one"'})
    assert (again.status_code, again.text, again.headers["etag"]) == (200, first.text, etag)
    assert again.headers["cache-control"] == "no-store"
    assert "text/html" in again.headers["content-type"]
    assert made == []


def test_each_sees_their_own(browser: Browser, etag: str, session: Session, project: Project) -> None:
    factories.make_round(session, project, state=RoundState.training)
    assert "Cancel the round" in browser.client.get(PATH, headers=FRAGMENT).text
    viewer = person(session, role=Role.viewer)
    factories.make_member(session, project, Role.viewer, user=viewer)
    browser.sign_in(viewer)
    theirs = browser.client.get(PATH, headers={**FRAGMENT, "If-None-Match": etag})
    assert theirs.status_code == 200
    assert "Cancel the round" not in theirs.text


def test_a_change_makes_it_anew(
    browser: Browser, etag: str, made: list[int], session: Session, project: Project
) -> None:
    project.name = "Renamed"
    session.flush()
    ask(browser, etag)
    assert made == [1]
    factories.make_candidate_set(session, project)
    assert ask(browser, etag) == 200


def test_time_makes_it_anew(browser: Browser, etag: str, made: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    later = live_pages.time.monotonic() + live_pages.MAX_AGE + 1
    monkeypatch.setattr(live_pages.time, "monotonic", lambda: later)
    assert ask(browser, etag) == 304
    assert made == [1]


def test_who_is_signed_out_gets_nothing(browser: Browser, etag: str, session: Session) -> None:
    session.execute(delete(WebSession))
    assert ask(browser, etag) == 401


def test_only_the_latest_are_kept(
    browser: Browser, etag: str, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_pages, "MAX_PAGES", 1)
    browser.client.get(f"{PATH}/rounds", headers=FRAGMENT)
    assert ask(browser, etag) == 304
    assert made == [1]
