"""Learn from what was turned down: snapshots have rows of rejections."""

from __future__ import annotations

from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

OLD = "role IN ('rationale', 'guard', 'val', 'heldout')"
NEW = "role IN ('rationale', 'guard', 'val', 'heldout', 'rejection')"


def upgrade() -> None:
    op.drop_constraint(op.f("ck_snapshot_items_role_known"), "snapshot_items", type_="check")
    op.create_check_constraint("role_known", "snapshot_items", NEW)


def downgrade() -> None:
    op.execute("DELETE FROM snapshot_items WHERE role = 'rejection'")
    op.drop_constraint(op.f("ck_snapshot_items_role_known"), "snapshot_items", type_="check")
    op.create_check_constraint("role_known", "snapshot_items", OLD)
