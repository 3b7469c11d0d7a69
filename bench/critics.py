"""Simulated critics over HTTP, which claim, judge and claim again as fast as they can.

    python bench/critics.py [--critics 1 8 32 128] [--prompts 5000] [--seconds 10] [--processes 1] [--overlap 1]
    python bench/critics.py --done 100000 --prompts 1000000 --overlap 3
    python bench/critics.py --base-url https://illume.example.org --slug scenes --tokens tokens.txt

Without `--base-url` it starts its own PostgreSQL and web server (`illume serve`) and fills a project by SQL with
`--prompts` prompts of six candidates each. A small project is filled again for each row, and a row ends when no set
is ready any more. With `--base-url` the critics work on that installation, each with a token from the file (one on
each line), and figures that only the server's machine has are left out. A loop is a claim and a verdict. The critics
run in one process on the same machine (see `bench/load.py`). Before the first row they work for `--warm` seconds, so
that processes have started and connections have their plans. With `--done` one critic has judged that many sets
before; the cost of a claim in PostgreSQL for that critic is compared with that for a new one, alternating and without
HTTP. `--plan` prints the query plan of the first critic's claim. Exits with 1 where a request failed or a set was
given to more critics than it has slots.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import text
from sqlalchemy.orm import Session

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.db import migrations
from app.db.sessions import session_factory, session_scope
from app.models import Role
from app.processes import connect
from app.processes.embedded import Embedded
from app.services.judging.claim import CLAIM, claim_values
from app.services.kernel.actors import Actor
from bench import filling
from bench.load import CALLS, Measured, Target, run
from bench.serving import free_port, serve

SLUG = "bench"
REFILLED = 100_000
"""A project smaller than this is filled anew for each row."""
TURNS = 200

OVER = """
SELECT count(*) FROM (
    SELECT s.id FROM candidate_sets s JOIN assignments a ON a.candidate_set_id = s.id
    WHERE a.state IN ('open', 'judged') AND a.purpose = 'work' GROUP BY s.id HAVING count(*) > s.slots
    UNION ALL
    SELECT assignment_id FROM verdicts WHERE current GROUP BY 1 HAVING count(*) > 1
) broken
"""
OTHERS_ARE_AS_FAR = "UPDATE candidate_sets SET taken = 1 WHERE project_id = :project AND taken = 0"


def over_assigned() -> int:
    """Sets with more critics than slots, and assignments with more than one verdict that stands."""
    with session_scope() as session:
        for command in filling.PATIENT.split(";"):
            session.execute(text(command))
        return int(session.scalar(text(OVER)) or 0)


# What a claim costs PostgreSQL


def plan(critic: int, slug: str) -> str:
    """What PostgreSQL does for a critic's next claim."""
    with session_scope() as session:
        values = claim_values(Actor(user_id=critic, email="", role=Role.critic), slug)
        explain = f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) {CLAIM.clause.text}"
        lines = [row[0] for row in session.execute(text(explain), values)]
        session.rollback()
    return "\n".join(lines)


def compare(critics: Sequence[int], slug: str) -> list[float]:
    """Milliseconds of PostgreSQL's processor time for a claim of each critic: in turns, all given back at once."""
    makers = [session_factory()() for _ in critics]
    spent: list[list[float]] = [[] for _ in critics]
    try:
        for turn in range(TURNS + 20):
            for critic, session, times in zip(critics, makers, spent, strict=True):
                took = one_claim(session, critic, slug, keep=turn == 0)
                if turn >= 20:  # by then the connection has its plans and the memory what it reads
                    times.append(took)
    finally:
        for session in makers:
            session.close()
    return [1000 * statistics.mean(times) for times in spent]


def one_claim(session: Session, critic: int, slug: str, *, keep: bool) -> float:
    """Processor seconds of the connection's own process for a claim, which is undone after unless it is to be kept.

    The first one is: it leaves the place where the search of somebody with many verdicts ended.
    """
    actor = Actor(user_id=critic, email="", role=Role.critic)
    server = psutil.Process(session.connection().connection.dbapi_connection.info.backend_pid)  # type: ignore[union-attr]
    before = server.cpu_times()
    claimed = session.execute(CLAIM.clause, claim_values(actor, slug)).mappings().one()
    after = server.cpu_times()
    (session.commit if keep else session.rollback)()
    assert claimed is not None
    return after.user + after.system - before.user - before.system


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
HEAD_OWN = " over-assigned | web CPU (s/s), MB | PostgreSQL CPU (s/s), MB | critics' CPU (s/s) |"


