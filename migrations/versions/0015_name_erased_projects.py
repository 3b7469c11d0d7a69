"""An erasure says which project it was."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("erasures", sa.Column("name", sa.Text()))


def downgrade() -> None:
    op.drop_column("erasures", "name")
