"""Tables that become cards on phones have explicit roles, because their display style removes the implicit ones."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from app.web.rendering import TEMPLATES

ROLES = {"table": {"table"}, "thead": {"rowgroup"}, "tbody": {"rowgroup"}, "tr": {"row"}, "td": {"cell"}}
HEADS = {"col": "columnheader", "row": "rowheader"}
TABLE = re.compile(r'<table[^>]*class="stacks.*?</table>', re.DOTALL)
TAG = re.compile(r"<(table|thead|tbody|tr|th|td)\b([^>]*)")


def tables() -> Iterator[tuple[str, str]]:
    """Every table that becomes cards: the name of its template, its source."""
    for path in sorted(TEMPLATES.rglob("*.html")):
        for found in TABLE.finditer(path.read_text(encoding="utf-8")):
            yield str(path.relative_to(TEMPLATES)), found.group()


def test_there_are_some() -> None:
    assert len(list(tables())) >= 15


@pytest.mark.parametrize(("name", "source"), list(tables()))
def test_every_part_has_its_role(name: str, source: str) -> None:
    for tag, attributes in TAG.findall(source):
        scope = re.search(r'scope="(\w+)"', attributes)
        role = re.search(r'role="(\w+)"', attributes)
        allowed = {HEADS[scope.group(1)]} if tag == "th" and scope else ROLES.get(tag, set())
        assert (role.group(1) if role else "") in allowed, f"{name}: <{tag}{attributes}>"