def row(critics: int, measured: Measured) -> str:
    """What the critics saw, as the beginning of a row."""
    times = " | ".join(
        " / ".join(f"{measured.percentile(call, share):.1f}" for share in (0.5, 0.95, 0.99)) for call in CALLS
    )
    errors = ", ".join(f"{name} x {count}" for name, count in measured.errors.items()) or "0"
    ready = "0" if measured.dry is None else f"after {measured.dry:.1f} s"
    return f"| {critics} | {measured.loops / measured.seconds:.0f} | {times} | {errors} | {ready} |"


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


def fill(options: argparse.Namespace, critics: list[int], slug: str, *, say: bool) -> int:
    """A project of the size that is asked for, with all critics in it. Its id."""
    project = filling.add_project(slug, prompts=options.prompts, overlap=options.overlap, say=say)
    filling.let_in(project, critics)
    return project


def bench_here(options: argparse.Namespace, folder: Path) -> bool:
    """The critics against a web server of our own. Whether nothing failed."""
    filling.add_images()
    critics, tokens = filling.add_critics(max(options.critics) + 1)
    project = fill(options, critics, SLUG, say=True)
    if options.done:
        filling.judge_before(project, critics[:1], done=options.done)
        if options.overlap > 1:
            filling.patiently(OTHERS_ARE_AS_FAR, {"project": project})
        filling.settle()
        veteran, newcomer = compare([critics[0], critics[-1]], SLUG)
        print(f"A claim takes PostgreSQL {veteran:.2f} ms of processor time for who judged {options.done} of the sets,")
        print(f"{newcomer:.2f} ms for who judged none: {veteran / newcomer:.2f} times as much.\n", flush=True)
    if options.plan:
        print(f"{plan(critics[0], SLUG)}\n", flush=True)
    port = free_port()
    server = serve(port, options.processes, folder / "web.log")
    good = True
    try:
        warm_up(port, critics, tokens, options)
        header(own=True)
        for number, count in enumerate(options.critics):
            slug = SLUG
            if number and options.prompts < REFILLED:
                slug = f"{SLUG}-{number}"
                fill(options, critics, slug, say=False)
            good &= bench_row(Target(f"http://127.0.0.1:{port}", slug), tokens[:count], options.seconds, server.pid)
    finally:
        server.terminate()
        server.wait(30)
    return good


def warm_up(port: int, critics: list[int], tokens: list[str], options: argparse.Namespace) -> None:
    """Let all critics work for a moment in a project of its own."""
    project = filling.add_project("warm", prompts=5000, overlap=options.overlap)
    filling.let_in(project, critics)
    run(Target(f"http://127.0.0.1:{port}", "warm"), tokens[: max(options.critics)], options.warm, drains=True)


def bench_row(target: Target, tokens: list[str], seconds: float, server: int) -> bool:
    """One row of the table. Whether nothing failed."""
    time.sleep(1)
    before = usage(server), usage(postmaster())
    measured = run(target, tokens, seconds, drains=True)
    after = usage(server), usage(postmaster())
    used = " | ".join(
        f"{(late.cpu - early.cpu) / measured.seconds:.2f}, {late.memory:.0f}"
        for early, late in zip(before, after, strict=True)
    )
    over = over_assigned()
    critics = f"{measured.cpu / measured.seconds:.2f}"
    print(f"{row(len(tokens), measured)} {over} | {used} | {critics} |", flush=True)
    return not measured.errors and over == 0


def main() -> int:
    """Run against what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--critics", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=10, help="how long each run takes at most")
    parser.add_argument("--warm", type=float, default=3, help="how long they work before the first run")
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
            connect.use_services({"database_url": services.database_url, "redis_url": services.redis_url})
            try:
                migrations.upgrade(services.database_url)
                return 0 if bench_here(options, folder) else 1
            finally:
                connect.forget_settings()


if __name__ == "__main__":
    sys.exit(main())
