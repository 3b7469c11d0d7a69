"""Metadata that break the rules for JSON are set aside as text, where they break no list, and reported."""

from __future__ import annotations

import json
import logging

import sqlalchemy as sa
from alembic import op

from app.services.kernel.text_rules import check_storable

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

log = logging.getLogger("alembic.runtime.migration")
FIELD = "set_aside_as_text"
ROWS = 2000
# Long numbers, or many brackets; whether they break a rule is checked with the rule itself.
NEXT = sa.text(r"""
SELECT p.id, p.project_id, p.metadata::text AS written FROM prompts p
WHERE p.id > :after AND (
    p.metadata::text ~ '[0-9]{19}' OR length(p.metadata::text) - length(translate(p.metadata::text, '{[', '')) > 32
)
ORDER BY p.id LIMIT :rows
""")
SET_ASIDE = sa.text(
    "UPDATE prompts SET metadata = jsonb_build_object(CAST(:field AS text), CAST(:written AS text)) WHERE id = :id"
)
REPORT = sa.text("""
INSERT INTO audit_events (project_id, action, subject, data)
VALUES (:project, 'prompt.set_metadata_aside', :subject, jsonb_build_object('reason', CAST(:reason AS text)))
""")
PUT_BACK = sa.text("""
UPDATE prompts SET metadata = CAST(metadata ->> CAST(:field AS text) AS jsonb)
WHERE metadata ? CAST(:field AS text) AND jsonb_typeof(metadata -> CAST(:field AS text)) = 'string'
    AND id IN (SELECT CAST(substr(subject, 8) AS bigint) FROM audit_events WHERE action = 'prompt.set_metadata_aside')
""")


def upgrade() -> None:
    connection = op.get_bind()
    after = 0
    while rows := connection.execute(NEXT, {"after": after, "rows": ROWS}).all():
        for row in rows:
            reason = why_unreadable(row.written)
            if reason:
                connection.execute(SET_ASIDE, {"field": FIELD, "written": row.written, "id": row.id})
                subject = f"prompt:{row.id}"
                connection.execute(REPORT, {"project": row.project_id, "subject": subject, "reason": reason})
                log.warning("prompt %s of project %s: its metadata are set aside: %s", row.id, row.project_id, reason)
        after = rows[-1].id


def why_unreadable(written: str) -> str:
    """Which rule metadata break; empty where they break none."""
    try:
        check_storable(json.loads(written))
    except RecursionError:
        return "is nested too deeply"
    except ValueError as error:
        return str(error)
    return ""


def downgrade() -> None:
    op.get_bind().execute(PUT_BACK, {"field": FIELD})
    op.execute("DELETE FROM audit_events WHERE action = 'prompt.set_metadata_aside'")
