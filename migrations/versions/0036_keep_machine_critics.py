"""Machine critics: versions of their own kind, the jobs that fit them, and their scores of candidates."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model_versions", sa.Column("kind", sa.String(length=16), server_default="sampler", nullable=False))
    op.create_check_constraint(op.f("ck_model_versions_kind_known"), "model_versions", "kind IN ('sampler', 'critic')")
    op.create_index(
        "ix_model_versions_critics",
        "model_versions",
        ["project_id", "id"],
        postgresql_where=sa.text("kind = 'critic'"),
    )
    op.add_column("candidate_sets", sa.Column("doubt", sa.Float(), nullable=True))
    op.create_table(
        "critic_jobs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("round_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), server_default="queued", nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "progress",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("worker", sa.String(length=200), nullable=True),
        sa.Column("beats_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')",
            name=op.f("ck_critic_jobs_state_known"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_critic_jobs_project_id_projects"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["round_id"], ["rounds.id"], name=op.f("fk_critic_jobs_round_id_rounds"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["model_versions.id"],
            name=op.f("fk_critic_jobs_version_id_model_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_critic_jobs")),
    )
    op.create_index("ix_critic_jobs_project_id_id", "critic_jobs", ["project_id", "id"])
    op.create_index(
        "uq_critic_jobs_one_active",
        "critic_jobs",
        ["project_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('queued', 'running', 'cancelling')"),
    )
    op.create_table(
        "candidate_scores",
        sa.Column("candidate_id", sa.BigInteger(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("score", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["candidate_id"],
            ["candidates.id"],
            name=op.f("fk_candidate_scores_candidate_id_candidates"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["model_versions.id"],
            name=op.f("fk_candidate_scores_version_id_model_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("candidate_id", "version_id", name=op.f("pk_candidate_scores")),
    )
    op.create_index("ix_candidate_scores_version_id", "candidate_scores", ["version_id"])


def downgrade() -> None:
    op.drop_table("candidate_scores")
    op.drop_table("critic_jobs")
    op.execute("UPDATE candidate_sets SET lift = 0 WHERE doubt IS NOT NULL AND state = 'ready'")
    op.drop_column("candidate_sets", "doubt")
    op.execute("DELETE FROM model_versions WHERE kind = 'critic'")
    op.drop_column("model_versions", "kind")
