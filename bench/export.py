"""How fast exports are: rows a second, time to the first byte, memory of the web process, and waits of critics.

    python bench/export.py [--candidates 60000] [--formats records preference] [--pulls 2] [--critics 8]

Starts its own PostgreSQL and web server, fills a project by SQL with judged sets of six candidates, and downloads
each format completely over HTTP, uncompressed. A row is a line: in `records` a verdict with its prompt and all six
candidates, in `preference` a pair, of which each set has five. Then `--critics` critics claim and judge as fast as
they can, first alone and then during repeated downloads. Everything runs on the same machine; the load average before
the run shows how idle it was.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.db import migrations
from app.db.sessions import session_scope
from app.models import Role, Scope
from app.processes import connect
from app.processes.embedded import Embedded
from app.services.accounts import users
from app.services.kernel.actors import SYSTEM
from app.services.projects import projects
from app.services.prompts import images
from bench import filling, load
from bench.critics import SLUG, postmaster
from bench.serving import free_port, serve
from tests.factories import image_bytes

SET = 6
LOOPS = 600  # no machine does more in a second, so that the critics always find a set
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
        9000000000 + s.id, -0.5123, 14 FROM candidate_sets s, generate_series(0, 5) n ORDER BY s.id, n""",
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


def fill(sets: int, ready: int, people: int) -> tuple[str, list[str]]:
    """A project with `sets` judged and `ready` claimable sets; an admin's token, and one for each of its critics."""
    with session_scope() as session:
        project = projects.create_project(session, SYSTEM, slug=SLUG, name="Bench", settings=filling.SETTINGS)
        image = images.add_image(session, SYSTEM, image_bytes())
        admin = users.add_user(session, SYSTEM, email="admin@example.org", role=Role.admin)
        token = users.create_token(session, SYSTEM, user_id=admin.id, scope=Scope.read)[1]
        values = {"project": project.id, "image": image.sha256, "critic": admin.id, "sets": sets}
    for statement in FILL:
        filling.patiently(statement, values)
    critics, tokens = filling.add_critics(people)
    filling.let_in(project.id, critics)
    if ready:
        offered = {"project": project.id, "first": 1, "last": ready, "overlap": 1, "candidates": SET}
        filling.patiently(filling.FILL, offered)
    filling.settle()
    return token, tokens


def pull(port: int, token: str, form: str, server: psutil.Process, *, stop: threading.Event | None = None) -> Pulled:
    """The whole dataset in one format, read as fast as it comes, or until `stop` is set."""
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
    while piece and not (stop and stop.is_set()):
        rows += piece.count(b"\n")
        size += len(piece)
        largest = max(largest, server.memory_info().rss / 2**20)
        piece = answer.read(1 << 20)
    connection.close()
    return Pulled(rows, size, first, time.perf_counter() - began, largest)


def processor_seconds(process: psutil.Process) -> float:
    """What a process and its children have used."""
    used = 0.0
    for one in (process, *process.children(recursive=True)):
        times = one.cpu_times()
        used += times.user + times.system
    return used


def show_pulls(options: argparse.Namespace, port: int, token: str, web: psutil.Process) -> None:
    """Pull each format alone, and print the table."""
    database = psutil.Process(postmaster())
    print(
        "| format | rows | MB | rows/s | web, PostgreSQL: processor s | first byte | web MB: before | most | growth |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for form in options.formats * options.pulls:
        before = web.memory_info().rss / 2**20
        used = processor_seconds(web), processor_seconds(database)
        found = pull(port, token, form, web)
        used = processor_seconds(web) - used[0], processor_seconds(database) - used[1]
        print(
            f"| {form} | {found.rows} | {found.size / 2**20:.0f} | {found.rows / found.seconds:.0f} "
            f"| {used[0]:.1f}, {used[1]:.1f} | {1000 * found.first:.0f} ms "
            f"| {before:.0f} | {found.megabytes:.0f} | {found.megabytes - before:.0f} |",
            flush=True,
        )


def beside(options: argparse.Namespace, port: int, tokens: list[str], token: str, form: str | None) -> str:
    """What the critics see while a format is pulled over and over (None: while nothing is), as a row of the table."""
    web, stop, pulled = psutil.Process(), threading.Event(), []

    def keep_pulling() -> None:
        while form is not None and not stop.is_set():
            pulled.append(pull(port, token, form, web, stop=stop))

    thread = threading.Thread(target=keep_pulling)
    thread.start()
    seen = load.run(load.Target(f"http://127.0.0.1:{port}", SLUG), tokens, options.seconds)
    stop.set()
    thread.join()
    rows, seconds = sum(one.rows for one in pulled), sum(one.seconds for one in pulled)
    first = max((one.first for one in pulled), default=0.0)
    pace = f"{rows / seconds:.0f} | {1000 * first:.0f} ms" if pulled else " | "
    times = " | ".join(f"{seen.percentile('claim', share):.1f}" for share in (0.5, 0.95, 0.99))
    failed = sum(seen.errors.values())
    return f"| {form or 'nothing'} | {pace} | {times} | {seen.loops / seen.seconds:.0f} | {failed}, {seen.empty} |"


def show_critics(options: argparse.Namespace, port: int, tokens: list[str], token: str) -> None:
    """Let critics work alone and beside pulls, in turns, and print the table."""
    print(
        f"\n| pulled beside {options.critics} critics | rows/s | latest first byte | claim p50 (ms) | p95 | p99 ",
        end="",
    )
    print("| loops/s | errors, nothing ready |\n|---|---|---|---|---|---|---|---|")
    for form in (None, *options.formats, None):
        print(beside(options, port, tokens, token, form), flush=True)


def main() -> None:
    """Run with a database of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=60_000)
    parser.add_argument("--formats", nargs="+", default=["records", "preference"])
    parser.add_argument("--pulls", type=int, default=2, help="how often each format is pulled alone, in turns")
    parser.add_argument("--critics", type=int, default=8, help="0: pull only")
    parser.add_argument("--seconds", type=float, default=10, help="how long the critics work each time")
    options = parser.parse_args()
    ready = int(LOOPS * options.seconds * (2 + len(options.formats))) if options.critics else 0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        os.environ |= {"ILLUME_DATA_DIR": folder, "ILLUME_SECRET_KEY": "a key for this bench only"}
        with Embedded(Path(folder)) as services:
            connect.use_services({"database_url": services.database_url, "redis_url": services.redis_url})
            migrations.upgrade(services.database_url)
            token, tokens = fill(options.candidates // SET, ready, options.critics)
            print(f"load before: {os.getloadavg()[0]:.1f} on {psutil.cpu_count()} cores\n", flush=True)
            port = free_port()
            server = serve(port, 1, Path(folder) / "web.log")
            try:
                show_pulls(options, port, token, psutil.Process(server.pid))
                if options.critics:
                    show_critics(options, port, tokens, token)
            finally:
                server.terminate()
                server.wait(30)
                connect.forget_settings()


if __name__ == "__main__":
    main()
