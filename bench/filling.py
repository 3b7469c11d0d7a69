"""Projects of any size for benchmarks, filled by SQL."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import text

from app.db.engine import get_engine
from app.db.sessions import session_scope
from app.models import Role, Scope
from app.services.accounts import users
from app.services.kernel import counters
from app.services.kernel.actors import SYSTEM
from app.services.projects import projects
from app.services.prompts import images
from tests.factories import image_bytes

IMAGES = 50
AT_ONCE = 100_000
SETTINGS = {"auto_rounds": False, "pool_target": 0}
# More than a request may take; and rows made here need no look at the rows they point to.
PATIENT = "SET LOCAL statement_timeout = 0; SET LOCAL transaction_timeout = 0; SET LOCAL lock_timeout = 0"
TRUSTING = "SET LOCAL session_replication_role = replica"
FILL = """
WITH pictures AS (SELECT array_agg(sha256 ORDER BY sha256) AS all_of_them FROM images), asked AS (
    INSERT INTO prompts (project_id, external_id, split, state, question, answer, priority)
    SELECT :project, 'q-' || n, CASE n % 10 WHEN 0 THEN 'val' WHEN 1 THEN 'test' ELSE 'train' END, 'ready',
        'What is it, number ' || n || '?', 'a duck', n % 3
    FROM generate_series(CAST(:first AS bigint), :last) n
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
FROM offered, generate_series(0, :candidates - 1) n
"""
# What critics did before: the first sets in the order of claims, each judged by one of `:critics` in turn.
DONE = """
WITH first AS (
    SELECT s.id, s.prompt_id, s.slots, p.split, 1 + row_number() OVER (ORDER BY s.rank, s.id) AS number
    FROM candidate_sets s JOIN prompts p ON p.id = s.prompt_id
    WHERE s.project_id = :project AND s.taken = 0 ORDER BY s.rank, s.id LIMIT :done
), judged AS (
    INSERT INTO assignments (project_id, candidate_set_id, critic_id, slot, state, shown, claimed_at, expires_at)
    SELECT :project, first.id, (CAST(:critics AS bigint[]))[1 + number % cardinality(CAST(:critics AS bigint[]))],
        1, 'judged', ARRAY(SELECT c.id FROM candidates c WHERE c.candidate_set_id = first.id ORDER BY c.position),
        at, at
    FROM first, LATERAL (SELECT now() - make_interval(secs => (:done - number) * 3.0) AS at) then_
    RETURNING id, candidate_set_id, critic_id, shown, claimed_at
), counted AS (
    UPDATE candidate_sets s SET taken = 1, state = CASE WHEN s.slots = 1 THEN 'judged' ELSE s.state END
    FROM first WHERE s.id = first.id
), told AS (
    UPDATE prompts p SET state = CASE WHEN first.slots = 1 THEN 'judged' ELSE p.state END,
        has_accepted = first.slots = 1 AND first.number % 4 > 0
    FROM first WHERE p.id = first.prompt_id
), said AS (
    INSERT INTO verdicts (
        project_id, assignment_id, candidate_set_id, prompt_id, critic_id, kind, shown, seconds, created_at
    )
    SELECT :project, judged.id, judged.candidate_set_id, first.prompt_id, judged.critic_id,
        CASE WHEN first.number % 4 = 0 THEN 'none_fit' ELSE 'picked' END, judged.shown, 3 + first.number % 20,
        judged.claimed_at
    FROM judged JOIN first ON first.id = judged.candidate_set_id
    RETURNING id, kind, shown
)
INSERT INTO picks (verdict_id, candidate_id)
SELECT id, shown[1 + id % cardinality(shown)] FROM said WHERE kind = 'picked'
"""


LET_IN = """
INSERT INTO memberships (project_id, user_id, role)
SELECT :project, critic, 'critic' FROM unnest(CAST(:critics AS bigint[])) critic
"""


def patiently(statement: str, values: Mapping[str, Any] | None = None, *, trusting: bool = False) -> None:
    """Run a statement that may take minutes."""
    with session_scope() as session:
        for command in (PATIENT + (f"; {TRUSTING}" if trusting else "")).split(";"):
            session.execute(text(command))
        session.execute(text(statement), dict(values or {}))


def add_images() -> None:
    """The images that all prompts show, in turn."""
    with session_scope() as session:
        for _ in range(IMAGES):
            images.add_image(session, SYSTEM, image_bytes())


def add_project(slug: str, *, prompts: int, overlap: int = 1, candidates: int = 6, say: bool = False) -> int:
    """A project of so many prompts with a ready candidate set each. Returns its id."""
    began = time.monotonic()
    with session_scope() as session:
        settings = {**SETTINGS, "overlap": overlap}
        project_id = projects.create_project(session, SYSTEM, slug=slug, name="Bench", settings=settings).id
    for first in range(1, prompts + 1, AT_ONCE):
        last = min(prompts, first + AT_ONCE - 1)
        values = {"project": project_id, "first": first, "last": last, "overlap": overlap, "candidates": candidates}
        patiently(FILL, values, trusting=True)
    settle()
    if say:
        print(f"{prompts} prompts of {candidates} candidates filled in {time.monotonic() - began:.0f} s\n", flush=True)
    return project_id


def judge_before(project_id: int, critics: list[int], *, done: int) -> None:
    """Let `critics` have judged the first `done` sets of the order."""
    for start in range(0, done, AT_ONCE):
        values = {"project": project_id, "critics": critics, "done": min(AT_ONCE, done - start)}
        patiently(DONE, values, trusting=True)


def add_critics(count: int) -> tuple[list[int], list[str]]:
    """So many critics, of no project yet: their ids, and a token of each."""
    ids, tokens = [], []
    with session_scope() as session:
        for number in range(count):
            user = users.add_user(session, SYSTEM, email=f"critic{number}@example.org", role=Role.critic)
            ids.append(user.id)
            tokens.append(users.create_token(session, SYSTEM, user_id=user.id, scope=Scope.write)[1])
    return ids, tokens


def let_in(project_id: int, critics: list[int]) -> None:
    """Make critics members of a project."""
    patiently(LET_IN, {"project": project_id, "critics": critics})


def count_anew() -> None:
    """Count what came in without triggers."""
    with session_scope() as session:
        for command in PATIENT.split(";"):
            session.execute(text(command))
        counters.rebuild(session)


def settle() -> None:
    """Bring the tables to the state that a running installation's are in: vacuumed, analysed, written out."""
    count_anew()
    with get_engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("SET transaction_timeout = 0"))
        connection.execute(text("VACUUM (ANALYZE)"))
        connection.execute(text("CHECKPOINT"))
        connection.invalidate()
