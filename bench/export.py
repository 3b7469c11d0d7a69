"""How fast data gets out: rows a second, the first byte, and what the web process grows by.

    python bench/export.py [--candidates 60000] [--formats records preference]

Starts a PostgreSQL of its own and the web server, fills a project with judged candidate sets of six by SQL, and pulls
each format whole over HTTP, uncompressed. Processor seconds tell what a quiet machine would do: the database makes a
page while the web process sends the one before.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import psutil
from sqlalchemy import text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app import connect, migrate
from app.db import session_scope
from app.embedded import Embedded
from app.models import Role, Scope
from app.services import images, projects, users
from app.services.actors import SYSTEM
from bench.serving import free_port, memory_mb, serve
from tests.factories import image_bytes

SLUG = "bench"
SET = 6
FILL = [
    """INSERT INTO prompts (project_id, external_id, split, state, question, answer)
    SELECT :project, 'p' || n, 'train', 'judged', 'What stands on the left of picture number ' || n || '?', 'a duck'
    FROM generate_series(1, :sets) n""",
    "INSERT INTO prompt_images (prompt_id, position, sha256) SELECT id, 0, :image FROM prompts",
    """INSERT INTO candidate_sets
        (project_id, prompt_id, version_id, source, state, answer, answer_source, slots, taken)
    SELECT :project, id, (SELECT active_version_id FROM projects WHERE id = :project), 'model', 'judged', answer,
        'gold', 1, 1 FROM prompts""",
    """INSERT INTO candidates (candidate_set_id, position, text, temperature, seed, mean_logprob, n_tokens)
    SELECT s.id, n, 'it has a bill and feathers of colour ' || n || ', as ducks of set ' || s.id || ' have', 0.7,
        9000000000 + s.id, -0.5123, 14 FROM candidate_sets s, generate_series(0, 5) n""",
    """INSERT INTO assignments (project_id, candidate_set_id, critic_id, slot, state, shown, expires_at)
    SELECT :project, s.id, :critic, 1, 'judged',
        ARRAY(SELECT c.id FROM candidates c WHERE c.candidate_set_id = s.id ORDER BY c.position), now()
    FROM candidate_sets s""",
    """INSERT INTO verdicts
        (project_id, assignment_id, candidate_set_id, prompt_id, critic_id, kind, shown, seconds)
    SELECT :project, a.id, s.id, s.prompt_id, :critic, 'picked', a.shown, 4.2
    FROM assignments a JOIN candidate_sets s ON s.id = a.candidate_set_id ORDER BY a.id""",
    "INSERT INTO picks (verdict_id, candidate_id) SELECT id, shown[1 + id % 6] FROM verdicts",
]


@dataclass(frozen=True)
class Pulled:
    """One pull of a dataset: rows, bytes, seconds to the first byte and to the last, the web process's largest MB."""

    rows: int
    size: int
    first: float
    seconds: float
    megabytes: float


def fill(sets: int) -> str:
    """A project with `sets` judged candidate sets; an admin's token."""
    with session_scope() as session:
        project = projects.create_project(session, SYSTEM, slug=SLUG, name="Bench", settings={"auto_rounds": False})
        image = images.add_image(session, SYSTEM, image_bytes())
        admin = users.add_user(session, SYSTEM, email="admin@example.org", role=Role.admin)
        token = users.create_token(session, SYSTEM, user_id=admin.id, scope=Scope.read)[1]
        values = {"project": project.id, "image": image.sha256, "critic": admin.id, "sets": sets}
    for statement in FILL:
        with session_scope() as session:
            session.execute(text("SET LOCAL statement_timeout = 0"))
            session.execute(text("SET LOCAL transaction_timeout = 0"))
            session.execute(text(statement), values)
    with session_scope() as session:
        session.connection().exec_driver_sql("ANALYZE")
    return token


def pull(port: int, token: str, form: str, server: psutil.Process) -> Pulled:
    """The whole dataset in one format, read as fast as it comes."""
    connection = HTTPConnection("127.0.0.1", port, timeout=600)
    began = time.perf_counter()
    connection.request(
        "GET", f"/api/v1/projects/{SLUG}/dataset?format={form}", headers={"Authorization": f"Bearer {token}"}
    )
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"{answer.status}: {answer.read(2000)!r}")
    piece = answer.read(1)
    first = time.perf_counter() - began
    rows, size, largest = 0, 0, 0.0
    while piece:
        rows += piece.count(b"\n")
        size += len(piece)
        largest = max(largest, server.memory_info().rss / 2**20)
        piece = answer.read(1 << 20)
    return Pulled(rows, size, first, time.perf_counter() - began, largest)


def processor_seconds(processes: list[psutil.Process]) -> float:
    """What some processes and their children have used."""
    used = 0.0
    for process in processes:
        for one in (process, *process.children(recursive=True)):
            times = one.cpu_times()
            used += times.user + times.system
    return used


def main() -> None:
    """Run with a database of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=60_000)
    parser.add_argument("--formats", nargs="+", default=["records", "preference"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        os.environ |= {"ILLUME_DATA_DIR": folder, "ILLUME_SECRET_KEY": "a key for this bench only"}
        with Embedded(Path(folder)) as services:
            connect.use({"database_url": services.database_url, "redis_url": services.redis_url})
            migrate.upgrade(services.database_url)
            token = fill(options.candidates // SET)
            port = free_port()
            server = serve(port, 1, Path(folder) / "web.log")
            web = psutil.Process(server.pid)
            try:
                print(
                    "| format | rows | MB | rows/s | web processor s | first byte | web MB before | at most | growth |"
                )
                print("|---|---|---|---|---|---|---|---|---|")
                for form in options.formats:
                    before, used = memory_mb(server), processor_seconds([web])
                    found = pull(port, token, form, web)
                    used = processor_seconds([web]) - used
                    print(
                        f"| {form} | {found.rows} | {found.size / 2**20:.0f} | {found.rows / found.seconds:.0f} "
                        f"| {used:.1f} | {1000 * found.first:.0f} ms | {before:.0f} | {found.megabytes:.0f} "
                        f"| {found.megabytes - before:.0f} |",
                        flush=True,
                    )
            finally:
                server.terminate()
                server.wait(30)
                connect.forget_settings()


if __name__ == "__main__":
    main()
