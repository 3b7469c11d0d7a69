"""Whatever stands in a parameter, a header or a field: the answer is a 4xx that names it, never a fault of the server.

The walk takes every route of the application, REST and pages, and puts one odd value at a time into each of its query
parameters, path parameters, headers and fields, where all else is as a good request has it.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import copy
import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from random import Random
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from httpx2 import Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.http.dependencies import SESSION_COOKIE, get_session
from app.models import Project, User
from app.services.accounts import sessions
from app.services.kernel.paging import encode_cursor
from tests import factories
from tests.app.api.description import DESCRIPTION

DEEP = base64.urlsafe_b64encode(b"[" * 30_000).decode()
ODD_TEXTS = (
    "\x00",
    "a\x00b",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31",
    "9999-12-31T23:59:59-14:00",
    "0001-01-01",
    "http://[",
    "http://a:b@[::/",
    DEEP,
    encode_cursor(10**30),
    encode_cursor("9" * 19, 10**30),
    encode_cursor(-(2**70)),
    encode_cursor("1:1:\x00", "", ""),
    "9" * 400,
    "9223372036854775808",
    "-1",
    "1e999",
    "nan",
    "²",
    "٣",
    "1_0",
    "",
    "\u202e\ufeff",
    "x" * 9000,
    "%",
    "{",
    "[" * 5000,
)
ODD_JSON = (
    *('"\\ud800"', '["\\udfff"]', '{"\\ud800": 1}', '"\\u0000"', '{"\\u0000": "\\u0000"}'),
    *("9223372036854775808", "18446744073709551616", "-9223372036854775809", "9" * 400, "9" * 5000, "1e400"),
    *("NaN", "-Infinity", "null", "true", "-1", "0", "0.5", "[]", "{}", '""', "[null]", "[[[1]]]", '{"a": {"b": []}}'),
    *("[" * 40 + "]" * 40, "[" * 900 + "]" * 900, '{"a":' * 300 + "1" + "}" * 300, '"' + "x" * 9000 + '"'),
    *(json.dumps(odd) for odd in ODD_TEXTS[2:8]),
)
ODD_HEADERS = {
    "referer": ("http://[", "http://127.0.0.1:8000/\\", "\xff"),
    "if-none-match": ('W/"', "*", "\xff", '"' * 500),
    "accept": ("*/*;q=x", "\xff", ","),
    "accept-encoding": ("gzip;q=1e999", "zstd;q=.", "gzip;q=²".encode().decode("latin-1")),
    "accept-language": ("*;q=nan", "\xff"),
    "idempotency-key": ("\xff", "x" * 5000, ""),
    "authorization": ("Bearer \xff", "Bearer", "Basic AAAA"),
    "cookie": (f"{SESSION_COOKIE}=\xff", f'{SESSION_COOKIE}="\\400"', "=;=", "illume_last_project=\xff"),
    "content-type": ("application/json; charset=nothing", "multipart/form-data", "x", "application/\xff"),
    "x-csrf-token": ("\xff", ""),
    "hx-request": ("\xff",),
    "range": ("bytes=9-1", "bytes=²".encode().decode("latin-1"), "bytes=" + "9" * 400 + "-"),
    "host": ("[", "a:b:c", "\xff", "127.0.0.1:x"),
    "x-forwarded-for": ("\xff", "[", "1.2.3.4, "),
}
JSON_TYPE = [(b"content-type", b"application/json")]
PAGE_PARAMETERS = {
    "number": "1",
    "check_id": "1",
    "kind": "project",
    "change": "cancel",
    "token": "x" * 43,
    "provider": "x",
}
PARTS = 16
"""Into which the long walk is cut: a transaction holds so many savepoints."""
FILES = {"file", "images"}
FIELD = re.compile(r'(?:texts?_of\(form, |form\.get(?:list)?\()"(\w+)"')


@dataclass(frozen=True)
class Call:
    """A route, with the values of a good request."""

    method: str
    path: str
    files: bool
    names: tuple[str, ...]
    query: tuple[str, ...]
    body: Any
    fields: tuple[tuple[str, str], ...]

    @property
    def api(self) -> bool:
        """Whether it is of the REST interface."""
        return self.path.startswith("/api/v1/")


class FormReader(HTMLParser):
    """Collects the names and values of a page's fields."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("input", "select", "textarea", "button") and values.get("name"):
            self.fields.setdefault(str(values["name"]), values.get("value") or "")


def iter_routes(app: FastAPI) -> Iterator[Any]:
    """Every route of REST and pages."""
    for router in app.routes:
        if hasattr(router, "effective_route_contexts"):
            yield from router.effective_route_contexts()


