"""Metadata over the size that a prompt may have since are reported; they stay as they are."""

from __future__ import annotations

import json
import logging

import sqlalchemy as sa
from alembic import op

from app.services.kernel.text_rules import MAX_JSON_BYTES, check_json_size

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

log = logging.getLogger("alembic.runtime.migration")
ACTION = "prompt.report_large_metadata"
ROWS = 50
# As text they are a little longer than by the rule, which counts no spaces.
NEXT = sa.text("""
SELECT p.id, p.project_id, p.metadata::text AS written FROM prompts p
WHERE p.id > :after AND octet_length(p.metadata::text) > :most ORDER BY p.id LIMIT :rows
""")
REPORT = sa.text("""
INSERT INTO audit_events (project_id, action, subject, data)
VALUES (:project, :action, :subject, jsonb_build_object('reason', CAST(:reason AS text)))
""")


def upgrade() -> None:
    connection = op.get_bind()
    after = 0
    while rows := connection.execute(NEXT, {"after": after, "most": MAX_JSON_BYTES, "rows": ROWS}).all():
        for row in rows:
            reason = why_too_large(row.written)
            if reason:
                values = {"project": row.project_id, "action": ACTION, "subject": f"prompt:{row.id}", "reason": reason}
                connection.execute(REPORT, values)
                log.warning("prompt %s of project %s: its metadata %s", row.id, row.project_id, reason)
        after = rows[-1].id


def why_too_large(written: str) -> str:
    """The rule that metadata break; empty where they break none."""
    try:
        check_json_size(json.loads(written))
    except ValueError as error:
        return str(error)
    return ""


def downgrade() -> None:
    op.get_bind().execute(sa.text("DELETE FROM audit_events WHERE action = :action"), {"action": ACTION})
