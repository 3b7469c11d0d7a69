"""What a model server ran when it wrote a candidate set, where that is another model than its version's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0047"
down_revision = "0046"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("candidate_sets", sa.Column("served_model", sa.String(length=600), nullable=True))


def downgrade() -> None:
    op.drop_column("candidate_sets", "served_model")