def query_names(found: Dependant) -> Iterator[str]:
    """The query parameters of a route and what it depends on."""
    yield from (one.alias for one in found.query_params)
    for inner in found.dependencies:
        yield from query_names(inner)


def fields_in(source: str) -> set[str]:
    """The names of the form fields that a module reads."""
    return set(FIELD.findall(source))


def calls_of(app: FastAPI) -> list[Call]:
    """All calls; those that remove things come last."""
    found = []
    for route in iter_routes(app):
        for method in route.methods:
            described = DESCRIPTION["paths"].get(route.path, {}).get(method.lower(), {})
            content = described.get("requestBody", {}).get("content", {})
            upload = content.get("multipart/form-data", {}).get("schema", {}).get("$ref", "").rpartition("/")[2]
            uploaded = DESCRIPTION["components"]["schemas"].get(upload, {}).get("properties", {})
            source = inspect.getsource(sys.modules[route.endpoint.__module__]) if method == "POST" else ""
            found.append(
                Call(
                    method=method,
                    path=route.path,
                    files=bool(uploaded),
                    names=tuple(re.findall(r"{(\w+)}", route.path)),
                    query=tuple(query_names(route.dependant)),
                    body=content.get("application/json", {}).get("example"),
                    fields=tuple((name, "") for name in sorted({*fields_in(source), *uploaded} - FILES)),
                )
            )
    return sorted(found, key=lambda call: (("GET", "PUT", "PATCH", "POST", "DELETE").index(call.method), call.path))


def holes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places in a body, from the whole to the leaves."""
    yield path
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, part in inner:
        yield from holes(part, (*path, key))
    if isinstance(value, dict):
        yield (*path, "unknown")


def fill(value: Any, path: tuple[Any, ...], odd: str) -> str:
    """The body as JSON, with `odd`, which is JSON, at the place `path`."""
    mark = "the odd value"
    root = {"body": copy.deepcopy(value)}
    inner: Any = root
    for key in ("body", *path)[:-1]:
        inner = inner[key]
    inner[("body", *path)[-1]] = mark
    return json.dumps(root["body"]).replace(json.dumps(mark), odd)


@dataclass
class Walker:
    """Sends requests as an admin, each of which is undone, and keeps those that failed."""

    client: TestClient
    session: Session
    credentials: tuple[dict[str, str], dict[str, str]]
    known: dict[str, str]
    sent: int = 0
    failed: list[str] = field(default_factory=list)

    def send(self, call: Call, place: object, odd: str, **parts: Any) -> Response:
        """Send one request, in a savepoint of its own."""
        self.session.commit()
        connection = self.session.get_bind()
        assert isinstance(connection, Connection)
        connection.exec_driver_sql("SAVEPOINT before_request")
        values = self.known | parts.pop("path", {})
        address = re.sub(r"{(\w+)}", lambda name: quote(values[name[1]], safe=""), call.path)
        if call.files:
            parts["files"] = {"file": ("a.jsonl", b'{"question": "why"}\n')}
        own = dict(parts.pop("headers", ()))
        usual = {name.encode(): value.encode() for name, value in self.credentials[0 if call.api else 1].items()}
        headers = list((usual | own).items())
        try:
            response = self.client.request(call.method, address, headers=headers, **parts)
        finally:
            self.session.rollback()
            self.session.expunge_all()
            connection.exec_driver_sql("ROLLBACK TO SAVEPOINT before_request")
        self.sent += 1
        if response.status_code >= 500:
            self.failed.append(f"{call.method} {call.path}: {place} = {odd[:60]!r} is {response.status_code}")
        return response


def good_parts(call: Call) -> dict[str, Any]:
    """The body of a good request."""
    if call.body is not None:
        return {"json": call.body}
    return {"data": dict(call.fields)} if call.fields else {}


def odd_requests(call: Call) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The requests with one odd value each: the place, the value, and how the request differs."""
    good = good_parts(call)
    for name in call.names:
        yield from ((name, odd, {"path": {name: odd}, **good}) for odd in ODD_TEXTS)
    for name in call.query:
        yield from ((name, odd, {"params": {name: odd}, **good}) for odd in ODD_TEXTS)
    for name, odds in ODD_HEADERS.items():
        for odd in odds:
            yield name, odd, {"headers": [(name.encode(), odd.encode("latin-1"))], **good}
    for path in () if call.body is None else holes(call.body):
        for odd in ODD_JSON:
            yield repr(path), odd, {"content": fill(call.body, path, odd), "headers": JSON_TYPE}
    for name, _ in call.fields:
        yield from ((name, odd, {"data": {**dict(call.fields), name: odd}}) for odd in ODD_TEXTS)


