"""How long a large round takes to start and to prepare, and how little it asks of the database at once.

    python bench/round_start.py [--rationales 1000000] [--picks 2]

Starts a PostgreSQL of its own, fills a project by SQL with train prompts that one critic each has judged, and starts a
round as a request would. Then a worker's part: it makes the snapshot. Prints how long the preview, the start and the
preparing took, the longest transaction that PostgreSQL saw meanwhile, and the memory of this process. The prompts have
no references, so that rationales are held out by image, which takes longer. Ends with 1 where a transaction took more
than 5 s.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sqlalchemy import func, select

from app.db import migrations
from app.db.engine import libpq_url
from app.db.sessions import session_scope
from app.models import Project, Prompt, Round, Snapshot, SnapshotItem
from app.processes import connect
from app.processes.embedded import Embedded
from app.services.kernel.actors import SYSTEM
from app.services.rounds import lease, preparing, rounds
from bench import filling

TRAIN_SHARE = 0.8  # as `bench/filling.py` splits
CANDIDATES = 3
LIMIT_SECONDS = 5.0
LOOK_SECONDS = 0.05
JUDGE = """
WITH offered AS (
    SELECT s.id, s.prompt_id, ARRAY(
        SELECT c.id FROM candidates c WHERE c.candidate_set_id = s.id ORDER BY c.position
    ) AS shown
    FROM candidate_sets s JOIN prompts p ON p.id = s.prompt_id
    WHERE s.project_id = :project AND p.split = 'train' AND s.taken = 0 ORDER BY s.id LIMIT :limit
), judged AS (
    INSERT INTO assignments (project_id, candidate_set_id, critic_id, slot, state, shown, expires_at)
    SELECT :project, id, (CAST(:critics AS bigint[]))[1 + id % cardinality(CAST(:critics AS bigint[]))], 1, 'judged',
        shown, now()
    FROM offered RETURNING id, candidate_set_id, critic_id, shown
), taken AS (
    UPDATE candidate_sets s SET taken = 1, state = 'judged' FROM offered WHERE s.id = offered.id
), accepted AS (
    UPDATE prompts p SET state = 'judged', has_accepted = true, fresh = true, fresh_xid = pg_current_xact_id()
    FROM offered WHERE p.id = offered.prompt_id
), said AS (
    INSERT INTO verdicts (project_id, assignment_id, candidate_set_id, prompt_id, critic_id, kind, shown)
    SELECT :project, judged.id, judged.candidate_set_id, offered.prompt_id, judged.critic_id, 'picked', judged.shown
    FROM judged JOIN offered ON offered.id = judged.candidate_set_id RETURNING id, shown
)
INSERT INTO picks (verdict_id, candidate_id) SELECT id, unnest(shown[1:CAST(:picks AS int)]) FROM said
"""
LONGEST = """
SELECT extract(epoch FROM clock_timestamp() - xact_start), left(regexp_replace(query, '\\s+', ' ', 'g'), 300)
FROM pg_stat_activity
WHERE application_name = 'illume' AND backend_type = 'client backend' AND state <> 'idle' AND xact_start IS NOT NULL
ORDER BY xact_start LIMIT 1
"""


@dataclass
class Watched:
    """The most that was seen: a transaction's seconds, and its statement; this process's memory in MiB."""

    transaction: float = 0.0
    statement: str = ""
    memory: float = 0.0


@contextlib.contextmanager
def watching(url: str) -> Iterator[Watched]:
    """Look often while the block runs, over a connection of its own."""
    watched, ended, process = Watched(), threading.Event(), psutil.Process()

    def look() -> None:
        with psycopg.connect(libpq_url(url), autocommit=True, application_name="watch") as connection:
            while not ended.wait(LOOK_SECONDS):
                row = connection.execute(LONGEST).fetchone()
                if row and row[0] > watched.transaction:
                    watched.transaction, watched.statement = float(row[0]), str(row[1])
                watched.memory = max(watched.memory, process.memory_info().rss / 2**20)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield watched
    finally:
        ended.set()
        thread.join()


def fill(*, rationales: int, picks: int) -> int:
    """A project with so many accepted rationales. Returns its id."""
    filling.add_images()
    critics, _ = filling.add_critics(20)
    judged = rationales // picks
    project = filling.add_project("bench", prompts=round(judged / TRAIN_SHARE), candidates=CANDIDATES, say=True)
    filling.let_in(project, critics)
    for start in range(0, judged, filling.AT_ONCE):
        limit = min(filling.AT_ONCE, judged - start)
        filling.patiently(
            JUDGE, {"project": project, "critics": critics, "picks": picks, "limit": limit}, trusting=True
        )
    filling.settle()
    return project


def measure(project_id: int, url: str) -> bool:
    """Preview, start and prepare a round, and print what that took. Whether no transaction took too long."""
    began = time.monotonic()
    with session_scope() as session:
        seen = rounds.preview(session, SYSTEM, session.get_one(Project, project_id))
    print(f"preview: {time.monotonic() - began:.3f} s, about {seen.n_rationales:,} rationales", flush=True)
    began = time.monotonic()
    with session_scope() as session:
        round_id = rounds.start(session, SYSTEM, session.get_one(Project, project_id)).id
    print(f"start: {time.monotonic() - began:.3f} s", flush=True)
    with session_scope() as session:
        claim = lease.claim_round(session, worker="bench", prepared=False)
    if claim is None:
        raise RuntimeError("the round cannot be taken up")
    tenth, before = 0, psutil.Process().memory_info().rss / 2**20

    def report(share: float) -> None:
        nonlocal tenth
        if share * 10 >= tenth + 1:
            tenth = int(share * 10)
            print(f"  {10 * tenth} % after {time.monotonic() - began:.0f} s", flush=True)

    began = time.monotonic()
    with watching(url) as watched:
        preparing.prepare(claim, report=report)
    took = time.monotonic() - began
    with session_scope() as session:
        snapshot = session.get_one(Snapshot, session.get_one(Round, round_id).snapshot_id)
        items = session.scalar(select(func.count()).where(SnapshotItem.snapshot_id == snapshot.id))
        fresh = session.scalar(select(func.count()).where(Prompt.fresh))
    print(f"prepare: {took:.0f} s; longest transaction {watched.transaction:.2f} s")
    print(f"  in it: {watched.statement}")
    print(f"memory: {before:.0f} MiB before, at most {watched.memory:.0f} MiB")
    print(f"snapshot: {snapshot.counts}, {items:,} items, {fresh} prompts still fresh")
    return watched.transaction <= LIMIT_SECONDS


def main() -> int:
    """Run against a database of our own."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rationales", type=int, default=1_000_000)
    parser.add_argument("--picks", type=int, default=2, help="of each prompt, at most 3")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o711)
        os.environ |= {"ILLUME_DATA_DIR": str(folder), "ILLUME_SECRET_KEY": "a key for this bench only"}
        services = stack.enter_context(Embedded(folder))
        connect.use_services({"database_url": services.database_url})
        stack.callback(connect.forget_settings)
        migrations.upgrade(services.database_url)
        project = fill(rationales=options.rationales, picks=options.picks)
        return 0 if measure(project, services.database_url) else 1


if __name__ == "__main__":
    sys.exit(main())
