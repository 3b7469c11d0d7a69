"""Beside each English text that a page shows, the phrase from which it is told in the reader's language."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0038"
down_revision = "0037"
branch_labels = None
depends_on = None

COLUMNS = (
    ("base_checks", "detail_phrase"),
    ("candidate_sets", "error_phrase"),
    ("comparisons", "outcome_phrase"),
    ("critic_jobs", "error_phrase"),
    ("engine_adapters", "error_phrase"),
    ("engines", "error_phrase"),
    ("erasures", "error_phrase"),
    ("import_problems", "reason_phrase"),
    ("imports", "error_phrase"),
    ("rounds", "error_phrase"),
    ("rounds", "reason_phrase"),
    ("sampling_pauses", "reason_phrase"),
    ("webhook_deliveries", "error_phrase"),
)


def upgrade() -> None:
    for table, name in COLUMNS:
        op.add_column(table, sa.Column(name, postgresql.JSONB(astext_type=sa.Text()), nullable=True))


def downgrade() -> None:
    for table, name in reversed(COLUMNS):
        op.drop_column(table, name)
