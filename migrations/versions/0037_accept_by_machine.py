"""Candidates that a machine critic accepted, and rows of snapshots that are trained on because of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.db.types import Xid8

revision = "0037"
down_revision = "0036"
branch_labels = None
depends_on = None

OLD = "role IN ('rationale', 'guard', 'val', 'heldout', 'rejection')"
NEW = "role IN ('rationale', 'guard', 'val', 'heldout', 'rejection', 'machine')"


def upgrade() -> None:
    op.drop_constraint(op.f("ck_snapshot_items_role_known"), "snapshot_items", type_="check")
    op.create_check_constraint("role_known", "snapshot_items", NEW)
    op.create_table(
        "machine_accepts",
        sa.Column("prompt_id", sa.BigInteger(), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("candidate_id", sa.BigInteger(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("xid", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["prompt_id"], ["prompts.id"], name=op.f("fk_machine_accepts_prompt_id_prompts"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_machine_accepts_project_id_projects"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["candidate_id"],
            ["candidates.id"],
            name=op.f("fk_machine_accepts_candidate_id_candidates"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["model_versions.id"],
            name=op.f("fk_machine_accepts_version_id_model_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("prompt_id", name=op.f("pk_machine_accepts")),
        sa.UniqueConstraint("candidate_id", name=op.f("uq_machine_accepts_candidate_id")),
    )
    op.create_index("ix_machine_accepts_project_id", "machine_accepts", ["project_id"])
    op.create_index(op.f("ix_machine_accepts_version_id"), "machine_accepts", ["version_id"])


def downgrade() -> None:
    op.drop_table("machine_accepts")
    op.execute("DELETE FROM snapshot_items WHERE role = 'machine'")
    op.drop_constraint(op.f("ck_snapshot_items_role_known"), "snapshot_items", type_="check")
    op.create_check_constraint("role_known", "snapshot_items", OLD)
