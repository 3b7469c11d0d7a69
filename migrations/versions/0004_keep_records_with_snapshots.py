"""Snapshots get a records file, a data card, and the key of their redacted file."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("snapshots", sa.Column("file_key", sa.String(64)))
    op.add_column("snapshots", sa.Column("records_key", sa.String(64)))
    op.add_column("snapshots", sa.Column("card", JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False))


def downgrade() -> None:
    for column in ("card", "records_key", "file_key"):
        op.drop_column("snapshots", column)
