"""Illume below a sub-path of its host: every address that leaves it carries that path, and no source forgets it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import ValidationError
from starlette.requests import Request
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from app.http import door
from app.main import create_app
from app.models import Role, User
from app.models import Scope as TokenScope
from app.services.accounts import users
from app.services.kernel.actors import SYSTEM
from app.settings import OWN_PATHS, ROOT, Settings, get_settings, path_in_app, path_to
from tests import factories
from tests.app.web.conftest import PASSWORD, Browser, person
from tests.bench.test_pages import walk
from tests.conftest import CommittedDatabase

SUB_PATH = "/some/where"
URL = f"https://127.0.0.1:8000{SUB_PATH}"
LINKING = (
    "href",
    "action",
    "formaction",
    "src",
    "srcset",
    "hx-get",
    "hx-post",
    "data-address",
    "data-home",
    "data-original",
)
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))
SCRIPTS = [file for file in sorted((ROOT / "static").rglob("*.js")) if not {"vendor", "help"} & set(file.parts)]
OPENING = re.compile(r'(?<![\w-])(?:{})="'.format("|".join((*LINKING, "data-back-to", r"hx-(?:put|patch|delete)"))))
SOUND = re.compile(r"\{\{ (?:path_to|static|module)\(|\{\{ [\w.]+ \| (?:at_width|srcset|whole)\b|[?#]")
OWN = "|".join(sorted(OWN_PATHS))


# What the sources say


def attributes_in(text: str) -> Iterator[tuple[int, str]]:
    """Where the attributes of a template begin that hold addresses, and their values."""
    for found in OPENING.finditer(text):
        at = found.end()
        while text[at] != '"':
            closing = {"{{": "}}", "{%": "%}"}.get(text[at : at + 2])
            at = text.index(closing, at) + 2 if closing else at + 1
        yield found.start(), text[found.end() : at]


def problems_in(text: str) -> list[str]:
    """The addresses of a template that lack the sub-path."""
    found = []
    for at, value in attributes_in(text):
        said = text[text.rfind("{% trans", 0, at) : at] if "{{ url }}" in value else ""
        if not SOUND.match(value) and not re.search(r"\burl=path_to\(", said):
            found.append(value)
    return found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('<a href="/admin">', ["/admin"]),
        ('<a href="{{ view.next }}">', ["{{ view.next }}"]),
        ('<form action="{{ "/account" }}/name">', ['{{ "/account" }}/name']),
        ('<a href="{{ path_to("/admin/" ~ view.id) }}">', []),
        ('<a href="?page=2"><a href="#main"><img src="{{ row.image | at_width(96) }}">', []),
        ('{% trans url=view.url %}<a href="{{ url }}">x</a>{% endtrans %}', ["{{ url }}"]),
        ('{% trans url=path_to("/") %}<a href="{{ url }}">x</a>{% endtrans %}', []),
    ],
)
def test_a_bare_address_is_found(text: str, found: list[str]) -> None:
    assert problems_in(text) == found


def test_addresses_of_templates_go_through_path_to() -> None:
    found = {file.relative_to(ROOT).as_posix(): problems_in(file.read_text()) for file in TEMPLATES}
    assert {name: problems for name, problems in found.items() if problems} == {}


def test_scripts_have_no_paths_of_their_own() -> None:
    path = re.compile(rf"[\"'`]/(?:{OWN})\b|\b(?:fetch|assign|replace)\([\"'`]/|\blocation(?:\.href)? = [\"'`]/")
    found = {file.name: path.findall(file.read_text()) for file in SCRIPTS}
    assert {name: problems for name, problems in found.items() if problems} == {}


def test_programs_read_paths_without_the_sub_path() -> None:
    read = re.compile(r"^.*(?:scope\[.path.\]|\.url\.path\b|delete_cookie\(\w+, path=).*$", re.MULTILINE)
    lines = [
        line.strip()
        for file in sorted((ROOT / "app").rglob("*.py"))
        if file.name != "door.py"
        for line in read.findall(file.read_text())
    ]
    assert [line for line in lines if "path_in_app(" not in line and "cookie_path()" not in line] == []


def test_all_beginnings_of_paths_are_known() -> None:
    app = create_app()
    paths = [*dict(walk(app.routes)), *(one.path for one in app.routes if isinstance(one, Mount)), "/sign-out"]
    assert {path.split("/")[1] for path in paths if path != "/"} == OWN_PATHS


# The setting


@pytest.mark.parametrize("path", ["", "/", "/illume", "/illume/", "/a/b-c/~d_e.f"])
def test_a_public_url_may_have_a_path(path: str) -> None:
    assert Settings(public_url=f"https://example.org{path}").sub_path == path.rstrip("/")


@pytest.mark.parametrize("path", ["/a//b", "/a b", "/a?b=c", "/a#b", "/..", "/a/../b", "/%2e", "/admin", "/api/v1"])
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="sub-path"):
        Settings(public_url=f"https://example.org{path}")


# What is sent


class Addresses(HTMLParser):
    """The addresses of a page, in `found`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in LINKING and value:
                self.found += [one.split()[0] for one in value.split(", ")] if name == "srcset" else [value]


