"""What a machine accepted, by the transaction that added it: pages ask often whether there is anything new."""

from __future__ import annotations

from alembic import op

revision = "0042"
down_revision = "0041"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_machine_accepts_project_id_xid", "machine_accepts", ["project_id", "xid"])
    op.drop_index("ix_machine_accepts_project_id", "machine_accepts")


def downgrade() -> None:
    op.create_index("ix_machine_accepts_project_id", "machine_accepts", ["project_id"])
    op.drop_index("ix_machine_accepts_project_id_xid", "machine_accepts")
