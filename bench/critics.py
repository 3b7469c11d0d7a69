"""Simulated critics over HTTP: claim, judge, claim again, as fast as they can.

    python bench/critics.py [--critics 1 8 32 128] [--prompts 5000] [--seconds 10] [--processes 1] [--overlap 1]
    python bench/critics.py --base-url https://illume.example.org --slug scenes --tokens tokens.txt

Without `--base-url` it starts a PostgreSQL and a web server of its own and fills a project by SQL: so many prompts of
six candidates each; `--done 100000` has the first critic judge so many of them before. With it, the critics work on
that installation, each with a token from the file (one on each line), and what only the server's machine knows is left
out. A loop is a claim and a verdict. Critics run on the same machine, in a process of their own. `--plan` prints the
claim's query plan for the first critic. Ends with 1 where something failed or a set was given to more critics than it
has slots.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app import connect, migrate
from app.db import session_scope
from app.embedded import Embedded
from app.models import Role, Scope
from app.services import claiming, images, projects, users
from app.services.actors import SYSTEM
from bench.serving import free_port, serve
from tests.factories import image_bytes

SLUG = "bench"
IMAGES = 50
CALLS = ("claim", "verdict")
# More than a request may take: filling a project is no request.
PATIENT = "SET LOCAL statement_timeout = 0; SET LOCAL transaction_timeout = 0"
FILL = """
WITH pictures AS (SELECT array_agg(sha256 ORDER BY sha256) AS all_of_them FROM images), asked AS (
    INSERT INTO prompts (project_id, split, state, question, answer, priority)
    SELECT :project, 'train', 'ready', 'What is it, number ' || n || '?', 'a duck', n % 3
    FROM generate_series(1, :prompts) n
    RETURNING id, priority
), shown AS (
    INSERT INTO prompt_images (prompt_id, position, sha256)
    SELECT asked.id, 0, all_of_them[1 + asked.id % cardinality(all_of_them)] FROM asked, pictures
), offered AS (
    INSERT INTO candidate_sets (project_id, prompt_id, source, state, answer, answer_source, priority, slots)
    SELECT :project, id, 'imported', 'ready', 'a duck', 'gold', priority, :overlap FROM asked
    RETURNING id
)
INSERT INTO candidates (candidate_set_id, position, text, temperature, mean_logprob)
SELECT offered.id, n, 'because of reason number ' || n || ' that can be seen in the image', 0.7, -0.5 - n / 10.0
FROM offered, generate_series(0, 5) n
"""
# What a critic did before: so many sets, the first in the order of claims.
DONE = """
WITH first AS (
    SELECT s.id, s.prompt_id FROM candidate_sets s WHERE s.project_id = :project ORDER BY s.rank, s.id LIMIT :done
), judged AS (
    INSERT INTO assignments (project_id, candidate_set_id, critic_id, slot, state, shown, expires_at)
    SELECT :project, first.id, :critic, 1, 'judged', ARRAY(
        SELECT c.id FROM candidates c WHERE c.candidate_set_id = first.id
    ), now() FROM first
    RETURNING id, candidate_set_id, shown
), counted AS (
    UPDATE candidate_sets s SET taken = 1 FROM first WHERE s.id = first.id
)
INSERT INTO verdicts (project_id, assignment_id, candidate_set_id, prompt_id, critic_id, kind, shown)
SELECT :project, judged.id, judged.candidate_set_id, first.prompt_id, :critic, 'none_fit', judged.shown
FROM judged JOIN first ON first.id = judged.candidate_set_id
"""
OTHERS_ARE_AS_FAR = "UPDATE candidate_sets SET taken = 1 WHERE project_id = :project AND taken = 0"
OVER = """
SELECT count(*) FROM (
    SELECT s.id FROM candidate_sets s JOIN assignments a ON a.candidate_set_id = s.id
    WHERE a.state IN ('open', 'judged') AND a.purpose = 'work' GROUP BY s.id HAVING count(*) > s.slots
    UNION ALL
    SELECT assignment_id FROM verdicts WHERE current GROUP BY 1 HAVING count(*) > 1
) broken
"""


@dataclass(frozen=True)
class Target:
    """The installation the critics work on."""

    base_url: str
    slug: str

    def connect(self) -> HTTPConnection:
        """A connection that is kept open."""
        parts = urllib.parse.urlsplit(self.base_url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return kind(parts.hostname or "127.0.0.1", parts.port, timeout=60)


@dataclass
class Measured:
    """What the critics of one run saw: seconds of each call, and answers that should not have been."""

    seconds: float = 0.0
    times: dict[str, list[float]] = field(default_factory=lambda: {call: [] for call in CALLS})
    loops: int = 0
    empty: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, other: Measured) -> None:
        """Take what another critic saw as well."""
        for call in CALLS:
            self.times[call] += other.times[call]
        self.loops += other.loops
        self.empty += other.empty
        self.errors += other.errors

    def percentile(self, call: str, share: float) -> float:
        """Milliseconds that `share` of the calls took at most."""
        times = sorted(self.times[call])
        return 1000 * times[min(len(times) - 1, int(share * len(times)))] if times else float("nan")


def work(target: Target, token: str, until: float) -> Measured:
    """Claim and judge until the time is over."""
    seen = Measured()
    connection = target.connect()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    base = urllib.parse.urlsplit(target.base_url).path.rstrip("/") + "/api/v1"

    def post(call: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        began = time.perf_counter()
        try:
            connection.request("POST", base + path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, HTTPException) as error:
            connection.close()
            seen.errors[f"{call}: {type(error).__name__}"] += 1
            return 0, None
        seen.times[call].append(time.perf_counter() - began)
        if answer.status not in (200, 201, 204):
            seen.errors[f"{call}: {answer.status}"] += 1
            return answer.status, None
        return answer.status, json.loads(content) if content else None

    while time.time() < until:
        status, claimed = post("claim", f"/projects/{target.slug}/assignments")
        if claimed is None:
            seen.empty += status == 204
            time.sleep(0.05)
            continue
        body = {"kind": "picked", "picks": [claimed["candidates"][0]["id"]], "seconds": 3}
        status, _ = post("verdict", f"/assignments/{claimed['id']}/verdict", body)
        seen.loops += status == 201
    connection.close()
    return seen


def load(target: Target, tokens: list[str], seconds: float, answer: Any) -> None:
    """All critics for a while, as threads of this process."""
    total, lock = Measured(), threading.Lock()
    began = time.time()

    def critic(token: str) -> None:
        seen = work(target, token, began + seconds)
        with lock:
            total.add(seen)

    threads = [threading.Thread(target=critic, args=(token,)) for token in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total.seconds = time.time() - began
    answer.put(total)


# The project


def prepare(options: argparse.Namespace) -> list[str]:
    """Fill a project, and return a token for each critic."""
    began = time.monotonic()
    settings = {"auto_rounds": False, "overlap": options.overlap, "pool_target": 0}
    with session_scope() as session:
        project = projects.create_project(session, SYSTEM, slug=SLUG, name="Bench", settings=settings)
        for _ in range(IMAGES):
            images.add_image(session, SYSTEM, image_bytes())
    for start in range(0, options.prompts, 100_000):
        values = {"project": project.id, "prompts": min(100_000, options.prompts - start), "overlap": options.overlap}
        patiently(FILL, values)
    tokens = []
    for number in range(max(options.critics)):
        with session_scope() as session:
            email = f"critic{number}@example.org"
            user = users.add_user(session, SYSTEM, email=email, role=Role.critic, project_slugs=[SLUG])
            tokens.append(users.create_token(session, SYSTEM, user_id=user.id, scope=Scope.write)[1])
        if number == 0 and options.done:
            patiently(DONE, {"project": project.id, "critic": user.id, "done": options.done})
            if options.overlap > 1:
                patiently(OTHERS_ARE_AS_FAR, {"project": project.id})
    patiently("ANALYZE", {})
    print(f"{options.prompts} prompts of 6 candidates filled in {time.monotonic() - began:.0f} s\n", flush=True)
    return tokens


def patiently(statement: str, values: dict[str, Any]) -> None:
    """Run a statement that may take minutes."""
    with session_scope() as session:
        for command in PATIENT.split(";"):
            session.execute(text(command))
        session.execute(text(statement), values)


def over_assigned() -> int:
    """Sets with more critics than slots, and assignments with more than one verdict that stands."""
    with session_scope() as session:
        for command in PATIENT.split(";"):
            session.execute(text(command))
        return int(session.scalar(text(OVER)) or 0)


def plan() -> str:
    """What PostgreSQL does for the first critic's next claim."""
    with session_scope() as session:
        user_id = session.scalar(text("SELECT id FROM users WHERE email = 'critic0@example.org'"))
        values = claiming.claim_values(user_id or 0, SLUG, is_admin=False, max_open=None)
        explain = f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) {claiming.CLAIM.text}"
        lines = [row[0] for row in session.execute(text(explain), values)]
        session.rollback()
    return "\n".join(lines)