def addresses_in(html: str) -> list[str]:
    """The addresses of a page."""
    reader = Addresses()
    reader.feed(html)
    return reader.found


class Stripping:
    """A proxy that takes the sub-path off the requests that it passes on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            assert scope["path"].startswith(f"{SUB_PATH}/"), "the browser left the sub-path"
            scope = {**scope, "path": scope["path"].removeprefix(SUB_PATH), "raw_path": None}
        await self.app(scope, receive, send)


@pytest.fixture(params=["passed on", "taken off"])
def below(
    request: pytest.FixtureRequest, committed_db: CommittedDatabase, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Browser]:
    """A browser of an installation below a sub-path, whose proxy passes that path on or takes it off."""
    monkeypatch.setattr(get_settings(), "public_url", URL)
    monkeypatch.setattr(get_settings(), "secure_cookies", True)
    app: ASGIApp = create_app() if request.param == "passed on" else Stripping(create_app())
    with TestClient(app, base_url="https://127.0.0.1:8000", follow_redirects=False) as client:
        yield Browser(client)


@pytest.fixture
def admin(below: Browser, committed_db: CommittedDatabase) -> User:
    """An admin, in an installation with a project of two prompts."""
    with committed_db.sessions() as session, session.begin():
        project = factories.make_project(session, slug="scenes", name="Scenes")
        for _number in range(2):
            factories.make_candidate_set(session, project, prompt=factories.make_prompt(session, project))
        return person(session, role=Role.admin)


def follow(browser: Browser, location: str) -> str:
    """The path of a redirect, which must lead below the sub-path."""
    parts = urlsplit(urljoin(URL, location))
    assert parts.netloc == "127.0.0.1:8000"
    assert parts.path.startswith(f"{SUB_PATH}/"), location
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def test_the_way_from_signing_in_to_an_export(below: Browser, admin: User) -> None:
    # A page that needs a session leads to the form, and the form back to the page.
    location = below.get(f"{SUB_PATH}/annotate/scenes").headers["location"]
    assert location == f"{SUB_PATH}/sign-in?next=%2Fannotate%2Fscenes"
    below.get(location)
    fields = {"email": admin.email, "password": PASSWORD, "next": "/annotate/scenes"}
    signed_in = below.post(f"{SUB_PATH}/sign-in", fields)
    assert {one.rpartition("Path=")[2].split(";")[0] for one in signed_in.headers.get_list("set-cookie")} == {SUB_PATH}
    page = below.get(follow(below, signed_in.headers["location"])).text
    # The critic's page: scripts, pictures, and a verdict by the path that its script makes.
    [home] = re.findall(r'data-home="([^"]*)"', page)
    assert home == f"{SUB_PATH}/"
    [assignment] = re.findall(r'data-assignment="(\d+)"', page)
    [picked, *_others] = re.findall(r'name="picks" value="(\d+)"', page)
    [script] = re.findall(r'<script type="module" src="([^"]*main\.js)"', page)
    assert below.client.get(script).status_code == 200
    headers = {"HX-Request": "true", "Origin": "https://127.0.0.1:8000", "Idempotency-Key": "one"}
    given = below.post(
        f"{home}annotate/scenes/assignments/{assignment}/verdict", {"kind": "picked", "picks": picked}, headers=headers
    )
    assert given.status_code == 201
    # An export by the address on its page, and the lines of code beside it.
    export = below.get(f"{SUB_PATH}/admin/projects/scenes/export").text
    assert f"{URL}/api/v1/projects/scenes/dataset" in export
    rows = below.client.get(path_to("/api/v1/projects/scenes/dataset")).text.splitlines()
    assert len(rows) == 1
    # Signing out forgets the cookie of the sub-path.
    below.get(f"{SUB_PATH}/account")
    left = below.post(f"{SUB_PATH}/sign-out")
    assert f"Path={SUB_PATH};" in left.headers["set-cookie"]
    assert below.get(f"{SUB_PATH}/admin").status_code == 303


def test_an_invitation_is_opened_and_used_below_the_sub_path(below: Browser, admin: User) -> None:
    below.get(f"{SUB_PATH}/sign-in")
    below.post(f"{SUB_PATH}/sign-in", {"email": admin.email, "password": PASSWORD})
    below.get(f"{SUB_PATH}/admin/users")
    invited = {"email": "new@example.org", "role": "critic", "projects": "scenes"}
    shown = below.post(f"{SUB_PATH}/admin/users", invited)
    assert shown.status_code == 201
    [link] = set(re.findall(rf"{re.escape(URL)}/account/link/[\w-]+", shown.text))
    # Another browser, in which nobody is signed in.
    below.client.cookies.clear()
    page = below.get(follow(below, link))
    assert page.status_code == 200
    [action] = re.findall(r'action="([^"]*/account/link/[^"]*)"', page.text)
    assert action == urlsplit(link).path
    used = below.post(action, {"name": "New", "password": PASSWORD, "again": PASSWORD})
    assert used.status_code == 303
    assert {one.rpartition("Path=")[2].split(";")[0] for one in used.headers.get_list("set-cookie")} == {SUB_PATH}
    home = below.get(follow(below, used.headers["location"]))
    assert home.headers.get("location", "") != f"{SUB_PATH}/sign-in"
    assert below.get(f"{SUB_PATH}/annotate/scenes").status_code == 200
    assert below.get(follow(below, link)).status_code == 404


@pytest.mark.parametrize("below", ["passed on"], indirect=True)
def test_every_link_of_every_page_leads_below_the_sub_path(below: Browser, admin: User) -> None:
    below.get(f"{SUB_PATH}/sign-in")
    below.post(f"{SUB_PATH}/sign-in", {"email": admin.email, "password": PASSWORD})
    seen = {path_in_app(path) for path in crawl(below, f"{SUB_PATH}/admin")}
    assert seen >= {
        "/admin/projects/scenes/export",
        "/admin/projects/scenes/settings",
        "/admin/users",
        "/annotate/scenes/history",
        "/api/docs",
        "/account",
    }
    assert any(path.startswith("/admin/projects/scenes/prompts/") for path in seen)


def crawl(browser: Browser, start: str) -> set[str]:
    """Open every page that links lead to, and check that all addresses are below the sub-path and answer."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        answer = browser.client.get(path)
        if answer.is_redirect:
            answer = browser.client.get(follow(browser, answer.headers["location"]))
        assert answer.status_code in (200, 404) if "/help/" in path else answer.status_code == 200, path
        if not answer.headers["content-type"].startswith("text/html"):
            continue
        for address in addresses_in(answer.text):
            parts = urlsplit(urljoin(f"{URL}{path_in_app(path)}", address))
            assert parts.netloc == "127.0.0.1:8000", address
            assert parts.path == SUB_PATH or parts.path.startswith(f"{SUB_PATH}/"), f"{path} has {address}"
            is_page = not re.search(r"/static/|/help/|/api/v1/|/sign-out|/erase/|\.(?:csv|zip)$", parts.path)
            if is_page and parts.path not in seen and address in hrefs_in(answer.text):
                seen.add(parts.path)
                waiting.append(parts.path)
    return seen


