"""Candidates that were sampled to choose from and are not shown, and what the choice of a set was."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0045"
down_revision = "0044"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("candidates", sa.Column("spare", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("candidate_sets", sa.Column("selection", sa.String(length=16), nullable=True))
    op.add_column("candidate_sets", sa.Column("selected_by", sa.BigInteger(), nullable=True))
    op.create_check_constraint(
        op.f("ck_candidate_sets_selection_known"), "candidate_sets", "selection IN ('selected', 'unselected')"
    )
    op.create_check_constraint(
        op.f("ck_candidate_sets_selection_by_a_critic"),
        "candidate_sets",
        "(selection IS NULL) = (selected_by IS NULL)",
    )
    op.create_foreign_key(
        op.f("fk_candidate_sets_selected_by_model_versions"),
        "candidate_sets",
        "model_versions",
        ["selected_by"],
        ["id"],
    )
    op.create_index(
        "ix_candidate_sets_selected_by",
        "candidate_sets",
        ["selected_by"],
        postgresql_where=sa.text("selected_by IS NOT NULL"),
    )


def downgrade() -> None:
    # Without the column they would be offered, and count as rejected where people saw the others of their set.
    op.execute("DELETE FROM candidates WHERE spare")
    op.execute("UPDATE setting_revisions SET settings = settings - 'show' WHERE settings ? 'show'")
    op.drop_column("candidate_sets", "selected_by")
    op.drop_column("candidate_sets", "selection")
    op.drop_column("candidates", "spare")