def odd_places(call: Call, words: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The requests with these words in one place each: the path, the query, the fields, the body."""
    good = good_parts(call)
    for name in call.names:
        yield name, {"path": {name: words}, **good}
    for name in call.query:
        yield name, {"params": {name: words}, **good}
    for name, _ in call.fields:
        yield name, {"data": {**dict(call.fields), name: words}}
    for path in () if call.body is None else holes(call.body):
        yield repr(path), {"content": fill(call.body, path, json.dumps(words)), "headers": JSON_TYPE}


@pytest.fixture
def walker(app: FastAPI, session: Session, asker: User, known: dict[str, str], headers: dict[str, str]) -> Walker:
    """An admin, known by a token to REST and by a browser's session to pages; each request is undone by the walker."""
    cookie, csrf = sessions.open_web_session(session, asker)
    session.commit()
    names = {"assignment": known["assignment_id"], "verdict": known["verdict_id"], "subject": known["slug"]}
    names |= {"returned": known["returned_id"], "session_id": "1"}

    def request_session() -> Iterator[Session]:
        yield session
        session.commit()

    app.dependency_overrides[get_session] = request_session
    app.state.sessions = lambda: contextlib.nullcontext(session)
    credentials = (
        {"authorization": headers["Authorization"]},
        {"cookie": f"{SESSION_COOKIE}={cookie}", "x-csrf-token": csrf},
    )
    client = TestClient(app, raise_server_exceptions=False, follow_redirects=False)
    return Walker(client, session, credentials, known | names | PAGE_PARAMETERS)


def with_fields_of_pages(walker: Walker, calls: list[Call]) -> list[Call]:
    """The calls, where those that send a page's form have the values that the page shows."""
    shown: dict[str, str] = {}
    for call in calls:
        if call.method == "GET" and not call.api:
            reader = FormReader()
            reader.feed(walker.send(call, "nothing", "").text)
            shown |= reader.fields
    return [replace(call, fields=tuple((name, shown.get(name, "")) for name, _ in call.fields)) for call in calls]


def test_some_odd_values(walker: Walker, app: FastAPI) -> None:
    """A few for each call, always the same ones."""
    for call in with_fields_of_pages(walker, calls_of(app)):
        for place, odd, parts in Random(f"{call.method} {call.path}").sample(list(odd_requests(call)), 3):
            walker.send(call, place, odd, **parts)
    assert not walker.failed, "\n".join(walker.failed)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_all_odd_values(walker: Walker, app: FastAPI, part: int) -> None:
    for call in with_fields_of_pages(walker, calls_of(app))[part::PARTS]:
        for place, odd, parts in odd_requests(call):
            walker.send(call, place, odd, **parts)
    assert not walker.failed, "\n".join(walker.failed)


ANY_TEXT = st.text() | st.datetimes(timezones=st.none() | st.timezones()).map(str) | st.integers().map(str)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner),
).map(json.dumps)


