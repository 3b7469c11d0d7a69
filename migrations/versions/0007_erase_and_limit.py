"""Erasure of people, images and projects; tombstones of verdicts; files to remove; limits of tokens."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("verdicts", sa.Column("deleted", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("users", sa.Column("erased_at", sa.DateTime(timezone=True)))
    op.add_column("projects", sa.Column("erased_at", sa.DateTime(timezone=True)))
    op.add_column("tokens", sa.Column("requests_per_minute", sa.Integer()))
    op.create_check_constraint(
        "requests_positive", "tokens", "requests_per_minute IS NULL OR requests_per_minute BETWEEN 1 AND 1000000"
    )
    op.create_table(
        "erasures",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), server_default="open", nullable=False),
        sa.Column("counts", JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("created_by", sa.BigInteger()),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("kind IN ('person', 'image', 'project')", name=op.f("ck_erasures_kind_known")),
        sa.CheckConstraint("state IN ('open', 'done')", name=op.f("ck_erasures_state_known")),
        sa.ForeignKeyConstraint(
            ["created_by"], ["users.id"], name=op.f("fk_erasures_created_by_users"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erasures")),
    )
    op.create_index("ix_erasures_open", "erasures", ["id"], postgresql_where=sa.text("state = 'open'"))
    op.create_table(
        "store_removals",
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_store_removals")),
    )


def downgrade() -> None:
    op.drop_table("store_removals")
    op.drop_table("erasures")
    op.drop_constraint("requests_positive", "tokens", type_="check")
    op.drop_column("tokens", "requests_per_minute")
    op.drop_column("projects", "erased_at")
    op.drop_column("users", "erased_at")
    op.drop_column("verdicts", "deleted")
