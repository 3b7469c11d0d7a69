"""docs/deploying.md has each setting of the environment once, with its default, and each extra of the wheel."""

from __future__ import annotations

import re
import tomllib

from app.settings import ROOT, Settings

PAGE = (ROOT / "docs" / "deploying.md").read_text()
ROW = re.compile(r"^\| `ILLUME_(\w+)` \| ([^|]*?) ?\| [^|]+ \|$", re.MULTILINE)
FOR_DEVELOPERS = {"dev", "docs"}
"""Extras that the Makefile installs, not people who run Illume."""


def rows() -> list[tuple[str, str]]:
    """The settings that the tables name, each with the default that stands there."""
    return [(name.lower(), default) for name, default in ROW.findall(PAGE.partition("## Settings")[2])]


def as_written(value: object) -> str:
    """A default as it would stand in the environment, in backticks; nothing where there is none."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`" if value != "" else ""


class TestSettings:
    def test_each_is_there_once(self) -> None:
        assert sorted(name for name, _ in rows()) == sorted(Settings.model_fields)

    def test_defaults_are_those_of_the_program(self) -> None:
        defaults = {name: field.get_default() for name, field in Settings.model_fields.items()}
        computed = {"data_dir", "starter_dir"}  # what stands there is a sentence
        found = {name: value for name, value in rows() if name not in computed}
        assert found == {name: as_written(value) for name, value in defaults.items() if name not in computed}

    def test_no_page_names_a_variable_that_is_none(self) -> None:
        # Of tests and set-up, of click, and of the client:
        others = {"CHROMIUM", "TLS_POSTGRES", "VLLM", "PYTHON", "COMPLETE", "URL", "TOKEN"}
        for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
            named = set(re.findall(r"\bILLUME_([A-Z]\w*)", page.read_text())) - others
            assert {name.lower() for name in named} <= set(Settings.model_fields), page


def test_each_extra_is_described_here_and_in_the_readme() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    described = re.findall(r"^\| `(\w+)` \|", PAGE.partition("## Extras")[2].partition("## Settings")[0], re.MULTILINE)
    assert set(described) == extras - FOR_DEVELOPERS
    readme = (ROOT / "README.md").read_text()
    assert all(f"`illume[{extra}]`" in readme for extra in described)
