"""A person may say what they are called; where they do not, their address stands for them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("users", sa.Column("name", sa.String(100), server_default="", nullable=False))


def downgrade() -> None:
    op.drop_column("users", "name")
