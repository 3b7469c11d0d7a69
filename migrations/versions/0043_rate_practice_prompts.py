"""Practice as real judging: what a critic says before any candidate is shown, where answers have fields."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0043"
down_revision = "0042"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("practice_answers", sa.Column("fields", postgresql.JSONB(none_as_null=True), nullable=True))
    op.alter_column("practice_answers", "score", nullable=True)


def downgrade() -> None:
    op.execute("DELETE FROM practice_answers WHERE score IS NULL")
    op.alter_column("practice_answers", "score", nullable=False)
    op.drop_column("practice_answers", "fields")
