"""What was done to an image when it was taken in, and the name of the file that somebody uploaded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    changes = sa.Column("changes", postgresql.ARRAY(sa.String(32)), server_default="{}", nullable=False)
    op.add_column("images", changes)
    op.add_column("image_grants", sa.Column("name", sa.String(200)))


def downgrade() -> None:
    op.drop_column("image_grants", "name")
    op.drop_column("images", "changes")
