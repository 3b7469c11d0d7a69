"""The migrations create exactly the tables of the models, and remove them again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from app.db import migrations
from app.db.engine import sqlalchemy_url
from app.models import Base
from app.processes.embedded import Embedded
from app.services.kernel.text_rules import MAX_JSON_BYTES
from app.settings import ROOT
from tests.conftest import maintenance, numbers

CATALOGUE = {
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
               pg_get_expr(d.adbin, d.adrelid)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
}


@pytest.fixture
def empty(embedded: Embedded) -> Iterator[str]:
    """The URL of a database without tables."""
    name = f"empty_{next(numbers)}"
    with maintenance(embedded.database_url) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield embedded.database_url.replace("/illume?", f"/{name}?")
    with maintenance(embedded.database_url) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_engine(empty: str) -> Iterator[Engine]:
    """An engine for the database without tables."""
    engine = create_engine(sqlalchemy_url(empty))
    yield engine
    engine.dispose()


def catalogue(connection: Connection) -> dict[str, set[tuple[object, ...]]]:
    """Everything PostgreSQL knows about our tables, without alembic's own."""
    found = {}
    for name, statement in CATALOGUE.items():
        rows = {tuple(row) for row in connection.execute(text(statement))}
        found[name] = {row for row in rows if row[0] != "alembic_version"}
    return found


