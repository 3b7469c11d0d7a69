"""Gold prompts, practice, standings, reviews; the order of claims in one column."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
IDS = ARRAY(sa.BigInteger)
NOW = sa.func.now()
CLAIMABLE = "state = 'ready' AND taken < slots"


def to(
    column: str, what: str, *, ondelete: str | None = "CASCADE", nullable: bool = False, key: bool = False
) -> sa.Column[int]:
    """A column that names a row of another table."""
    return sa.Column(column, sa.BigInteger, sa.ForeignKey(what, ondelete=ondelete), nullable=nullable, primary_key=key)


def number() -> sa.Column[int]:
    """The number of a row."""
    return sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True)


def known(table: str, column: str, *values: str) -> None:
    """Let a column hold one of `values` only."""
    op.drop_constraint(op.f(f"ck_{table}_{column}_known"), table, type_="check")
    op.create_check_constraint(f"{column}_known", table, f"{column} IN ({', '.join(repr(value) for value in values)})")


def upgrade() -> None:
    op.add_column("candidate_sets", sa.Column("spread", sa.Float))
    op.add_column("candidate_sets", sa.Column("lift", sa.Float, server_default="0", nullable=False))
    rank = sa.Computed("(- priority)::double precision - lift", persisted=True)
    op.add_column("candidate_sets", sa.Column("rank", sa.Float, rank, nullable=False))
    op.drop_index("ix_candidate_sets_claimable", "candidate_sets")
    op.create_index(
        "ix_candidate_sets_claimable",
        "candidate_sets",
        ["project_id", "taken", "rank", "id"],
        postgresql_where=sa.text(CLAIMABLE),
    )
    _assignments()
    op.add_column("verdicts", sa.Column("weight", sa.Float, server_default="1", nullable=False))
    known("verdicts", "state", "counted", "kept_aside", "gold", "repeat", "decided")
    op.create_index(
        "ix_verdicts_decided",
        "verdicts",
        ["candidate_set_id"],
        postgresql_where=sa.text("current AND state = 'decided'"),
    )
    _gold()
    _reviews()
    op.create_table(
        "claim_places",
        to("critic_id", "users.id", key=True),
        to("project_id", "projects.id", key=True),
        sa.Column("taken", sa.Integer, nullable=False),
        sa.Column("rank", sa.Float, nullable=False),
        sa.Column("set_id", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_claim_places_project_id", "claim_places", ["project_id"])


def _assignments() -> None:
    op.add_column("assignments", sa.Column("purpose", sa.String(16), server_default="work", nullable=False))
    op.create_check_constraint("purpose_known", "assignments", "purpose IN ('work', 'gold', 'repeat', 'review')")
    op.drop_index("uq_assignments_slot", "assignments")
    op.create_index(
        "uq_assignments_slot",
        "assignments",
        ["candidate_set_id", "slot"],
        unique=True,
        postgresql_where=sa.text("state IN ('open', 'judged') AND purpose = 'work'"),
    )
    op.drop_index("uq_assignments_critic", "assignments")
    op.create_index(
        "uq_assignments_critic",
        "assignments",
        ["candidate_set_id", "critic_id", "purpose"],
        unique=True,
        postgresql_where=sa.text("state <> 'lapsed' AND NOT repeat"),
    )


def _gold() -> None:
    op.create_table(
        "gold_prompts",
        number(),
        to("project_id", "projects.id"),
        to("prompt_id", "prompts.id"),
        to("candidate_set_id", "candidate_sets.id"),
        sa.Column("fits", IDS, nullable=False),
        sa.Column("unfit", IDS, nullable=False),
        sa.Column("explanation", sa.Text),
        sa.Column("practice", sa.Boolean, server_default=sa.text("false"), nullable=False),
        sa.Column("active", sa.Boolean, server_default=sa.text("true"), nullable=False),
        to("created_by", "users.id", ondelete="SET NULL", nullable=True),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.UniqueConstraint("candidate_set_id"),
        sa.CheckConstraint("cardinality(fits) + cardinality(unfit) > 0", name="something_known"),
    )
    op.create_index(
        "ix_gold_prompts_project_id", "gold_prompts", ["project_id", "practice"], postgresql_where=sa.text("active")
    )
    op.create_table(
        "practice_answers",
        to("gold_id", "gold_prompts.id", key=True),
        to("critic_id", "users.id", key=True),
        sa.Column("picks", IDS, nullable=False),
        sa.Column("score", sa.Float, nullable=False),
        sa.Column("at", MOMENT, server_default=NOW, nullable=False),
    )
    op.create_table(
        "critic_standings",
        to("project_id", "projects.id", key=True),
        to("critic_id", "users.id", key=True),
        sa.Column("answered", sa.Integer, server_default="0", nullable=False),
        sa.Column("score", sa.Float),
        sa.Column("weight", sa.Float, server_default="1", nullable=False),
        sa.Column("counts_from", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("paused_at", MOMENT),
        sa.Column("practised_at", MOMENT),
    )
    op.create_index("ix_critic_standings_critic_id", "critic_standings", ["critic_id"])


def _reviews() -> None:
    op.create_table(
        "reviews",
        number(),
        to("project_id", "projects.id"),
        to("candidate_set_id", "candidate_sets.id"),
        to("verdict_id", "verdicts.id", nullable=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), server_default="open", nullable=False),
        sa.Column("note", sa.Text),
        to("decided_by", "users.id", ondelete="SET NULL", nullable=True),
        sa.Column("decided_at", MOMENT),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.CheckConstraint("kind IN ('disagreement', 'flag', 'late')", name="kind_known"),
        sa.CheckConstraint("state IN ('open', 'sent_back', 'decided', 'dismissed')", name="state_known"),
    )
    op.create_index(
        "uq_reviews_one_open",
        "reviews",
        ["candidate_set_id", "kind", sa.text("coalesce(verdict_id, 0)")],
        unique=True,
        postgresql_where=sa.text("state IN ('open', 'sent_back')"),
    )
    op.create_index("ix_reviews_project_id", "reviews", ["project_id", "state", "id"])
    op.create_index("ix_reviews_verdict_id", "reviews", ["verdict_id"])
    # Flags and late verdicts from before the review queue existed.
    op.execute("""
        INSERT INTO reviews (project_id, candidate_set_id, verdict_id, kind)
        SELECT v.project_id, v.candidate_set_id, v.id, CASE WHEN v.state = 'kept_aside' THEN 'late' ELSE 'flag' END
        FROM verdicts v JOIN prompts p ON p.id = v.prompt_id
        WHERE v.current AND (v.state = 'kept_aside' OR (v.kind = 'flagged' AND p.state = 'held'))
    """)
    op.create_table(
        "returned_verdicts",
        number(),
        to("project_id", "projects.id"),
        to("review_id", "reviews.id"),
        to("verdict_id", "verdicts.id"),
        to("critic_id", "users.id"),
        sa.Column("note", sa.Text, nullable=False),
        to("created_by", "users.id", ondelete="SET NULL", nullable=True),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("answered_at", MOMENT),
    )
    op.create_index(
        "ix_returned_verdicts_open",
        "returned_verdicts",
        ["critic_id", "project_id"],
        postgresql_where=sa.text("answered_at IS NULL"),
    )
    op.create_index(
        "uq_returned_verdicts_open",
        "returned_verdicts",
        ["verdict_id"],
        unique=True,
        postgresql_where=sa.text("answered_at IS NULL"),
    )
    op.create_index("ix_returned_verdicts_review_id", "returned_verdicts", ["review_id"])


def downgrade() -> None:
    for table in (
        "returned_verdicts",
        "reviews",
        "practice_answers",
        "gold_prompts",
        "critic_standings",
        "claim_places",
    ):
        op.drop_table(table)
    op.drop_index("ix_verdicts_decided", "verdicts")
    op.execute("DELETE FROM assignments WHERE purpose <> 'work'")
    op.execute("DELETE FROM verdicts WHERE state NOT IN ('counted', 'kept_aside')")
    known("verdicts", "state", "counted", "kept_aside")
    op.drop_column("verdicts", "weight")
    op.drop_index("uq_assignments_slot", "assignments")
    op.create_index(
        "uq_assignments_slot",
        "assignments",
        ["candidate_set_id", "slot"],
        unique=True,
        postgresql_where=sa.text("state IN ('open', 'judged')"),
    )
    op.drop_index("uq_assignments_critic", "assignments")
    op.create_index(
        "uq_assignments_critic",
        "assignments",
        ["candidate_set_id", "critic_id"],
        unique=True,
        postgresql_where=sa.text("state <> 'lapsed' AND NOT repeat"),
    )
    op.drop_column("assignments", "purpose")
    op.drop_index("ix_candidate_sets_claimable", "candidate_sets")
    op.create_index(
        "ix_candidate_sets_claimable",
        "candidate_sets",
        ["project_id", "taken", sa.text("priority DESC"), "id"],
        postgresql_where=sa.text(CLAIMABLE),
    )
    for column in ("rank", "lift", "spread"):
        op.drop_column("candidate_sets", column)
