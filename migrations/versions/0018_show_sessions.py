"""A browser session knows its browser and when it was last used, so that a person can recognise and end it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sessions", sa.Column("browser", sa.String(300), server_default="", nullable=False))
    op.add_column(
        "sessions",
        sa.Column("last_seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
    )
    op.execute("UPDATE sessions SET last_seen_at = created_at")


def downgrade() -> None:
    op.drop_column("sessions", "last_seen_at")
    op.drop_column("sessions", "browser")
