"""Policies with their versions, and structured answers: gold values, candidates' values, and what critics say of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0031"
down_revision = "0029"
branch_labels = None
depends_on = None

FIELDS = (("prompts", "fields"), ("candidates", "fields"), ("verdicts", "fields"), ("assignments", "blind"))


def upgrade() -> None:
    now = sa.text("now()")
    op.create_table(
        "policies",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("project_id", "name"),
    )
    op.create_table(
        "policy_versions",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("policy_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("base_id", sa.BigInteger()),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("header", sa.Text(), server_default="", nullable=False),
        sa.Column("categories", postgresql.JSONB(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_by", sa.BigInteger()),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name="sha256_form"),
        sa.ForeignKeyConstraint(["policy_id"], ["policies.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["base_id"], ["policy_versions.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("policy_id", "number", "sha256"),
    )
    op.create_index(
        "uq_policy_versions_number",
        "policy_versions",
        ["policy_id", "number"],
        unique=True,
        postgresql_where=sa.text("base_id IS NULL"),
    )
    op.create_index(
        "ix_policy_versions_base_id", "policy_versions", ["base_id"], postgresql_where=sa.text("base_id IS NOT NULL")
    )
    for table, column in FIELDS:
        op.add_column(table, sa.Column(column, postgresql.JSONB(none_as_null=True)))
    op.add_column("prompts", sa.Column("policy_version_id", sa.BigInteger()))
    op.create_foreign_key(None, "prompts", "policy_versions", ["policy_version_id"], ["id"])
    op.create_index(
        "ix_prompts_policy_version_id",
        "prompts",
        ["policy_version_id"],
        postgresql_where=sa.text("policy_version_id IS NOT NULL"),
    )
    op.add_column("candidates", sa.Column("invalid", sa.String(32)))
    op.add_column("candidate_sets", sa.Column("failure", sa.String(16)))
    op.create_check_constraint("failure_known", "candidate_sets", "failure IN ('too_long', 'invalid', 'other')")
    op.add_column("assignments", sa.Column("is_blind", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("assignments", sa.Column("blind_at", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("assignments", "blind_at")
    op.drop_column("assignments", "is_blind")
    op.drop_constraint(op.f("ck_candidate_sets_failure_known"), "candidate_sets", type_="check")
    op.drop_column("candidate_sets", "failure")
    op.drop_column("candidates", "invalid")
    op.drop_column("prompts", "policy_version_id")
    for table, column in FIELDS:
        op.drop_column(table, column)
    op.drop_table("policy_versions")
    op.drop_table("policies")