class TestUpgrade:
    def test_creates_exactly_the_tables_of_the_models(self, engine: Engine, empty_engine: Engine) -> None:
        with engine.connect() as migrated, empty_engine.begin() as made:
            Base.metadata.create_all(made)
            by_migrations, by_models = catalogue(migrated), catalogue(made)
        for name in CATALOGUE:
            assert by_migrations[name] == by_models[name], name
        assert len(by_models["columns"]) > 100

    def test_alembic_agrees(self, database_url: str) -> None:
        migrations.check(database_url)

    def test_concurrent_upgrades_wait_for_each_other(self, empty: str) -> None:
        command = [sys.executable, "-m", "alembic", "upgrade", "head"]
        environment = {**os.environ, "ILLUME_DATABASE_URL": empty}
        several = [subprocess.Popen(command, cwd=ROOT, env=environment) for _ in range(2)]
        assert [process.wait() for process in several] == [0, 0]
        assert migrations.current_revision(empty) == migrations.required_revision()

    def test_lock_timeout(self, empty: str, empty_engine: Engine) -> None:
        migrations.upgrade(empty)
        with empty_engine.connect() as connection:
            connection.execute(text("LOCK TABLE picks IN ACCESS EXCLUSIVE MODE"))
            with pytest.raises(OperationalError, match="lock timeout"):
                migrations.downgrade(empty, "base")
        assert migrations.current_revision(empty) == "0001"  # which makes the locked table, and was not undone

    def test_rationales_of_before_get_their_keys(self, empty: str, empty_engine: Engine) -> None:
        migrations.upgrade(empty, "0011")
        with empty_engine.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))  # without the rows it names
            connection.execute(
                text("""
                    INSERT INTO verdicts
                        (project_id, assignment_id, candidate_set_id, prompt_id, critic_id, kind, shown, rationale)
                    SELECT 1, n, 1, 1, 1, 'picked', '{}', CASE WHEN n % 2 = 0 THEN 'It  is red, ' || n || '.' END
                    FROM generate_series(1, 4100) n""")
            )
        migrations.upgrade(empty)
        with empty_engine.connect() as connection:
            rows = connection.execute(text("SELECT assignment_id, rationale_key, exhaustive FROM verdicts ORDER BY 1"))
            expected = [(n, None if n % 2 else f"it is red, {n}", True) for n in range(1, 4101)]
            assert [tuple(row) for row in rows] == expected

    def test_rationales_in_other_scripts_get_new_keys(self, empty: str, empty_engine: Engine) -> None:
        migrations.upgrade(empty, "0018")
        written = {
            1: ("Auf der Straße。", "auf der straße。"),
            2: ("It is red.", "it is red"),
            3: ("यह लाल है।", "यह लाल है।"),
        }
        with empty_engine.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))  # without the rows it names
            statement = text("""
                INSERT INTO verdicts (project_id, assignment_id, candidate_set_id, prompt_id, critic_id, kind, shown,
                                      rationale, rationale_key)
                VALUES (1, :n, 1, 1, 1, 'picked', '{}', :rationale, :key)""")
            values = [{"n": n, "rationale": one, "key": key} for n, (one, key) in written.items()]
            connection.execute(statement, values)
        migrations.upgrade(empty)
        with empty_engine.connect() as connection:
            rows = connection.execute(text("SELECT rationale_key FROM verdicts ORDER BY assignment_id"))
            assert [row[0] for row in rows] == ["auf der strasse", "it is red", "यह लाल है"]

    def test_metadata_that_break_the_rules_are_set_aside(self, empty: str, empty_engine: Engine) -> None:
        migrations.upgrade(empty, "0015")
        deep = '{"a": ' * 300 + "1" + "}" * 300
        written = {"a": f'{{"n": {2**64}}}', "b": deep, "c": f'{{"n": {2**63 - 1}}}', "d": '{"n": "' + "9" * 40 + '"}'}
        with empty_engine.begin() as connection:
            connection.execute(
                text("INSERT INTO projects (id, slug, name) OVERRIDING SYSTEM VALUE VALUES (1, 'p', 'p')")
            )
            statement = text("""
                INSERT INTO prompts (project_id, split, external_id, question, metadata)
                VALUES (1, 'train', :name, 'q', CAST(:extra AS jsonb))""")
            connection.execute(statement, [{"name": name, "extra": extra} for name, extra in written.items()])
        migrations.upgrade(empty)
        with empty_engine.connect() as connection:
            rows = connection.execute(text("SELECT external_id, metadata::text FROM prompts"))
            kept = {row[0]: row[1] for row in rows}
            told = connection.execute(text("SELECT subject, data ->> 'reason' FROM audit_events ORDER BY id")).all()
        for name in "ab":
            assert json.loads(json.loads(kept[name])["set_aside_as_text"]) == json.loads(written[name])
        for name in "cd":
            assert json.loads(kept[name]) == json.loads(written[name])
        assert [reason for _, reason in told] == ["holds an integer of over 64 bits", "is nested too deeply"]
        migrations.downgrade(empty, "0015")
        with empty_engine.connect() as connection:
            rows = connection.execute(text("SELECT external_id, metadata::text FROM prompts"))
            kept = {row[0]: row[1] for row in rows}
        assert {name: json.loads(extra) for name, extra in kept.items()} == {
            name: json.loads(extra) for name, extra in written.items()
        }

    def test_metadata_over_the_size_are_reported(self, empty: str, empty_engine: Engine) -> None:
        migrations.upgrade(empty, "0019")
        # PostgreSQL writes a space behind each comma, which the rule does not count.
        written = {"a": {"x": "y" * MAX_JSON_BYTES}, "b": {"x": [1] * (MAX_JSON_BYTES // 2 - 10)}, "c": {"x": "y"}}
        with empty_engine.begin() as connection:
            connection.execute(
                text("INSERT INTO projects (id, slug, name) OVERRIDING SYSTEM VALUE VALUES (1, 'p', 'p')")
            )
            statement = text("""
                INSERT INTO prompts (project_id, split, external_id, question, metadata)
                VALUES (1, 'train', :name, 'q', CAST(:extra AS jsonb))""")
            rows = [{"name": name, "extra": json.dumps(extra)} for name, extra in written.items()]
            connection.execute(statement, rows)
        migrations.upgrade(empty)
        told = text("SELECT subject, data ->> 'reason' FROM audit_events")
        large = text("SELECT 'prompt:' || id FROM prompts WHERE external_id = 'a'")
        with empty_engine.connect() as connection:
            assert connection.execute(told).all() == [(connection.scalar(large), "has over 256 kB as JSON")]
            kept = connection.execute(text("SELECT external_id, metadata FROM prompts"))
            assert {name: extra for name, extra in kept} == written  # noqa: C416 - rows are no pairs
        migrations.downgrade(empty, "0019")
        with empty_engine.connect() as connection:
            assert connection.execute(told).all() == []

    def test_uncertain_first_becomes_the_next_prompt(self, empty: str, empty_engine: Engine) -> None:
        migrations.upgrade(empty, "0033")
        written: tuple[dict[str, object], ...] = (
            {"uncertain_first": True, "overlap": 2},
            {"uncertain_first": False},
            {},
        )
        with empty_engine.begin() as connection:
            connection.execute(
                text("INSERT INTO projects (id, slug, name) OVERRIDING SYSTEM VALUE VALUES (1, 'p', 'p')")
            )
            statement = text("""
                INSERT INTO setting_revisions (project_id, number, settings)
                VALUES (1, :n, CAST(:settings AS jsonb))""")
            connection.execute(statement, [{"n": n, "settings": json.dumps(one)} for n, one in enumerate(written)])
        kept = text("SELECT settings FROM setting_revisions ORDER BY number")
        migrations.upgrade(empty)
        with empty_engine.connect() as connection:
            expected = [{"next_prompt": "uncertain", "overlap": 2}, {"next_prompt": "priority"}, {}]
            assert list(connection.scalars(kept)) == expected
        migrations.downgrade(empty, "0033")
        with empty_engine.connect() as connection:
            assert list(connection.scalars(kept)) == list(written)


class TestDowngrade:
    def test_downgrade_removes_everything_and_upgrade_works_again(self, empty: str, empty_engine: Engine) -> None:
        migrations.upgrade(empty)
        migrations.downgrade(empty, "base")
        assert migrations.current_revision(empty) is None
        assert inspect(empty_engine).get_table_names() == ["alembic_version"]
        migrations.upgrade(empty)
        migrations.check(empty)
