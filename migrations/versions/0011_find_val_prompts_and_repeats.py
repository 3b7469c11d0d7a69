"""Partial indexes of val prompts, on which each round is scored, and of verdicts on repeated sets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_prompts_val", "prompts", ["project_id", "id"], postgresql_where=sa.text("split = 'val'"))
    op.create_index(
        "ix_verdicts_repeats", "verdicts", ["project_id"], postgresql_where=sa.text("current AND state = 'repeat'")
    )


def downgrade() -> None:
    op.drop_index("ix_verdicts_repeats", "verdicts")
    op.drop_index("ix_prompts_val", "prompts")