# The machine


@dataclass(frozen=True)
class Usage:
    """Processor seconds, and resident megabytes without what PostgreSQL's processes share."""

    cpu: float
    memory: float


def usage(pid: int) -> Usage:
    """What a process and its children use."""
    cpu, memory = 0.0, 0.0
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        try:
            times, held = process.cpu_times(), process.memory_info()
        except psutil.NoSuchProcess:
            continue
        cpu += times.user + times.system
        memory += (held.rss - held.shared) / 2**20
    # Children that ended count in their parent.
    return Usage(cpu + parent.cpu_times().children_user + parent.cpu_times().children_system, memory)


def postmaster() -> int:
    """The process id of the PostgreSQL that this bench started."""
    children = psutil.Process().children()
    return next(child.pid for child in children if child.name() == "postgres")


HEAD = "| critics | loops/s | claim p50 / p95 / p99 (ms) | verdict p50 / p95 / p99 (ms) | errors | nothing ready |"
HEAD_OWN = " over-assigned | web CPU (s/s), MB | PostgreSQL CPU (s/s), MB |"


def row(critics: int, measured: Measured) -> str:
    """What the critics saw, as the beginning of a row."""
    times = " | ".join(
        " / ".join(f"{measured.percentile(call, share):.1f}" for share in (0.5, 0.95, 0.99)) for call in CALLS
    )
    errors = ", ".join(f"{name} x {count}" for name, count in measured.errors.items()) or "0"
    return f"| {critics} | {measured.loops / measured.seconds:.0f} | {times} | {errors} | {measured.empty} |"


