"""The list of what `bench/pages.py` asks for: whole, and each address asks for what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from app.main import create_app
from bench.addresses import ADMIN, CRITIC, LEFT_OUT, REST

ADDRESSES = [*ADMIN, *CRITIC, *(f"/api/v1{path}" for path in REST)]
Known = dict[str, set[str]]


def walk(routes: list[Any], prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    """Every path that is read with GET, with the names of its query's parameters."""
    for route in routes:
        inside = getattr(route, "original_router", None)
        if inside is not None:
            yield from walk(inside.routes, prefix + route.include_context.prefix)
        elif "GET" in (getattr(route, "methods", None) or ()):
            found = getattr(route, "dependant", None)
            yield prefix + route.path, {one.alias for one in found.query_params} if found else set()


@pytest.fixture(scope="module")
def known() -> Known:
    return dict(walk(create_app().routes))


def route_of(known: Known, path: str) -> str | None:
    """The path of the route that answers: one without a parameter before one with."""
    fits = [one for one in known if re.fullmatch(re.sub(r"\\?\{[^}]*\}", "[^/]+", one), path)]
    return min(fits, key=lambda one: one.count("{"), default=None)


def test_every_route_is_asked_for_or_left_out_with_a_reason(known: Known) -> None:
    asked = {route_of(known, urlsplit(one).path) for one in ADDRESSES}
    assert set(known) - asked == set(LEFT_OUT)


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_names_only_parameters_that_its_route_knows(known: Known, address: str) -> None:
    parts = urlsplit(address)
    route = route_of(known, parts.path)
    assert route is not None
    assert {name for name, _ in parse_qsl(parts.query)} <= known[route]


def test_every_filter_is_asked_for(known: Known) -> None:
    asked: Known = {}
    for one in ADDRESSES:
        route = route_of(known, urlsplit(one).path) or ""
        asked.setdefault(route, set()).update(name for name, _ in parse_qsl(urlsplit(one).query))
    plain = {"cursor", "limit", "start", "before", "after", "verdict"}  # places in a list, not filters
    missing = {(route, name) for route, names in asked.items() for name in known[route] - names - plain}
    assert not missing
