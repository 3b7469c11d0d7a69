"""The walk through a deployment: sign in, import with pictures, judge, a training round, export, backup and restore."""

from __future__ import annotations

import io
import json
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from app.db.engine import libpq_url
from app.settings import ROOT
from tests.chaos.installation import REASONS, SETTINGS, expect, wait_for
from tests.deployments.browser import judge_in_browser
from tests.deployments.site import CASES, PASSWORD, Site, scratch
from tests.illume.families import make_llava

SLUG = "scenes"
CRITIC = "critic@example.org"
WITH_CANDIDATES, TO_SAMPLE, VAL = 6, 2, 3
SETS = WITH_CANDIDATES + TO_SAMPLE
ENDED = ("succeeded", "failed", "cancelled")


@dataclass
class Report:
    """What was done in a case, each with the seconds it took."""

    case: str
    steps: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Do a step, and tell those who wait."""
        started = time.monotonic()
        yield
        self.steps.append((what, time.monotonic() - started))
        print(f"  {what}: {self.steps[-1][1]:.1f} s", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        told = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in self.steps)
        return f"{self.case}: {told}; {sum(seconds for _, seconds in self.steps):.0f} s in all"


def walk(case: str) -> Report:
    """Set a case up and walk through it. Raises AssertionError."""
    report = Report(case)
    with scratch() as folder:
        model = make_llava(folder / "model")
        with CASES[case](folder, model) as site:
            with report.step("tables and accounts"):
                token = prepare(site)
            with site.running():
                walk_through(site, token, report)
            with report.step("restore"):
                restore(site)
    return report


def prepare(site: Site) -> str:
    """Make the tables and two accounts. Returns a token of the admin."""
    token = site.admin_token()
    site.illume("project", "add", SLUG, "--name", "Scenes")
    site.illume("user", "add", CRITIC, "--role", "critic", "--project", SLUG, "--password-stdin", feed=PASSWORD)
    return token


def walk_through(site: Site, token: str, report: Report) -> None:
    """All that people do while the processes run."""
    with site.api(token) as rest:
        with report.step("doctor"):
            assert "PROBLEM" not in site.illume("doctor", "--skip-model")
        expect(rest.patch(f"/projects/{SLUG}", json={**SETTINGS, "overlap": 1, "pool_target": SETS}), 200)
        with report.step(f"import of {SETS + VAL} prompts with pictures"):
            files = {"file": ("prompts.jsonl", rows()), "images": ("images.zip", pictures())}
            made = expect(rest.post(f"/projects/{SLUG}/imports", files=files), 202)
            wait_for(lambda: expect(rest.get(f"/imports/{made['id']}"), 200)["state"] in ENDED, "the import ends")
            done = expect(rest.get(f"/imports/{made['id']}"), 200)
            assert (done["state"], done["added"], done["rejected"]) == ("succeeded", SETS + VAL, 0), done
        with report.step(f"explanations for {TO_SAMPLE} prompts"):
            wait_for(lambda: count(site, "candidate_sets", "state = 'ready'") == SETS, "every set is ready")
        with report.step(f"sign-in and {SETS} sets judged in a browser"):
            visit = judge_in_browser(site.url, SLUG, email=CRITIC, password=PASSWORD, sets=SETS)
            assert visit.outside == []
            assert [one for one in visit.failed if "/help/" not in one] == []  # the guide may not be built
            assert count(site, "verdicts", "state = 'counted'") == SETS
        with report.step("a training round"):
            started = expect(rest.post(f"/projects/{SLUG}/rounds"), 202)
            wait_for(lambda: expect(rest.get(f"/rounds/{started['id']}"), 200)["state"] in ENDED, "the round ends")
            ended = expect(rest.get(f"/rounds/{started['id']}"), 200)
            assert ended["state"] == "succeeded", ended
        with report.step("export"):
            lines = rest.get(f"/projects/{SLUG}/dataset").text.splitlines()
            assert len(export(site, "before").read_text().splitlines()) == len(lines) == SETS
        with report.step("backup"):
            site.illume("backup", "--out", str(site.folder / "backup.tar"))


def restore(site: Site) -> None:
    """Restore the backup on another machine, which must then export the same, byte for byte."""
    there = dict(site.elsewhere())
    site.illume("restore", str(site.folder / "backup.tar"), **there)
    assert "PROBLEM" not in site.illume("doctor", "--skip-model", **there)
    before, after = site.folder / "before", export(site, "after", **there).parent
    names = sorted(path.relative_to(before) for path in before.rglob("*") if path.is_file())
    assert len(names) == 1 + SETS
    assert names == sorted(path.relative_to(after) for path in after.rglob("*") if path.is_file())
    assert [name for name in names if (before / name).read_bytes() != (after / name).read_bytes()] == []


def export(site: Site, name: str, **more: str) -> Path:
    """Export the dataset with its pictures to a folder. Returns the file of rows."""
    folder = site.folder / name
    folder.mkdir()
    site.illume("export", SLUG, "--out", str(folder / "dataset.jsonl"), "--with-images", **more)
    return folder / "dataset.jsonl"


def count(site: Site, table: str, where: str) -> int:
    """How many rows of a table there are."""
    with psycopg.connect(libpq_url(site.environment["ILLUME_DATABASE_URL"])) as connection:
        [[found]] = connection.execute(f"SELECT count(*) FROM {table} WHERE {where}")  # noqa: S608 - constants
    return int(found)


def rows() -> bytes:
    """The file that is imported: prompts with explanations to judge, prompts without, and val prompts."""
    lines = []
    for number, path in enumerate(photographs()):
        row = {"external_id": f"walk-{number}", "images": [path.name], "question": "is there a lion?", "answer": "yes"}
        if number < WITH_CANDIDATES:
            row |= {"candidates": list(REASONS)}
        elif number >= SETS:
            row |= {"split": "val", "references": [REASONS[0]]}
        lines.append(json.dumps(row))
    return "\n".join(lines).encode()


def pictures() -> bytes:
    """A zip of the pictures that the rows name."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for path in photographs():
            file.write(path, path.name)
    return packed.getvalue()


def photographs() -> list[Path]:
    """One of the starter's pictures for each prompt."""
    return sorted((ROOT / "starter" / "scenes" / "images").iterdir())[: SETS + VAL]
