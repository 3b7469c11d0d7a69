"""The glossary defines each word once, in alphabetical order; the architecture names each folder of the code."""

from __future__ import annotations

import re

import pytest

from app.settings import ROOT

ENTRY = re.compile(r"^\* \*\*(.+?)\*\*: ", re.MULTILINE)
TERMS = ENTRY.findall((ROOT / "docs" / "glossary.md").read_text())
FOLDERS = sorted(
    file.parent.relative_to(ROOT).as_posix() + "/"
    for pattern in ("app/*/", "app/services/*/", "illume/*/")
    for file in ROOT.glob(f"{pattern}__init__.py")
)


class TestGlossary:
    def test_words_are_in_alphabetical_order(self) -> None:
        assert sorted(TERMS, key=lambda term: term.casefold().replace("-", "")) == TERMS

    def test_each_word_is_defined_once(self) -> None:
        assert len({term.casefold() for term in TERMS}) == len(TERMS)


class TestArchitecture:
    @pytest.mark.parametrize("folder", FOLDERS)
    def test_folder_is_described(self, folder: str) -> None:
        assert f"| `{folder}` |" in (ROOT / "docs" / "architecture.md").read_text()
