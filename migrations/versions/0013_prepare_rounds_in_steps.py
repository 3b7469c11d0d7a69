"""A round starts as a row with a position in the feed; a worker makes its snapshot in steps."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import UserDefinedType

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

HAS_CONTENT = "snapshot_id IS NOT NULL OR (position IS NOT NULL AND revision_id IS NOT NULL)"
NOTE_FRESH = """
CREATE FUNCTION note_fresh() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.fresh_xid := pg_current_xact_id();
    RETURN NEW;
END
$$;
CREATE TRIGGER note_fresh BEFORE UPDATE OF fresh ON prompts
FOR EACH ROW WHEN (NEW.fresh AND NOT OLD.fresh) EXECUTE FUNCTION note_fresh();
"""


class PgType(UserDefinedType[str]):
    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_: Any) -> str:
        return self.name


def upgrade() -> None:
    op.add_column("rounds", sa.Column("position", PgType("pg_snapshot")))
    op.add_column("rounds", sa.Column("revision_id", sa.BigInteger()))
    op.create_foreign_key(
        op.f("fk_rounds_revision_id_setting_revisions"), "rounds", "setting_revisions", ["revision_id"], ["id"]
    )
    op.alter_column("rounds", "snapshot_id", nullable=True)
    op.create_check_constraint("has_content", "rounds", HAS_CONTENT)
    op.add_column("snapshots", sa.Column("prepared", sa.Boolean(), server_default=sa.text("true"), nullable=False))
    op.add_column("prompts", sa.Column("fresh_xid", PgType("xid8")))
    op.drop_index("ix_prompts_fresh", "prompts")
    op.create_index("ix_prompts_fresh", "prompts", ["project_id", "fresh_xid"], postgresql_where=sa.text("fresh"))
    op.execute(NOTE_FRESH)


def downgrade() -> None:
    op.execute("DROP TRIGGER note_fresh ON prompts")
    op.execute("DROP FUNCTION note_fresh()")
    op.drop_index("ix_prompts_fresh", "prompts")
    op.create_index("ix_prompts_fresh", "prompts", ["project_id"], postgresql_where=sa.text("fresh"))
    op.drop_column("prompts", "fresh_xid")
    # The older tables cannot represent a round that is still being prepared.
    op.execute("DELETE FROM rounds WHERE snapshot_id IS NULL")
    op.execute("DELETE FROM snapshots WHERE NOT prepared")
    op.drop_column("snapshots", "prepared")
    op.drop_constraint(op.f("ck_rounds_has_content"), "rounds")
    op.alter_column("rounds", "snapshot_id", nullable=False)
    op.drop_constraint(op.f("fk_rounds_revision_id_setting_revisions"), "rounds", type_="foreignkey")
    op.drop_column("rounds", "revision_id")
    op.drop_column("rounds", "position")
