"""Every path of the repository that README.md and the pages in docs/ name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.settings import ROOT

PAGES = sorted({ROOT / "README.md", *ROOT.glob("docs/**/*.md")})
FOLDERS = "|".join(
    ("app", "bench", "docs", "illume", "migrations", "starter", "static", "templates", "tests", "tools", "worker")
)
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
QUOTED = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
MODULE = re.compile(r"(?<![\w./-])(?:app|illume|worker)(?:\.[a-z_]\w*)+(?!/)")
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
class TestPages:
    def test_paths_exist(self, page: Path) -> None:
        named = named_paths(page.read_text(), page.parent)
        assert [path for path in sorted(named) if not path_exists(path)] == []

    def test_modules_exist(self, page: Path) -> None:
        named = {name for code in QUOTED.findall(page.read_text()) for name in MODULE.findall(code)}
        assert [name for name in sorted(named) if not module_exists(name)] == []


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
