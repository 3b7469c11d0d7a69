"""The page of the REST interface."""

from __future__ import annotations

import re

from fastapi import FastAPI
from sqlalchemy.orm import Session

from app.models import Role
from app.web.rest import Piece, pieces, rest_view
from tests import factories
from tests.app.web.conftest import PASSWORD, Browser


def test_every_call_and_shape_is_on_the_page(app: FastAPI, browser: Browser, session: Session) -> None:
    browser.sign_in(factories.make_user(session, role=Role.critic, password=PASSWORD))
    got = browser.get("/api/docs")
    assert got.status_code == 200
    described = app.openapi()
    for path, methods in described["paths"].items():
        for method, call in methods.items():
            assert f'id="{call["operationId"]}"' in got.text, (method, path)
    links = set(re.findall(r'href="#(shape-[^"]+)"', got.text))
    assert "shape-VerdictIn" in links
    assert links <= set(re.findall(r'id="(shape-[^"]+)"', got.text))
    assert "it has a pole and a canopy" in got.text
    # The Content-Security-Policy allows neither.
    assert " style=" not in got.text
    assert all(" src=" in tag for tag in re.findall(r"<script[^>]*>", got.text))


def test_strangers_are_asked_to_sign_in(browser: Browser) -> None:
    got = browser.get("/api/docs")
    assert (got.status_code, got.headers["location"]) == (303, "/sign-in?next=%2Fapi%2Fdocs")
    assert "VerdictIn" not in got.text


def test_it_is_linked(browser: Browser, session: Session) -> None:
    browser.sign_in(factories.make_user(session, role=Role.admin, password=PASSWORD))
    assert 'href="/api/docs"' in browser.get("/admin/users").text


def test_types_in_words() -> None:
    schema = {"anyOf": [{"type": "array", "items": {"$ref": "#/components/schemas/PromptOut"}}, {"type": "null"}]}
    assert pieces(schema) == (Piece("list of "), Piece("PromptOut", "PromptOut"), Piece(" or "), Piece("null"))
    assert pieces({"type": "string", "format": "date-time"}) == (Piece("string (date-time)"),)
    assert pieces({"enum": ["a", None]}) == (Piece('"a", null'),)


def test_a_call_without_content(app: FastAPI) -> None:
    calls = [call for _, group in rest_view(app.openapi()).groups for call in group]
    released = next(call for call in calls if call.path.endswith("/release"))
    assert [(one.status, one.example) for one in released.answers if one.status == "204"] == [("204", "")]