def run(target: Target, tokens: list[str], seconds: float) -> Measured:
    """One run, its critics in a process of their own."""
    answer: Any = multiprocessing.Queue()
    process = multiprocessing.Process(target=load, args=(target, tokens, seconds, answer))
    process.start()
    measured: Measured = answer.get()
    process.join()
    return measured


def header(own: bool) -> None:
    """The table's first lines, after how busy the machine was."""
    load_before = ", ".join(f"{value:.1f}" for value in psutil.getloadavg())
    print(f"{psutil.cpu_count()} cores shared with the critics; load before (1, 5, 15 minutes): {load_before}\n")
    line = HEAD + (HEAD_OWN if own else "")
    print(f"{line}\n|{'---|' * (line.count('|') - 1)}", flush=True)


def bench_there(options: argparse.Namespace) -> bool:
    """The critics against somebody's installation. Whether nothing failed."""
    tokens = Path(options.tokens).read_text(encoding="utf-8").split()
    target = Target(options.base_url, options.slug)
    header(own=False)
    good = True
    for critics in options.critics:
        measured = run(target, [tokens[number % len(tokens)] for number in range(critics)], options.seconds)
        print(row(critics, measured), flush=True)
        good &= not measured.errors
    return good


def bench_here(options: argparse.Namespace, folder: Path) -> bool:
    """The critics against a web server of our own. Whether nothing failed."""
    tokens = prepare(options)
    if options.plan:
        print(f"{plan()}\n", flush=True)
    port = free_port()
    server = serve(port, options.processes, folder / "web.log")
    target = Target(f"http://127.0.0.1:{port}", SLUG)
    good = True
    try:
        header(own=True)
        for critics in options.critics:
            before = usage(server.pid), usage(postmaster())
            measured = run(target, tokens[:critics], options.seconds)
            after = usage(server.pid), usage(postmaster())
            used = " | ".join(
                f"{(late.cpu - early.cpu) / measured.seconds:.2f}, {late.memory:.0f}"
                for early, late in zip(before, after, strict=True)
            )
            over = over_assigned()
            print(f"{row(critics, measured)} {over} | {used} |", flush=True)
            good &= not measured.errors and over == 0
    finally:
        server.terminate()
        server.wait(30)
    return good


def main() -> int:
    """Run against what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--critics", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=10, help="how long each run takes")
    parser.add_argument("--prompts", type=int, default=5000, help="size of the project")
    parser.add_argument("--overlap", type=int, default=1, help="critics for each set")
    parser.add_argument("--done", type=int, default=0, help="sets the first critic judged before")
    parser.add_argument("--processes", type=int, default=1, help="web processes")
    parser.add_argument("--plan", action="store_true", help="print the claim's query plan")
    parser.add_argument("--base-url", help="an installation that runs already")
    parser.add_argument("--slug", default=SLUG, help="its project")
    parser.add_argument("--tokens", help="a file with tokens that may write, one on each line")
    options = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    if options.base_url:
        if not options.tokens:
            parser.error("--base-url needs --tokens")
        return 0 if bench_there(options) else 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        os.environ |= {"ILLUME_DATA_DIR": name, "ILLUME_SECRET_KEY": "a key for this bench only"}
        with Embedded(folder) as services:
            connect.use({"database_url": services.database_url, "redis_url": services.redis_url})
            try:
                migrate.upgrade(services.database_url)
                return 0 if bench_here(options, folder) else 1
            finally:
                connect.forget_settings()


if __name__ == "__main__":
    sys.exit(main())