def hrefs_in(html: str) -> set[str]:
    """The links of a page, rather than what forms and scripts request."""
    return {one.replace("&amp;", "&") for one in re.findall(r'<a\b[^>]*\bhref="([^"]*)"', html)}


def test_rest_names_addresses_below_the_sub_path(below: Browser, admin: User, committed_db: CommittedDatabase) -> None:
    with committed_db.sessions() as session, session.begin():
        _, token = users.create_token(session, SYSTEM, user_id=admin.id, scope=TokenScope.admin)
    below.client.headers["Authorization"] = f"Bearer {token}"
    api = f"{SUB_PATH}/api/v1"
    claim = below.client.post(f"{api}/projects/scenes/assignments").json()
    listed = below.client.get(f"{api}/projects/scenes/prompts").json()["items"]
    kept = below.client.get(f"{api}/assignments/{claim['id']}").json()
    for prompt in (claim["prompt"], kept["prompt"], *listed):
        [url] = [one["url"] for one in prompt["images"]]
        assert below.client.get(url).status_code == 200
    picked = {"kind": "picked", "picks": [claim["candidates"][0]["id"]]}
    assert below.client.post(f"{api}/assignments/{claim['id']}/verdict", json=picked).status_code == 201
    second = below.client.post(f"{api}/projects/scenes/assignments").json()
    picked = {"kind": "picked", "picks": [second["candidates"][0]["id"]]}
    below.client.post(f"{api}/assignments/{second['id']}/verdict", json=picked)
    page = below.client.get(f"{api}/projects/scenes/dataset?limit=1")
    following = re.fullmatch(r'<(.+)>; rel="next"', page.headers["link"])
    assert following
    assert following[1].startswith(f"{URL}/api/v1/projects/scenes/dataset?")
    assert len(below.client.get(following[1]).text.splitlines()) == 1
    described = below.client.get(f"{api}/openapi.json").json()
    assert described["servers"] == [{"url": SUB_PATH}]
    assert "/api/v1/projects" in described["paths"]
    missing = below.client.get(f"{api}/nothing")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
    assert below.client.get(f"{SUB_PATH}/healthz", headers={"Host": "probe"}).status_code == 200


