"""The normalised form of critics' own rationales in other scripts, and of letters whose case has no one-to-one form."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from illume.texts import normalise_rationale

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

ROWS = 2000
# ASCII is folded as before.
NEXT = sa.text("""
SELECT id, rationale, rationale_key FROM verdicts
WHERE id > :after AND rationale IS NOT NULL AND rationale ~ '[^[:ascii:]]' ORDER BY id LIMIT :rows
""")
SET_KEYS = sa.text("""
UPDATE verdicts v SET rationale_key = k.key
FROM unnest(CAST(:ids AS bigint[]), CAST(:keys AS text[])) AS k (id, key) WHERE v.id = k.id
""")


def upgrade() -> None:
    connection, after = op.get_bind(), 0
    while rows := connection.execute(NEXT, {"after": after, "rows": ROWS}).all():
        changed = {row.id: key for row in rows if (key := normalise_rationale(row.rationale)) != row.rationale_key}
        if changed:
            connection.execute(SET_KEYS, {"ids": list(changed), "keys": list(changed.values())})
        after = rows[-1].id


def downgrade() -> None:
    """Keys of this version are right for the one before, too."""