@pytest.mark.slow
def test_made_up_values(walker: Walker, app: FastAPI) -> None:
    places = [
        (call, one)
        for call in with_fields_of_pages(walker, calls_of(app))
        for one in {place: (place, parts) for place, _, parts in odd_requests(call)}.values()
    ]

    @settings(max_examples=2000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(where=st.sampled_from(places), words=ANY_TEXT, values=ANY_JSON)
    def send(where: tuple[Call, tuple[str, dict[str, Any]]], words: str, values: str) -> None:
        call, (place, parts) = where
        made = dict(parts)
        if "content" in made:
            made["content"] = fill(call.body, ast.literal_eval(place), values)
        for kind in ("path", "params", "data"):
            if place in made.get(kind, {}):
                made[kind] = made[kind] | {place: words.encode(errors="ignore").decode()}
        assert walker.send(call, place, words, **made).status_code < 500

    send()


class TestKinds:
    """The kinds of odd values, each with the status and the field that the answer names."""

    @pytest.mark.parametrize(
        ("method", "path", "sent", "field"),
        [
            ("POST", "prompts", {"content": r'{"question": "\ud800"}'}, "question"),
            ("POST", "prompts", {"content": r'{"metadata": {"\ud800": 1}}'}, "metadata"),
            ("POST", "prompts", {"content": r'{"\ud800": 1}'}, "body"),
            ("POST", "prompts", {"content": '{"metadata": {"a": 18446744073709551616}}'}, "metadata.a"),
            ("POST", "prompts", {"content": '{"metadata": {"a": NaN}}'}, "metadata.a"),
            ("POST", "prompts", {"content": '{"metadata": ' + "[" * 40 + "]" * 40 + "}"}, "metadata" + ".0" * 31),
            ("POST", "snapshots", {"content": r'{"name": "\ud800"}'}, "name"),
            ("POST", "snapshots", {"content": r'{"\ud800": "x"}'}, "body"),
            ("GET", "prompts", {"params": {"q": "a\x00"}}, "q"),
            ("GET", "prompts", {"params": {"external_id": "\x00"}}, "external_id"),
            ("GET", "prompts", {"params": {"cursor": DEEP}}, "cursor"),
            ("GET", "prompts", {"params": {"cursor": encode_cursor(2**63)}}, "cursor"),
            ("GET", "verdicts", {"params": {"cursor": DEEP}}, "cursor"),
            ("GET", "verdicts", {"params": {"cursor": encode_cursor("1", -(2**63) - 1)}}, "cursor"),
            ("GET", "dataset", {"params": {"since": "0001-01-01T00:00:00+14:00"}}, "since"),
            ("GET", "dataset", {"params": {"since": "9999-12-31T23:59:59-14:00"}}, "since"),
            ("GET", "dataset", {"params": {"cursor": DEEP}}, "cursor"),
        ],
    )
    def test_the_field_is_named(
        self, admin: TestClient, project: Project, method: str, path: str, sent: dict[str, Any], field: str
    ) -> None:
        answer = admin.request(method, f"/api/v1/projects/{project.slug}/{path}", headers=dict(JSON_TYPE), **sent)
        assert answer.status_code == 422, answer.text
        assert answer.json()["field"] == field
        assert answer.json()["detail"]

    def test_one_of_several_prompts(self, admin: TestClient, session: Session, project: Project) -> None:
        sha256 = factories.make_image(session).sha256
        good = {"question": "why", "images": [sha256]}
        items = [good, {**good, "metadata": {"a": ["\udfff"]}}, {**good, "\ud800": 1}, {**good, "question": "\x00"}]
        answer = admin.post(
            f"/api/v1/projects/{project.slug}/prompts", content=json.dumps({"items": items}), headers=dict(JSON_TYPE)
        )
        assert answer.status_code == 201, answer.text
        assert answer.json()["created"] == 1
        told = [(one["index"], one["field"]) for one in answer.json()["errors"]]
        assert told == [(1, "metadata.a.0"), (2, "body"), (3, "question")]

    def test_an_expiry_out_of_range(self, admin: TestClient, asker: User) -> None:
        body = {"scope": "read", "expires_at": "9999-12-31T23:59:59-14:00"}
        answer = admin.post(f"/api/v1/users/{asker.id}/tokens", json=body)
        assert (answer.status_code, answer.json()["field"]) == (422, "expires_at")

    @pytest.mark.parametrize("name", ["since", "until"])
    def test_days_of_the_audit_log(self, walker: Walker, name: str) -> None:
        call = Call("GET", "/admin/audit", False, (), (), None, ())
        answer = walker.send(call, name, "", params={name: "9999-12-31"})
        assert answer.status_code == 422
        label = "From" if name == "since" else "To"
        assert f"{label}: &#39;9999-12-31&#39; is not a date" in answer.text
        assert walker.send(call, name, "", params={name: "2026-01-31"}).status_code == 200

    @pytest.mark.parametrize("referer", ["http://[", "http://[::1", "http://127.0.0.1:x/"])
    def test_a_referer_that_is_no_address(self, client: TestClient, referer: str) -> None:
        answer = client.post("/sign-out", headers={"Referer": referer}, follow_redirects=False)
        assert answer.status_code == 401
        assert "/sign-in?next=%2F" in answer.text

    def test_a_host_that_is_no_address(self, client: TestClient) -> None:
        assert client.get("/api/v1/projects", headers={"Host": "["}).status_code < 500
        assert client.get("/admin", headers={"Host": "["}, follow_redirects=False).status_code < 500

    def test_a_form_field(self, walker: Walker, known: dict[str, str]) -> None:
        call = Call("POST", "/admin/projects/{slug}/prompts/{prompt_id}/state", False, ("slug",), (), None, ())
        answer = walker.send(call, "state", "", data={"state": "a\x00"})
        assert answer.status_code == 422
        assert "state: holds a NUL character" in answer.text
