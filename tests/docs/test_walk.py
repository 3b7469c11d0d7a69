"""Somebody who has only the guide: own photos to a verdict, a REST client, a second worker, a backup and a restore."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from PIL import Image

from app.settings import ROOT
from tests.docs.blocks import blocks, snippets

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EXPORTED = re.compile(r"^export (\w+)=.*$", re.MULTILINE)
OWN, REST, DEPLOYING = (ROOT / "docs" / name for name in ("own-data.md", "rest.md", "deploying.md"))


@dataclass
class Newcomer:
    """A folder in which commands are run, with `illume` in the path."""

    folder: Path
    environment: dict[str, str]
    began: float

    @property
    def seconds(self) -> float:
        """How long ago they began."""
        return time.monotonic() - self.began

    def run(self, command: list[str], **more: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | more,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def shell(self, text: str, **more: str) -> str:
        return self.run(["bash", "-euc", text], **more)

    def start(self, text: str) -> subprocess.Popen[str]:
        """Run what is typed into a shell until its last command ends, which takes the shell's place."""
        *before, last = text.strip().splitlines()
        return subprocess.Popen(
            ["bash", "-euc", "\n".join([*before, f"exec {last}"])],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    """Two photos, and nothing else."""
    for name, colour in (("bridge", "steelblue"), ("market", "tomato")):
        path = tmp_path / "photos" / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (640, 480), colour).save(path)
        Image.new("RGB", (640, 480), colour).save(tmp_path / path.name)
    program = tmp_path / "bin" / "illume"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m app.cli "$@"\n')
    program.chmod(0o755)
    own = {name: value for name, value in os.environ.items() if not name.startswith("ILLUME_")}
    own |= {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return Newcomer(tmp_path, {**own, "ILLUME_DATA_DIR": str(tmp_path / "data")}, time.monotonic())


@pytest.fixture
def demo(newcomer: Newcomer) -> Iterator[str]:
    """A running demo; its address."""
    process = newcomer.start("illume demo --port 0 --no-browser")
    assert process.stdout is not None
    address = ""
    for line in process.stdout:
        if line.startswith("ready: "):
            address = line.removeprefix("ready: ").strip()
            break
    yield address
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def accepts(newcomer: Newcomer, rest: dict[str, str]) -> str:
    """What the client of the page says once sets are ready."""
    [client] = snippets(REST, "python")
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        said = newcomer.run([sys.executable, "-c", client], **rest)
        if not said.startswith("0 "):
            return said
        time.sleep(1)
    pytest.fail("no set was ready in four minutes")


def test_photos_to_the_first_round_with_a_second_worker_and_a_backup(
    newcomer: Newcomer, demo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = newcomer.folder / "data"
    token = json.loads((data / "demo-accounts.json").read_text())["admin"]["token"]
    rest = {"URL": demo, "TOKEN": token, "PROJECT": "street"}
    table, create, bring, export = snippets(OWN, "sh")
    newcomer.shell(table)
    newcomer.shell(create)
    assert "2 added, 0 of them to val, 0 unchanged, 0 rejected" in newcomer.shell(bring)
    assert accepts(newcomer, rest) == "2 sets judged\n"
    with capsys.disabled():
        print(f"\nfrom the start of the demo to the first verdicts on one's own photos: {newcomer.seconds:.0f} s")
    adding, every_format = snippets(REST, "sh")
    assert '"external_id":"market"' in newcomer.shell(adding, **rest)
    newcomer.shell(every_format, **rest)
    assert len((newcomer.folder / "records.txt").read_text().splitlines()) == 2
    assert (newcomer.folder / "sft.parquet").stat().st_size > 0
    newcomer.shell(export)
    assert len((newcomer.folder / "street.jsonl").read_text().splitlines()) == 2
    second_worker(newcomer, data)
    backup, restore = snippets(DEPLOYING, "sh")
    newcomer.shell(backup)
    newcomer.shell(restore)
    newcomer.run(["illume", "export", "street", "--out", "after.jsonl", "--data-dir", "restored"])
    assert (newcomer.folder / "after.jsonl").read_text() == (newcomer.folder / "street.jsonl").read_text()


def second_worker(newcomer: Newcomer, data: Path) -> None:
    """Another machine, as far as this one can be two, by the commands of the page.

    Its data directory is its own, and the four shared things are those of the first.
    """
    services = json.loads((data / "services.json").read_text())
    shared = {
        "ILLUME_DATABASE_URL": services["database_url"],
        "ILLUME_REDIS_URL": services["redis_url"],
        "ILLUME_STORE_URL": str(data / "store"),
        "ILLUME_SECRET_KEY": (data / "secret.key").read_text().strip(),
        "ILLUME_DATA_DIR": str(newcomer.folder / "other"),
    }
    [joining] = [block.code for block in blocks(DEPLOYING) if "illume worker --queues model\n" in block.code]
    typed, names = fill_in(joining, shared)
    assert set(names) == set(shared)
    process = newcomer.start(typed)
    deadline = time.monotonic() + 240
    workers: set[str] = set()
    with psycopg.connect(services["database_url"], autocommit=True) as connection:
        while len(workers) < 2 and time.monotonic() < deadline:
            rows = connection.execute("SELECT name FROM workers WHERE queues = 'model'").fetchall()
            workers = {name for (name,) in rows}
            time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    said, _rest = process.communicate(timeout=60)
    assert len(workers) == 2, said


def fill_in(code: str, values: Mapping[str, str]) -> tuple[str, list[str]]:
    """The commands with one's own values in place of those that the page exports; and the names of these."""
    names = EXPORTED.findall(code)
    return EXPORTED.sub(lambda found: f"export {found[1]}={shlex.quote(values[found[1]])}", code), names


def test_a_table_is_written_of_a_folder_of_photos(newcomer: Newcomer) -> None:
    [code] = snippets(OWN, "python")
    newcomer.run([sys.executable, "-c", code])
    lines = (newcomer.folder / "photos" / "prompts.csv").read_text().splitlines()
    assert lines == ["image,question", "bridge.jpg,What is happening here?", "market.jpg,What is happening here?"]
