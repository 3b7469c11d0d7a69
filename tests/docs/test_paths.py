"""The pages at the top and in docs/ name only paths that exist, and names that are in the files named with them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.settings import ROOT
from tests.e2e import screens

PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")} - {ROOT / "CHANGELOG.md"})
TOP = ("app", "bench", "deploy", "docs", "illume", "migrations", "starter", "static", "templates", "tests", "tools")
FOLDERS = "|".join((*TOP, "worker"))
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
QUOTED = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
MODULE = re.compile(r"(?<![\w./-])(?:app|illume|worker)(?:\.[a-z_]\w*)+(?!/)")
NAME_IN_FILE = re.compile(r"`(\w+)`(?:\s+and\s+`(\w+)`)?\s+in\s+`([\w./-]+\.\w+)`")
REPOSITORY_PATH = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./*-]*")


def named_paths(text: str, folder: Path) -> set[str]:
    """The paths from the repository's root that a page in `folder` names in backticks, and those its links lead to."""
    quoted = QUOTED.findall(CODE_BLOCK.sub("", text))
    paths = {path for code in quoted for path in REPOSITORY_PATH.findall(code)}
    for target in LINK.findall(text):
        path = target.partition("#")[0]
        if path and "://" not in path and not path.startswith("mailto:"):
            paths.add(str((folder / path).resolve().relative_to(ROOT)))
    return paths


def path_exists(path: str) -> bool:
    """Whether there is such a file or folder, or one that the pattern matches."""
    return any(ROOT.glob(path)) if "*" in path else (ROOT / path).exists()


def module_exists(name: str) -> bool:
    """Whether the first two or more parts of a dotted name are a module; the rest may be a name in it."""
    parts = name.split(".")
    files = (ROOT.joinpath(*parts[:count]) for count in range(2, len(parts) + 1))
    return any(file.with_suffix(".py").exists() or (file / "__init__.py").exists() for file in files)


def named_in_files(text: str) -> set[tuple[str, str]]:
    """The names and files of which a page says that the one is in the other: `name` in `path`."""
    return {(name, file) for *names, file in NAME_IN_FILE.findall(text) for name in names if name}


def file_has(file: str, name: str) -> bool:
    """Whether there is such a file, with the name as a whole word."""
    path = ROOT / file
    return path.exists() and re.search(rf"\b{name}\b", path.read_text()) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
class TestPages:
    def test_paths_exist(self, page: Path) -> None:
        named = named_paths(page.read_text(), page.parent)
        assert [path for path in sorted(named) if not path_exists(path)] == []

    def test_modules_exist(self, page: Path) -> None:
        named = {name for code in QUOTED.findall(page.read_text()) for name in MODULE.findall(code)}
        assert [name for name in sorted(named) if not module_exists(name)] == []

    def test_names_are_in_the_files(self, page: Path) -> None:
        named = named_in_files(page.read_text())
        assert [(name, file) for name, file in sorted(named) if not file_has(file, name)] == []


class TestNamedPaths:
    def test_in_backticks_and_links_from_the_root(self) -> None:
        text = "See `app/main.py`, [the gate](decisions/0003-the-gate.md#why) and `ls tests/e2e`; not `a/app/x.py`."
        assert named_paths(text, ROOT / "docs") == {"app/main.py", "docs/decisions/0003-the-gate.md", "tests/e2e"}

    def test_not_in_code_blocks_or_addresses(self) -> None:
        text = "[Elsewhere](https://example.org/app/a.py)\n```\ncat `app/b.py`\n```\n"
        assert named_paths(text, ROOT) == set()

    def test_what_is_missing_is_found(self) -> None:
        assert not path_exists("app/no_such_module.py")
        assert path_exists("docs/decisions/0003-*.md")
        assert not module_exists("illume.no_such_module")
        assert module_exists("illume.settings.SamplingSettings")

    def test_names_in_files(self) -> None:
        text = "`f` and `g` in\n`app/a.py`, `h` in `app/b.py`, `app/c.py`"
        assert named_in_files(text) == {("f", "app/a.py"), ("g", "app/a.py"), ("h", "app/b.py")}
        assert file_has("app/main.py", "create_app")
        assert not file_has("app/main.py", "create")


def test_the_screens_are_those_that_pages_show_and_can_be_taken_again() -> None:
    shown = screens.shown_names()
    taken = {name for shot in (*screens.SHOTS, *screens.LATER, *screens.PRACTICE) for name in shot.looks}
    assert {one.name for one in screens.SCREENS.iterdir()} == shown
    assert "loop-dark.png" in shown <= taken
