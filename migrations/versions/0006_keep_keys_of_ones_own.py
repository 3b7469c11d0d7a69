"""The keys a person chose for the judging page."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("users", sa.Column("judging_keys", JSONB, server_default=sa.text("'{}'"), nullable=False))


def downgrade() -> None:
    op.drop_column("users", "judging_keys")
