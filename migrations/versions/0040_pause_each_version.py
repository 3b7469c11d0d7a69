"""Pauses of each version, so that a machine critic that cannot be used waits too."""

from __future__ import annotations

from alembic import op

revision = "0040"
down_revision = "0039"
branch_labels = None
depends_on = None

NAME = "pk_sampling_pauses"


def upgrade() -> None:
    op.drop_constraint(op.f(NAME), "sampling_pauses", type_="primary")
    op.create_primary_key(op.f(NAME), "sampling_pauses", ["project_id", "version_id"])


def downgrade() -> None:
    op.execute("""
        DELETE FROM sampling_pauses s USING projects p
        WHERE p.id = s.project_id AND s.version_id IS DISTINCT FROM p.active_version_id
    """)
    op.drop_constraint(op.f(NAME), "sampling_pauses", type_="primary")
    op.create_primary_key(op.f(NAME), "sampling_pauses", ["project_id"])
