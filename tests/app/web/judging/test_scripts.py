"""The script modules of the critic's page: what they import from each other."""

from __future__ import annotations

import re
from graphlib import TopologicalSorter

from app.settings import ROOT

FOLDER = ROOT / "static" / "judge"
PAGE = ROOT / "templates" / "judging" / "page.html"
IMPORT = re.compile(r'^import \{([^}]*)\} from "\./(\w+)\.js";$', re.MULTILINE)
EXPORT = re.compile(r"^export (?:async )?(?:function|const|let) (\w+)", re.MULTILINE)
STARTS = {"main", "text_pairs"}
"""Those with which a page starts: the critic's one, and the pages of policies, which compare texts as it does."""
SOURCES = {file.stem: file.read_text() for file in FOLDER.glob("*.js")}


def test_modules_import_only_what_others_export() -> None:
    exports = {name: set(EXPORT.findall(source)) for name, source in SOURCES.items()}
    for name, source in SOURCES.items():
        for names, module in IMPORT.findall(source):
            wanted = {one.strip() for one in names.split(",")}
            assert wanted <= exports[module], f"{name}.js imports {wanted - exports[module]} from {module}.js"


def test_no_two_modules_import_each_other() -> None:
    graph = {name: {module for _, module in IMPORT.findall(source)} for name, source in SOURCES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_page_preloads_every_module() -> None:
    listed = re.search(r"set judge_modules = \(([^)]*)\)", PAGE.read_text())
    assert listed
    assert set(re.findall(r'"(\w+)"', listed[1])) == set(SOURCES) - STARTS
