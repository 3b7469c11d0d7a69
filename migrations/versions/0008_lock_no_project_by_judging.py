"""Claims and verdicts refer to the project through their candidate set, and no longer lock its row."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TABLES = ("assignments", "verdicts")


def upgrade() -> None:
    for table in TABLES:
        op.drop_constraint(f"fk_{table}_project_id_projects", table, type_="foreignkey")


def downgrade() -> None:
    for table in TABLES:
        op.create_foreign_key(
            f"fk_{table}_project_id_projects", table, "projects", ["project_id"], ["id"], ondelete="CASCADE"
        )
