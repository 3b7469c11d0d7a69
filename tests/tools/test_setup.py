"""Set-up: versions are pinned, no file names a download address, and missing programs are reported in one sentence."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.settings import ROOT


def pins() -> dict[str, str]:
    """The versions that constraints.txt names."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, version = line.split("==")
        found[canonicalize_name(name)] = version
    return found


def needed(names: list[str]) -> set[str]:
    """All distributions that `names` depend on, on this machine, including themselves."""
    found: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        extras = requirement.extras or {""}
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = canonicalize_name(requirement.name)
        if name in found and not requirement.extras:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or []:
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                inner.marker = None
                waiting.append(inner)
    return found


class TestConstraints:
    def test_every_package_is_pinned_to_what_is_tested(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        names = needed([*project["dependencies"], *project["optional-dependencies"]["dev"]])
        pinned = pins()
        assert len(names) > 80
        assert sorted(names - set(pinned)) == []
        for name in sorted(names):
            assert pinned[name] == importlib.metadata.version(name).split("+")[0], name

    def test_no_build_and_no_place_is_named(self) -> None:
        text = (ROOT / "constraints.txt").read_text()
        assert not re.search(r"[+@/]|--", text)
        assert "torch==2.13.0\n" in text


class TestBrowserAssets:
    def test_the_lock_file_holds_what_package_json_asks_for_and_no_addresses(self) -> None:
        asked = json.loads((ROOT / "package.json").read_text())
        locked = json.loads((ROOT / "package-lock.json").read_text())["packages"]
        for name, version in {**asked["dependencies"], **asked["devDependencies"]}.items():
            assert locked[f"node_modules/{name}"]["version"] == version
        assert not any("resolved" in package for package in locked.values())
        packages = [package for name, package in locked.items() if name]  # the one without a name is the project itself
        assert all(package["integrity"].startswith("sha512-") for package in packages)


class TestMissing:
    def test_a_python_that_is_missing_or_too_old_is_one_sentence(self, tmp_path: Path) -> None:
        old = tmp_path / "python3"
        old.write_text("#!/bin/sh\nexit 1\n")
        old.chmod(0o755)
        done = said("find-python", path=f"{tmp_path}", words=[])
        assert done.returncode == 1
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert "Python 3.11 or newer" in done.stderr

    def test_a_browser_that_is_there_is_taken(self, tmp_path: Path) -> None:
        browser = tmp_path / "google-chrome"
        browser.write_text("#!/bin/sh\necho Google Chrome 150\n")
        browser.chmod(0o755)
        done = said("find-chromium", path=f"{tmp_path}", words=["/nonexistent/python"])
        assert (done.returncode, done.stdout) == (0, f"{browser}\n")

    @pytest.mark.parametrize("broken", [True, False])
    def test_a_browser_that_is_missing_is_one_sentence(self, tmp_path: Path, broken: bool) -> None:
        if broken:
            browser = tmp_path / "chromium"
            browser.write_text("#!/bin/sh\nexit 127\n")
            browser.chmod(0o755)
        done = said("find-chromium", path=f"{tmp_path}", words=["/nonexistent/python"])
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.splitlines()[-1].startswith("The browser tests need Chromium or Chrome")


def said(tool: str, *, path: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a tool of set-up with `path` as its only search path."""
    command = ["/bin/bash", str(ROOT / "tools" / tool), *words]
    return subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=False)
