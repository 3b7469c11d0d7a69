"""Whether a base model reads all pictures of a prompt before its texts, as its check found it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("base_checks", sa.Column("pictures_first", sa.Boolean()))


def downgrade() -> None:
    op.drop_column("base_checks", "pictures_first")
