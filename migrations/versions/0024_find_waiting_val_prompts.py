"""A partial index of the waiting prompts of both splits that critics may judge, in the order in which they are sampled."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_prompts_waiting_judged",
        "prompts",
        ["project_id", sa.text("priority DESC"), "id"],
        postgresql_where=sa.text("state = 'waiting' AND split IN ('train', 'val')"),
    )


def downgrade() -> None:
    op.drop_index("ix_prompts_waiting_judged", "prompts")
