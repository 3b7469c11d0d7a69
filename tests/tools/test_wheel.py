"""The wheel holds everything, claims one top-level name, and works where there is no repository.

The environment it is installed into borrows the packages it depends on from the one that runs the tests; Illume itself,
its data and its command come from the wheel alone.
"""

from __future__ import annotations

import contextlib
import email
import json
import os
import re
import subprocess
import sys
import sysconfig
import threading
import time
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from trove_classifiers import classifiers

from app.processes.embedded import Embedded, free_port
from app.processes.supervise import stop_child
from app.settings import ROOT
from hatch_build import ASSETS, SERVER
from tests import factories
from tests.conftest import maintenance, numbers

PATIENCE = 300.0
PYTHON = "Programming Language :: Python ::"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of a new environment are, into which the wheel was installed.

    `WHEEL_ENVIRONMENT` names one instead that has the wheel and its dependencies already, as the workflow makes it.
    """
    if given := os.environ.get("WHEEL_ENVIRONMENT"):
        return Path(given).resolve() / "bin"
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / "bin" / "python"
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    # Lines that begin with `import`, as of an editable installation, are not followed from there.
    (Path(where.stdout.strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--force-reinstall", str(wheel)], check=True, env=bare_environment())
    return home / "bin"


def bare_environment(**variables: str) -> dict[str, str]:
    """The environment of a person who has no repository: without our settings and search path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ILLUME_", "PYTHON"))}
    return {**kept, **variables}


def run(
    command: list[str | Path], folder: Path, *, said: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in `folder`, as a person would who has no repository."""
    return subprocess.run(
        command,
        cwd=folder,
        env=bare_environment(**variables),
        input=said,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def tree(folder: str) -> set[str]:
    """The files of a folder of the repository, without what Python writes there."""
    files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in files}


def checksums(wheel: Path) -> dict[str, int]:
    """The files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.CRC for info in archive.infolist()}


class TestFiles:
    def test_they_are_those_of_the_repository(self, wheel: Path) -> None:
        names = set(checksums(wheel))
        found = {name for name in names if ".dist-info/" not in name}
        assert found == tree("illume") | {f"illume/_server/{path}" for folder in SERVER for path in tree(folder)}
        assert {f"illume/_server/{asset}" for asset in ASSETS} < found
        info = {name.partition(".dist-info/")[2] for name in names - found}
        assert info >= {"licenses/LICENSE", "licenses/NOTICE", "entry_points.txt"}
        assert not any(path.suffix == ".pyc" for path in map(Path, names))

    @pytest.mark.slow
    def test_a_wheel_that_is_built_from_the_source_distribution_has_the_same(self, wheel: Path, tmp_path: Path) -> None:
        """As `make dist` builds both, and as others build who have no repository."""
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        [source], [built] = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
        assert (source.name.removesuffix(".tar.gz"), built.name) == ("-".join(wheel.name.split("-")[:2]), wheel.name)
        assert checksums(built) == checksums(wheel)

    def test_the_metadata_say_what_the_project_is(self, wheel: Path) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        with zipfile.ZipFile(wheel) as archive:
            [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            data = email.message_from_bytes(archive.read(name))
        assert data["Version"] == project["version"]
        assert data["License-Expression"] == "Apache-2.0"
        assert data["Author"] == "The Illume authors"
        assert data["Requires-Python"] == ">=3.11"
        assert set(data.get_all("Provides-Extra") or []) == set(project["optional-dependencies"])
        assert sorted(data["Keywords"].split(",")) == sorted(project["keywords"])
        assert {"preference data", "rationales", "vision-language models"} < set(project["keywords"])
        assert sorted(data.get_all("Classifier") or []) == sorted(project["classifiers"])
        assert set(project["classifiers"]) <= classifiers

    def test_the_classifiers_name_the_pythons_that_the_workflow_requires(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "wheel.yml").read_text())
        matrix = workflow["jobs"]["wheel"]["strategy"]["matrix"]
        named = [one.rpartition(" ")[2] for one in project["classifiers"] if one.startswith(f"{PYTHON} 3.")]
        assert named == matrix["python"]
        tried = re.findall(r"python(3\.\d+)", (ROOT / "tools" / "find-python").read_text())
        others = {one["python"] for one in matrix["include"] if one["untried"]}
        assert set(tried) <= {*named, *others}

    def test_without_the_browser_assets_none_is_built(self, tmp_path: Path) -> None:
        for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "NOTICE"):
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
        (tmp_path / "illume").mkdir()
        (tmp_path / "illume" / "__init__.py").touch()
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "static/vendor/htmx.min.js is missing: `make dist` fetches it" in done.stderr


