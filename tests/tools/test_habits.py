"""What contributors and services are told to run exists, and what others made is named."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from app.settings import ROOT
from hatch_build import ASSETS
from tests.conftest import LONGEST
from tests.deployments.servers import PACKAGE, VERSION

CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
DECISIONS = sorted(ROOT.glob("docs/decisions/[0-9]*.md"))
TARGETS = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))


class TestTargets:
    @pytest.mark.parametrize("name", ["CONTRIBUTING.md", "README.md", "SECURITY.md", ".ci/run"])
    def test_those_that_are_named_exist(self, name: str) -> None:
        named = set(re.findall(r"^make ([\w-]+)|`make ([\w-]+)", (ROOT / name).read_text(), re.MULTILINE))
        assert named
        assert {one or other for one, other in named} <= TARGETS

    def test_each_has_a_line_of_help(self) -> None:
        described = set(re.findall(r'@echo "make ([\w-]+) ', MAKEFILE))
        assert described == TARGETS - {"help"}


class TestWorkflows:
    @pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
    def test_they_run_what_every_machine_can_run(self, path: Path) -> None:
        workflow = yaml.safe_load(path.read_text())
        jobs = workflow["jobs"].values()
        commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
        assert commands
        matrix = [target for job in jobs for target in job.get("strategy", {}).get("matrix", {}).get("target", [])]
        named = {one for command in commands for one in re.findall(r"make ([\w-]+)", command)}
        assert named | set(matrix) <= TARGETS
        assert all((ROOT / word).exists() for command in commands for word in re.findall(r"\.ci/\w+", command))

    def test_the_slow_tests_and_the_killing_run_weekly(self) -> None:
        weekly = yaml.safe_load((ROOT / ".github/workflows/weekly.yml").read_text())
        assert {"test-slow", "chaos"} <= set(weekly["jobs"]["weekly"]["strategy"]["matrix"]["target"])
        assert weekly[True]["schedule"]  # YAML reads the word `on` as true

    def test_the_servers_of_the_slow_tests_are_installed(self) -> None:
        weekly = yaml.safe_load((ROOT / ".github/workflows/weekly.yml").read_text())
        [install] = [step for step in weekly["jobs"]["weekly"]["steps"] if "apt-get" in step.get("run", "")]
        [told] = re.findall(r"apt-get install ([\w -]+)\)", CONTRIBUTING.replace("`", ""))
        assert (install["if"], install["run"].split()[-3:]) == ("matrix.target == 'test-slow'", told.split())
        assert f" {PACKAGE}@{VERSION}\n" in MAKEFILE
        assert f"npm install --ignore-scripts --no-save {PACKAGE}@{VERSION}`" in CONTRIBUTING
        for text in (MAKEFILE, (ROOT / "tools" / "fetch-assets").read_text()):
            assert len(re.findall("tools/npm .*--ignore-scripts", text)) == text.count("tools/npm") == 1


def test_hooks_before_a_commit_are_commands_of_make_check() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"}  # nothing to fetch
    checked = MAKEFILE.replace("$(VENV)", ".venv")
    for hook in hooks:
        jsonschema.validate(hook, {"required": ["id", "name", "entry", "language"]})
        assert f"\t{hook['entry'].replace(' --force-exclude', '')}" in checked


@pytest.mark.parametrize("name", LONGEST)
def test_files_that_come_first_exist(name: str) -> None:
    assert (ROOT / "tests" / name).is_file()


def test_the_changelog_begins_with_the_version_in_preparation() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    releases = re.findall(r"^## ([\d.]+) \((not yet released|\d+ [A-Z][a-z]+ \d{4})\)$", CHANGELOG, re.MULTILINE)
    assert releases[0][0] == version
    assert [when for _, when in releases[1:] if when == "not yet released"] == []
    assert len(releases) == CHANGELOG.count("\n## ")


@pytest.mark.parametrize("asset", ASSETS)
def test_what_others_made_is_in_the_notice(asset: str) -> None:
    assert asset in (ROOT / "NOTICE").read_text()


class TestDecisions:
    def test_they_are_numbered_without_gaps(self) -> None:
        assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))

    @pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.name[:4])
    def test_each_has_the_form_that_contributing_asks_for(self, path: Path) -> None:
        """A title, a paragraph of context and one of the decision, then perhaps consequences and alternatives."""
        opening, *sections = re.split(r"^## ", path.read_text(), flags=re.MULTILINE)
        title, *paragraphs = opening.strip().split("\n\n")
        assert title.startswith("# ")
        assert "\n" not in title
        assert len(paragraphs) == 2
        assert not any(one.startswith(("* ", "- ", "#")) for one in paragraphs)
        headings = [section.partition("\n")[0] for section in sections]
        assert headings == [one for one in ("Consequences", "Alternatives") if one in headings]