def test_probes_and_people_on_the_machine_need_no_sub_path(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_settings(), "public_url", URL)
    with TestClient(app, base_url="http://127.0.0.1:8000", follow_redirects=False) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/sign-in").status_code == 200
        assert client.get(f"{SUB_PATH}/sign-in").status_code == 200
        assert client.get(SUB_PATH).headers["location"] == f"http://127.0.0.1:8000{SUB_PATH}/"
        assert client.get(f"{SUB_PATH}x/sign-in").status_code == 404


def test_an_error_leads_back_to_the_page_it_came_from(below: Browser) -> None:
    pages = {
        f"{URL}/account": "%2Faccount",
        "https://127.0.0.1:8000/elsewhere/account": "%2F",
        "https://127.0.0.1:8000/account": "%2F",
        "https://elsewhere.example/account": "%2F",
    }
    for referer, to in pages.items():
        answer = below.client.post(f"{SUB_PATH}/account/name", headers={"Referer": referer})
        assert answer.status_code == 401
        assert f'href="{SUB_PATH}/sign-in?next={to}"' in answer.text


class TestCookies:
    def test_those_of_an_installation_above_do_not_hide_ours(self) -> None:
        scope = {
            "type": "http",
            "headers": [(b"cookie", b"a; b; a=ours; b=2; a=theirs"), (b"x", b"a; a"), (b"cookie", b"b=3")],
        }
        door.drop_repeated_cookies(scope)
        found = Request(scope).cookies
        assert (found["a"], found["b"]) == ("ours", "2")
        assert scope["headers"][1] == (b"x", b"a; a")