class TestInstalled:
    def test_the_library_alone_loads_no_server(self, bin_folder: Path, tmp_path: Path) -> None:
        code = "import illume, sys; print(illume.__file__, *sorted({name.partition('.')[0] for name in sys.modules}))"
        done = run([bin_folder / "python", "-c", code], tmp_path)
        file, *loaded = done.stdout.split()
        assert Path(file).is_relative_to(bin_folder.parent)
        assert "illume" in loaded
        assert not {"app", "worker", "fastapi", "sqlalchemy", "celery", "torch", "uvicorn"} & set(loaded)

    @pytest.mark.parametrize("name", ["app", "worker"])
    def test_the_name_stays_free_for_others(self, bin_folder: Path, tmp_path: Path, name: str) -> None:
        done = run([bin_folder / "python", "-c", f"import {name}"], tmp_path)
        assert f"No module named '{name}'" in done.stderr

    def test_sign_in_a_verdict_and_an_export(self, bin_folder: Path, embedded: Embedded, tmp_path: Path) -> None:
        port = free_port()
        for name in ("app", "worker"):  # as the folder of somebody's own server may have them
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text("raise SystemExit('not this one')\n")
        with empty_database(embedded) as url:
            variables = {
                "ILLUME_DATABASE_URL": url,
                "ILLUME_REDIS_URL": embedded.redis_url,
                "ILLUME_DATA_DIR": str(tmp_path / "data"),
                "ILLUME_PORT": str(port),
            }
            illume = Installation(bin_folder, tmp_path, variables)
            illume.run("db", "upgrade")
            illume.run("project", "add", "birds", "--name", "Birds")
            illume.run("user", "add", "lead@example.org", "--role", "admin", "--password-stdin", said=PASSWORD)
            illume.run("user", "add", "ann@example.org", "--role", "critic", "--project", "birds")
            lead = illume.run("token", "add", "lead@example.org", "--scope", "admin").split()[-1]
            ann = illume.run("token", "add", "ann@example.org", "--scope", "write").split()[-1]
            with illume.running("serve"), illume.running("worker", "--queues", "default"):
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, follow_redirects=True) as client:
                    wait_until_ready(client)
                    assert "Birds" in sign_in(client, "lead@example.org", PASSWORD)
                    judge(client, lead, ann)
                wait_for_worker(illume)
            illume.run("export", "birds", "--format", "records", "--out", "birds.jsonl")
        [record] = [json.loads(line) for line in (tmp_path / "birds.jsonl").read_text().splitlines()]
        assert [one["text"] for one in record["candidates"] if one["picked"]] == ["a red breast shows."]


PASSWORD = "a password that nobody guesses"


class Installation:
    """The commands of an installed wheel, in a folder that has nothing of the repository."""

    def __init__(self, bin_folder: Path, folder: Path, variables: dict[str, str]) -> None:
        self.program = bin_folder / "illume"
        self.folder = folder
        self.variables = variables

    def run(self, *words: str, said: str = "") -> str:
        """Run a command to its end, and return what it printed."""
        done = run([self.program, *words], self.folder, said=said, **self.variables)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def running(self, *words: str) -> Iterator[None]:
        """Run a command that keeps running during the block. Its log is printed where the test fails."""
        log = self.folder / f"{words[0]}.log"
        with log.open("wb") as file:
            child = subprocess.Popen(
                [self.program, *words],
                cwd=self.folder,
                env=bare_environment(**self.variables),
                stdout=file,
                stderr=file,
            )
        try:
            yield
            assert child.poll() is None, log.read_text()
        finally:
            stop_child(child, patience=60)
            print(log.read_text())

    @contextlib.contextmanager
    def demo(self) -> Iterator[str]:
        """Run the demo on a free port during the block, for PATIENCE seconds at most; its address, once it is ready."""
        command: list[str | Path] = [self.program, "demo", "--port", "0", "--no-browser"]
        environment = bare_environment(**self.variables)
        with subprocess.Popen(command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True) as demo:
            timer = threading.Timer(PATIENCE, demo.kill)
            timer.start()
            try:
                yield next(line.split()[-1] for line in demo.stdout or () if line.startswith("ready: "))
            finally:
                timer.cancel()
                stop_child(demo, patience=60)


@contextlib.contextmanager
def empty_database(embedded: Embedded) -> Iterator[str]:
    """The URL of a new database without tables."""
    name = f"wheel_{os.getpid()}_{next(numbers)}"
    with maintenance(embedded.database_url) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield embedded.database_url.replace("/illume?", f"/{name}?")
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def wait_until_ready(client: httpx.Client) -> None:
    """Ask until the server says that it is ready."""
    end = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(httpx.TransportError):
            if client.get("/readyz").status_code == 200:
                return
        assert time.monotonic() < end
        time.sleep(0.1)


