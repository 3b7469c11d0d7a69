"""An index of claims that lapsed after their critic had rated the picture: few, and looked for at every claim."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0039"
down_revision = "0038"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_assignments_rated",
        "assignments",
        ["critic_id", "candidate_set_id"],
        postgresql_where=sa.text("state = 'lapsed' AND blind IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_assignments_rated", table_name="assignments")
