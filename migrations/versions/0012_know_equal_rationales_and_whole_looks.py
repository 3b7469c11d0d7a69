"""Whether a critic looked at all candidates, and the normalised form of critics' own rationales."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from illume.texts import normalise_rationale

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

ROWS = 2000
NEXT = sa.text("""
SELECT id, rationale FROM verdicts WHERE id > :after AND rationale IS NOT NULL ORDER BY id LIMIT :rows
""")
SET_KEYS = sa.text("""
UPDATE verdicts v SET rationale_key = k.key
FROM unnest(CAST(:ids AS bigint[]), CAST(:keys AS text[])) AS k (id, key) WHERE v.id = k.id
""")


def upgrade() -> None:
    op.add_column("verdicts", sa.Column("exhaustive", sa.Boolean, server_default=sa.text("true"), nullable=False))
    op.add_column("verdicts", sa.Column("rationale_key", sa.Text))
    fill_keys(op.get_bind())
    op.create_check_constraint("rationale_has_key", "verdicts", "(rationale IS NULL) = (rationale_key IS NULL)")


def fill_keys(connection: sa.Connection) -> None:
    """Give the rationales that are there their keys."""
    after = 0
    while rows := connection.execute(NEXT, {"after": after, "rows": ROWS}).all():
        keys = [normalise_rationale(row.rationale) for row in rows]
        connection.execute(SET_KEYS, {"ids": [row.id for row in rows], "keys": keys})
        after = rows[-1].id


def downgrade() -> None:
    op.drop_constraint(op.f("ck_verdicts_rationale_has_key"), "verdicts", type_="check")
    op.drop_column("verdicts", "rationale_key")
    op.drop_column("verdicts", "exhaustive")
