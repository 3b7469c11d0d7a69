"""What a claim reads where tables are large and the search is long: counted in rows and pages, never in time.

The plans are of the statement as the application sends it, prepared by then as its connections have it: PostgreSQL's
own auto_explain tells of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.db.engine import get_engine, make_engine
from app.db.judging_pool import PLANNER
from app.db.sessions import session_scope
from app.models import Project, Role
from app.processes.connect import forget_settings
from app.processes.embedded import Embedded
from app.services.kernel.actors import Actor
from bench import filling
from tests import judging
from tests.conftest import MIGRATED, CommittedDatabase, copy_database, maintenance

SLUG = "large"
FILLED = "claims_large"  # the database that every test has a copy of
SETS = 20_000
DONE = 12_000
WARM = 12  # by then a connection keeps its plans
TURNS = 6
MOST_ROWS = 1_000
MOST_PAGES = 300
EXPLAIN = """
LOAD 'auto_explain';
SET auto_explain.log_min_duration = 0;
SET auto_explain.log_analyze = on;
SET auto_explain.log_buffers = on;
SET auto_explain.log_timing = off;
SET auto_explain.log_format = json;
SET auto_explain.log_level = notice
"""
MANY_OPEN = """
UPDATE setting_revisions SET settings = settings || '{"max_open": 1000, "overlap": 3}'
WHERE id = (SELECT revision_id FROM projects WHERE slug = 'large')
"""
HAD = """
INSERT INTO assignments (project_id, candidate_set_id, critic_id, slot, state, shown, claimed_at, expires_at)
SELECT :project, s.id, :critic, 1, '{state}', '{{}}', now(), now() FROM (
    SELECT id FROM candidate_sets ORDER BY taken, rank, id LIMIT :done
) s
"""
SLOTS = "UPDATE candidate_sets SET slots = {slots}, taken = {taken}"
TIED = "UPDATE candidate_sets SET priority = 0"
VAL_FIRST = """
WITH judged AS (UPDATE setting_revisions SET settings = settings || '{"judge_val": true}'
    WHERE id = (SELECT revision_id FROM projects WHERE slug = 'large'))
UPDATE candidate_sets s SET priority = 9 FROM prompts p WHERE p.id = s.prompt_id AND p.split = 'val'
"""
HELD = """
UPDATE prompts p SET state = 'held'
FROM (SELECT prompt_id FROM candidate_sets ORDER BY taken, rank, id LIMIT :done / 4) s WHERE p.id = s.prompt_id
"""
LEASED = """
INSERT INTO assignments (project_id, candidate_set_id, critic_id, slot, state, shown, claimed_at, expires_at)
SELECT :project, id, :other, 1, 'open', '{}', now(), now() + interval '1 hour' FROM candidate_sets
WHERE id % 1000 > 0
"""
JUDGED = HAD.format(state="judged")
SKIPPED = HAD.format(state="released")
# By what makes the search long: the statements that bring it about. `taken` and what is assigned fit each other, but
# that the second critic's verdicts are not there.
STATES: dict[str, tuple[str, ...]] = {
    "nobody was here yet": (),
    "overlap 1, the critic skipped most": (SKIPPED,),
    "overlap 2, the critic judged most and others as many": (JUDGED, SLOTS.format(slots=2, taken=1)),
    "overlap 3, the critic judged most and others as many": (JUDGED, SLOTS.format(slots=3, taken=1)),
    "overlap 3, all priorities tied": (TIED, JUDGED, SLOTS.format(slots=3, taken=1)),
    "adaptive overlap": (JUDGED, SLOTS.format(slots="1 + id / 3 % 3", taken=1)),
    "val prompts are judged, and are the first": (VAL_FIRST, JUDGED, SLOTS.format(slots=2, taken=1)),
    "prompts at the head are held": (HELD,),
    "all leased but the last": (LEASED, SLOTS.format(slots=1, taken="CASE WHEN id % 1000 = 0 THEN 0 ELSE 1 END")),
}


@dataclass(frozen=True)
class Cost:
    """What a claim's statement read: rows of all its nodes, with those that a filter removed, and pages."""

    rows: float
    pages: int


@pytest.fixture(scope="module")
def filled(embedded: Embedded) -> Iterator[str]:
    """The name of a database with a large project in it, vacuumed and analysed."""
    url = copy_database(embedded, FILLED, MIGRATED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ILLUME_DATABASE_URL", url)
        forget_settings()
        filling.add_images()
        people, _ = filling.add_critics(2)
        filling.let_in(filling.add_project(SLUG, prompts=SETS, candidates=2), people)
        get_engine().dispose()
    forget_settings()
    yield FILLED
    with maintenance(embedded.database_url) as connection:
        connection.execute(f"DROP DATABASE {FILLED}")


@pytest.fixture
def template(filled: str) -> str:
    """The database that each test's own is a copy of."""
    return filled


def bring_about(statements: tuple[str, ...], critic: int, other: int) -> None:
    """Bring the project to a state, as long judging leaves it."""
    with session_scope() as session:
        project = session.execute(text("SELECT id FROM projects WHERE slug = :slug"), {"slug": SLUG}).scalar_one()
    values = {"project": project, "critic": critic, "other": other, "done": DONE}
    for statement in (MANY_OPEN, *statements):
        filling.patiently(statement, values, trusting=True)
    filling.settle()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A plan's nodes."""
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def cost(plan: dict[str, Any]) -> Cost:
    """What ran, added up."""
    rows = sum(
        node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) for node in nodes(plan)
    )
    return Cost(rows, plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def claims(session: Session, critic: Actor, turns: int) -> list[Cost]:
    """Let a critic claim so often, and tell what each statement cost that looks for a set on offer."""
    told: list[Cost] = []

    def listen(notice: psycopg.errors.Diagnostic) -> None:
        _, brace, found = (notice.message_primary or "").partition("{")
        plan = json.loads(brace + found)
        if "claim_places" in plan["Query Text"]:
            told.append(cost(plan["Plan"]))

    project = session.scalars(select(Project).where(Project.slug == SLUG)).one()
    raw = session.connection().connection.dbapi_connection
    assert isinstance(raw, psycopg.Connection)
    raw.add_notice_handler(listen)
    for _ in range(turns):
        judging.claim(session, critic, project)
        session.commit()
    assert len(told) >= turns
    return told


@pytest.mark.parametrize("statements", STATES.values(), ids=STATES)
def test_a_claim_reads_little_of_a_large_project(committed_db: CommittedDatabase, statements: tuple[str, ...]) -> None:
    with committed_db.sessions() as session:
        critic, other = session.scalars(text("SELECT id FROM users WHERE email LIKE 'critic%' ORDER BY id"))
    bring_about(statements, critic, other)
    engine = make_engine(committed_db.url, pool_size=1)
    try:
        with Session(engine) as session:
            session.execute(text("SELECT 1"))
            for command in (*EXPLAIN.split(";"), *(f"SET {name} = {value}" for name, value in PLANNER.items())):
                session.execute(text(command))
            session.commit()
            told = claims(session, Actor(user_id=critic, email="", role=Role.critic), WARM + TURNS)
    finally:
        engine.dispose()
    # The first one may have to find out up to where the critic had everything; the place is kept.
    assert all(one.rows <= MOST_ROWS and one.pages <= MOST_PAGES for one in told[1:]), told[1:]
