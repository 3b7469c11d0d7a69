"""Imports of more kinds, with a draft to look at first; webhooks and their deliveries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
STATES = ("queued", "running", "succeeded", "failed")


def known_states(*states: str) -> None:
    """Let an import be in one of `states` only."""
    op.drop_constraint(op.f("ck_imports_state_known"), "imports", type_="check")
    values = ", ".join(f"'{state}'" for state in states)
    op.create_check_constraint("state_known", "imports", f"state IN ({values})")


def upgrade() -> None:
    op.add_column("imports", sa.Column("images_key", sa.String(200)))
    op.add_column("imports", sa.Column("plan", JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False))
    op.add_column("imports", sa.Column("tries", sa.Integer, server_default="0", nullable=False))
    known_states("draft", *STATES)
    op.create_table(
        "imported_rows",
        sa.Column("project_id", sa.BigInteger, sa.ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("row_id", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "webhooks",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("project_id", sa.BigInteger, sa.ForeignKey("projects.id", ondelete="CASCADE")),
        sa.Column("url", sa.String(2000), nullable=False),
        sa.Column("events", JSONB, nullable=False),
        sa.Column("salt", sa.String(64), nullable=False),
        sa.Column("active", sa.Boolean, server_default=sa.text("true"), nullable=False),
        sa.Column("feed_xid", sa.String(20), server_default="0", nullable=False),
        sa.Column("feed_id", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("created_by", sa.BigInteger, sa.ForeignKey("users.id", ondelete="SET NULL")),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
    )
    op.create_index("ix_webhooks_project_id", "webhooks", ["project_id"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("webhook_id", sa.BigInteger, sa.ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
        sa.Column("event", sa.String(40), nullable=False),
        sa.Column("payload", JSONB, nullable=False),
        sa.Column("state", sa.String(16), server_default="pending", nullable=False),
        sa.Column("tries", sa.Integer, server_default="0", nullable=False),
        sa.Column("next_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("error", sa.Text),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.Column("finished_at", MOMENT),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="state_known"),
    )
    op.create_index("ix_webhook_deliveries_webhook_id_id", "webhook_deliveries", ["webhook_id", "id"])
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["next_at"],
        postgresql_where=sa.text("state = 'pending'"),
    )


def downgrade() -> None:
    op.drop_table("webhook_deliveries")
    op.drop_table("webhooks")
    op.drop_table("imported_rows")
    op.execute("DELETE FROM imports WHERE state = 'draft'")
    known_states(*STATES)
    op.drop_column("imports", "tries")
    op.drop_column("imports", "plan")
    op.drop_column("imports", "images_key")
