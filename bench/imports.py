"""How long a large import takes, and how much memory: 100,000 prompts of which 1 % are bad, killed in the middle.

    python bench/imports.py [--lines 100000] [--bad 0.01]

Starts its own PostgreSQL. A process imports the file and is killed halfway; a second one resumes the
import. Then queries check that nothing is duplicated or missing, and that each bad line is reported.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlalchemy import text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.db import migrations
from app.db.engine import get_engine
from app.db.sessions import session_factory, session_scope
from app.models import Import
from app.processes import connect
from app.processes.embedded import Embedded
from app.services.imports import imports
from app.services.imports.running import run_import
from app.services.kernel.actors import SYSTEM
from app.services.projects import projects
from app.services.prompts import images
from tests.factories import image_bytes

PICTURES = 50


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--bad", type=float, default=0.01)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="illume-bench-") as folder:
        Path(folder).chmod(0o711)  # as root PostgreSQL runs as another account and has to pass
        services = Embedded(Path(folder), durable=False, with_redis=False)
        services.start()
        try:
            os.environ.update(ILLUME_DATA_DIR=folder, ILLUME_DATABASE_URL=services.database_url, ILLUME_REDIS_URL="")
            connect.forget_settings()
            migrations.upgrade(services.database_url)
            show(measure(options.lines, round(1 / options.bad)))
        finally:
            connect.forget_settings()
            services.stop()


def measure(lines: int, every: int) -> list[tuple[str, str]]:
    """Take the file in, killed at half of it, and look at what came of it."""
    with session_scope() as session:
        project = projects.create_project(session, SYSTEM, slug="bench", name="bench", settings={"auto_rounds": False})
        keys = [images.add_image(session, SYSTEM, image_bytes()).sha256 for _ in range(PICTURES)]
    data = b"".join(line(number, keys, bad=number % every == every - 1) for number in range(lines))
    with session_scope() as session:
        project = projects.get_project(session, SYSTEM, "bench")
        made = imports.create_import(session, SYSTEM, project, filename="b.jsonl", source=io.BytesIO(data)).id
    get_engine().dispose()
    first = in_a_process(made, die_at=lines // 2)
    with session_scope() as session:
        broken = session.get_one(Import, made)
        half, broken.beats_at = broken.done, None
    get_engine().dispose()
    second = in_a_process(made, die_at=None)
    with session_scope() as session:
        found = session.get_one(Import, made)
        count = "SELECT count(*), count(DISTINCT external_id) FROM prompts"
        rows, distinct = session.execute(text(count)).one()
        problems = session.scalar(text("SELECT count(*) FROM import_problems"))
    bad = lines // every
    assert (found.state.value, rows, distinct, problems) == ("succeeded", lines - bad, lines - bad, bad)
    return [
        ("lines", f"{lines:,}"),
        ("file (MB)", f"{len(data) / 1e6:.1f}"),
        ("seconds until it was killed", f"{first['seconds']:.1f}"),
        ("rows done by then", f"{half:,}"),
        ("seconds for the rest", f"{second['seconds']:.1f}"),
        ("rows a second", f"{lines / (first['seconds'] + second['seconds']):,.0f}"),
        ("peak memory of the worker (MB)", f"{second['peak']:.0f}"),
        ("of that before it began (MB)", f"{second['before']:.0f}"),
        ("prompts added", f"{rows:,}"),
        ("twice or missing", "0"),
        ("rejected lines reported", f"{problems:,}"),
    ]


def line(number: int, keys: list[str], *, bad: bool) -> bytes:
    """A line of the file."""
    item = {
        "external_id": f"bench-{number}",
        "images": [keys[number % len(keys)]],
        "question": "" if bad else f"What is in picture {number}?",
        "answer": "a red umbrella",
        "references": [f"it stands in the sand beside {number} others", "it has a pole and a canopy"],
        "metadata": {"source": "bench", "number": number},
    }
    return json.dumps(item).encode() + b"\n"


def in_a_process(import_id: int, *, die_at: int | None) -> dict[str, float]:
    """Run the import in a process of its own; with `die_at` it is killed once that many rows are done."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    started = time.monotonic()
    child = context.Process(target=work, args=(import_id, theirs))
    child.start()
    theirs.close()
    while die_at is not None and child.is_alive():
        with session_scope() as session:
            if session.get_one(Import, import_id).done >= die_at:
                child.kill()
                break
        time.sleep(0.1)
    told: dict[str, float] = {} if die_at is not None else ours.recv()
    child.join()
    return {**told, "seconds": time.monotonic() - started}


def work(import_id: int, pipe: Any) -> None:
    """Take the import in, and tell how much memory that took."""
    session_factory()
    before = peak()
    run_import(import_id, worker=f"bench:{os.getpid()}", check=lambda: None)
    pipe.send({"before": before, "peak": peak()})


def peak() -> float:
    """The most memory this process has used so far, in MB."""
    # What getrusage says of a child begins with what its parent had used.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def show(rows: list[tuple[str, str]]) -> None:
    """Print the table."""
    print("| measure | value |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