def wait_for_worker(illume: Installation) -> None:
    """Ask until the health check finds the worker."""
    end = time.monotonic() + PATIENCE
    while (
        "not"
        in run([illume.program, "worker", "--queues", "default", "--check"], illume.folder, **illume.variables).stdout
    ):
        assert time.monotonic() < end


def sign_in(client: httpx.Client, email: str, password: str) -> str:
    """Sign in by the form. Returns the page for admins, whose styles and scripts are there."""
    form = client.get("/sign-in").text
    fields = {"csrf_token": csrf_of(form), "next": "/admin", "email": email, "password": password}
    client.post("/sign-in", data=fields).raise_for_status()
    page = client.get("/admin").raise_for_status().text
    files = re.findall(r'(?:href|src)="(/static/[^"]+)"', page)
    assert any("vendor/htmx" in file for file in files)
    for file in files:
        assert client.get(file).status_code == 200, file
    return page


def csrf_of(page: str) -> str:
    """The token of the forms of a page."""
    return re.findall(r'name="csrf_token" value="([^"]+)"', page)[0]


def judge(client: httpx.Client, lead: str, ann: str) -> None:
    """Add a prompt with two explanations as one account, and pick the first as the other."""
    as_lead, as_ann = ({"Authorization": f"Bearer {token}"} for token in (lead, ann))
    image = client.post("/api/v1/images", headers=as_lead, files={"file": ("robin.png", factories.image_bytes())})
    prompt = {
        "external_id": "robin",
        "images": [image.raise_for_status().json()["sha256"]],
        "question": "Which bird is this?",
        "answer": "a robin",
        "candidates": ["a red breast shows.", "robins are robins."],
    }
    client.post("/api/v1/projects/birds/prompts", headers=as_lead, json=prompt).raise_for_status()
    claim = client.post("/api/v1/projects/birds/assignments", headers=as_ann).raise_for_status().json()
    [pick] = [one["id"] for one in claim["candidates"] if one["text"] == "a red breast shows."]
    verdict = {"kind": "picked", "picks": [pick]}
    client.post(f"/api/v1/assignments/{claim['id']}/verdict", headers=as_ann, json=verdict).raise_for_status()


@pytest.mark.slow
def test_the_demo_of_the_wheel_from_sign_in_to_export(bin_folder: Path, tmp_path: Path) -> None:
    """With PostgreSQL, Redis and model of its own, as after `pip install` on a new machine."""
    tmp_path.chmod(0o711)
    installation = Installation(bin_folder, tmp_path, {"XDG_DATA_HOME": str(tmp_path), "HOME": str(tmp_path)})
    with installation.demo() as address:
        accounts = json.loads((tmp_path / "illume" / "demo-accounts.json").read_text())
        with httpx.Client(base_url=address, timeout=60, follow_redirects=True) as client:
            assert "Scenes" in sign_in(client, accounts["admin"]["email"], accounts["admin"]["password"])
            guide = client.get("/help/").raise_for_status().text
            assert ("The guide to Illume" in guide) == (ROOT / "static" / "help").exists()
            take_sample(client, installation)
        headers = {"Authorization": f"Bearer {accounts['critic']['token']}"}
        with httpx.Client(base_url=f"{address}/api/v1", headers=headers, timeout=60) as client:
            while (answer := client.post("/projects/scenes/assignments")).status_code == 204:
                time.sleep(0.5)
            claim = answer.raise_for_status().json()
            verdict = {"kind": "picked", "picks": [claim["candidates"][0]["id"]]}
            client.post(f"/assignments/{claim['id']}/verdict", json=verdict).raise_for_status()
        installation.run("export", "scenes", "--format", "records", "--out", "scenes.jsonl")
    [record] = [json.loads(line) for line in (tmp_path / "scenes.jsonl").read_text().splitlines()]
    [picked] = [one for one in record["candidates"] if one["picked"]]
    assert picked["text"] == claim["candidates"][0]["text"]
    assert picked["mean_logprob"] <= 0  # a model wrote it


def take_sample(client: httpx.Client, installation: Installation) -> None:
    """Take the photographs that the wheel brings into a new project, and wait until all of them are prompts."""
    installation.run("project", "add", "photographs", "--name", "Photographs")
    form = client.get("/admin/projects/photographs/imports").raise_for_status().text
    fields = {"csrf_token": csrf_of(form)}
    client.post("/admin/projects/photographs/imports/sample", data=fields).raise_for_status()
    questions = (ROOT / "starter" / "photographs" / "prompts.jsonl").read_text().splitlines()
    end = time.monotonic() + PATIENCE
    while len(client.get("/api/v1/projects/photographs/prompts").raise_for_status().json()["items"]) < len(questions):
        assert time.monotonic() < end
        time.sleep(0.5)
