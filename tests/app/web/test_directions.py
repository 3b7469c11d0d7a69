"""Pages work from right to left: styles say start and end, and typed texts have the direction of their letters."""

from __future__ import annotations

import re

import pytest

from app.settings import ROOT
from app.web.rendering import TEMPLATES

PHYSICAL = re.compile(
    r"""
    \b(?:margin|padding|border)-(?:left|right)\b
    | \b(?:scroll-margin|scroll-padding)-(?:left|right)\b
    | \bborder-(?:top|bottom)-(?:left|right)-radius\b
    | (?:^|[;{\s])(?:left|right)\s*:
    | \b(?:text-align|float|clear)\s*:\s*(?:left|right)\b
    """,
    re.VERBOSE,
)
FOUR_SIDES = re.compile(r"\b(margin|padding|inset|border-width)\s*:\s*([^;}]+)")
TYPED = re.compile(r'class="[^"]*\b(?:as-typed|own-words)\b[^"]*"([^>]{0,11})|<textarea\b([^>]*)')


def sides(value: str) -> list[str]:
    """The parts of a value, a calculation being one."""
    return re.findall(r"(?:[^\s()]|\((?:[^()]|\([^()]*\))*\))+", value.strip())


def physical(css: str) -> list[str]:
    """The declarations that name left or right, or give them different values."""
    uneven = [
        found[0] for found in FOUR_SIDES.finditer(css) if len(four := sides(found[2])) == 4 and four[1] != four[3]
    ]
    return [found[0].strip() for found in PHYSICAL.finditer(css)] + uneven


@pytest.mark.parametrize(
    ("css", "count"),
    [
        ("a { margin-left: 1px; left: 0; text-align: right }", 3),
        ("a { padding: 1px 2px 3px 4px; inset: 0 auto calc(1px + (2px)) 0 }", 2),
        ("a { border-top-left-radius: 2px; float: left }", 2),
        ("a { padding: 1px 2px 3px 2px; margin: 0 calc(-1 * var(--s2)); inset-inline-start: 0; text-align: start }", 0),
    ],
)
def test_what_is_found(css: str, count: int) -> None:
    assert len(physical(css)) == count


def test_styles_name_no_side_of_the_page() -> None:
    files = sorted((ROOT / "static" / "css").glob("*.css"))
    assert len(files) >= 9
    assert {path.name: found for path in files if (found := physical(path.read_text(encoding="utf-8")))} == {}


def test_what_people_typed_has_its_own_direction() -> None:
    found = [
        (path.name, one[0], 'dir="auto"' in (one[1] or one[2] or ""))
        for path in TEMPLATES.rglob("*.html")
        for one in TYPED.finditer(path.read_text(encoding="utf-8"))
    ]
    assert len(found) > 60
    assert [one[:2] for one in found if not one[2]] == []
