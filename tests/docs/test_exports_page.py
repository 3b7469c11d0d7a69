"""What docs/data/exports.md shows works against a server: its curl lines, its Python, and its R where there is one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from app.models import Role, Scope
from app.services.accounts import users
from app.services.kernel.actors import SYSTEM
from app.settings import ROOT
from tests import factories
from tests.app.services.judged import make_judged
from tests.conftest import CommittedDatabase
from tests.docs.blocks import snippets
from tests.serving import serve

PAGE = ROOT / "docs" / "data" / "exports.md"


@pytest.fixture
def world(committed_db: CommittedDatabase, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A server with a judged project; the environment that the page speaks of."""
    with committed_db.sessions() as session:
        project, _ = make_judged(session, prompts=5)
        reader = factories.make_user(session, role=Role.admin)
        _, token = users.create_token(session, SYSTEM, user_id=reader.id, scope=Scope.read)
        session.commit()
    with serve() as url:
        yield {
            **os.environ,
            "URL": url,
            "TOKEN": token,
            "PROJECT": project.slug,
            "HF_HOME": str(tmp_path / "cache"),
        }


def run(command: list[str], world: dict[str, str], folder: Path) -> str:
    done = subprocess.run(command, env=world, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_page_does_what_it_says(world: dict[str, str], tmp_path: Path) -> None:
    [shell] = snippets(PAGE, "sh")
    run(["bash", "-euc", shell], world, tmp_path)
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 5
    said = [run([sys.executable, "-c", code], world, tmp_path) for code in snippets(PAGE, "python")]
    assert len(said) == 4
    assert "(12, 8)" in said[0]
    assert re.search(r"none_fit\s+1\npicked\s+4", said[1])
    assert "[1.]" in said[1]
    assert said[2] == "Value('string') 5 records\n"
    assert int(said[3].split()[0]) > 5


def lacking_r() -> str | None:
    """Why the page's R cannot be run here; None where it can."""
    rscript = shutil.which("Rscript")
    if rscript is None:
        return "Rscript is not installed: the page's R is not run"
    found = subprocess.run([rscript, "-e", "library(jsonlite)"], capture_output=True, check=False, timeout=120)
    return None if found.returncode == 0 else "R lacks the package jsonlite: the page's R is not run"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_page_does_what_it_says_in_r(world: dict[str, str], tmp_path: Path) -> None:
    lacking = lacking_r()
    if lacking is not None:
        pytest.skip(lacking)
    [shell], [code] = snippets(PAGE, "sh"), snippets(PAGE, "r")
    run(["bash", "-euc", shell], world, tmp_path)
    (tmp_path / "page.R").write_text(code)
    said = run(["Rscript", "page.R"], world, tmp_path)
    assert re.search(r"none_fit\s+picked\s*\n\s*1\s+4\s*\n", said)
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    picks = sum(one["picked"] for record in records for one in record["candidates"])
    means = re.findall(r"none_fit\s+picked\s*\n\s*([\d.]+)\s+([\d.]+)\s*\n", said)[1]
    assert [float(mean) for mean in means] == [0, picks / 4]
    pairs = pq.read_table(tmp_path / "pairs.parquet", columns=["prompt_id"])
    sums = re.findall(r"^\d+\s+(\d+)\s+1$", said, re.MULTILINE)
    assert sorted(sums) == sorted(set(pairs["prompt_id"].to_pylist()))
