"""Counts of prompts and verdicts by deltas that triggers append, and an index for the filters by state."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# The counter of a row; `app/services/kernel/counters.py` reads these names.
PROMPT = "'prompt:' || r.split || ':' || r.state || ':' || r.has_accepted::text"
DAY = "to_char(r.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
VERDICT = f"'verdict:' || r.critic_id || ':' || r.state || ':' || r.kind || ':' || {DAY}"
OLD = "SELECT project_id, {what} AS what, -1 AS n FROM gone r WHERE {counts}"
NEW = "SELECT project_id, {what} AS what, 1 AS n FROM come r WHERE {counts}"
FUNCTION = """
CREATE FUNCTION count_{table}_{event}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO count_deltas (project_id, what, n)
    SELECT project_id, what, sum(n) FROM ({rows}) changed GROUP BY 1, 2 HAVING sum(n) <> 0;
    RETURN NULL;
END
$$;
CREATE TRIGGER count_{event} AFTER {event} ON {table} REFERENCING {tables}
FOR EACH STATEMENT EXECUTE FUNCTION count_{table}_{event}();
"""
KINDS = {"prompts": (PROMPT, "true"), "verdicts": (VERDICT, "r.current")}
EVENTS = {
    "insert": ("NEW TABLE AS come", (NEW,)),
    "update": ("OLD TABLE AS gone NEW TABLE AS come", (OLD, NEW)),
    "delete": ("OLD TABLE AS gone", (OLD,)),
}
FILL = "INSERT INTO counts (project_id, what, n) SELECT project_id, {what}, count(*) FROM {table} r WHERE {counts} GROUP BY 1, 2"


def upgrade() -> None:
    op.create_table(
        "counts",
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "what", name=op.f("pk_counts")),
    )
    op.create_table(
        "count_deltas",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_count_deltas")),
    )
    op.create_index("ix_prompts_project_id_state_id", "prompts", ["project_id", "state", "id"])
    for table, (what, counts) in KINDS.items():
        for event, (tables, parts) in EVENTS.items():
            rows = " UNION ALL ".join(part.format(what=what, counts=counts) for part in parts)
            op.execute(FUNCTION.format(table=table, event=event, tables=tables, rows=rows))
        op.execute(FILL.format(table=table, what=what, counts=counts))


def downgrade() -> None:
    for table in KINDS:
        for event in EVENTS:
            op.execute(f"DROP TRIGGER count_{event} ON {table}")
            op.execute(f"DROP FUNCTION count_{table}_{event}()")
    op.drop_index("ix_prompts_project_id_state_id", "prompts")
    op.drop_table("count_deltas")
    op.drop_table("counts")
