"""By which machine critic a candidate set was rated last, so that those to be rated are found without a scan."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0041"
down_revision = "0040"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("candidate_sets", sa.Column("rated_by", sa.BigInteger(), server_default="0", nullable=False))
    op.create_index(
        "ix_candidate_sets_rated",
        "candidate_sets",
        ["project_id", "rated_by", "id"],
        postgresql_where=sa.text("state IN ('ready', 'replaced')"),
    )


def downgrade() -> None:
    op.drop_index("ix_candidate_sets_rated", "candidate_sets")
    op.drop_column("candidate_sets", "rated_by")
