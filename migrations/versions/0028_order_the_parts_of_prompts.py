"""Prompts of ordered parts, and questions of up to 16,000 characters.

The texts of a prompt with parts have so many characters together, and up to 63 spaces between them in `question`.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

LIMIT = "ck_prompts_question_length"
PARTS = "ck_prompts_parts_length"


def upgrade() -> None:
    op.add_column("prompts", sa.Column("parts", postgresql.JSONB(none_as_null=True)))
    op.drop_constraint(op.f(LIMIT), "prompts", type_="check")
    op.create_check_constraint(
        op.f(LIMIT), "prompts", "length(question) BETWEEN CASE WHEN parts IS NULL THEN 1 ELSE 0 END AND 16063"
    )
    op.create_check_constraint(op.f(PARTS), "prompts", "parts IS NULL OR jsonb_array_length(parts) BETWEEN 1 AND 64")


def downgrade() -> None:
    op.drop_constraint(op.f(PARTS), "prompts", type_="check")
    op.drop_constraint(op.f(LIMIT), "prompts", type_="check")
    op.drop_column("prompts", "parts")
    op.execute(
        "UPDATE prompts SET question = coalesce(nullif(left(question, 4000), ''), '?') "
        "WHERE length(question) NOT BETWEEN 1 AND 4000"
    )
    op.create_check_constraint(op.f(LIMIT), "prompts", "length(question) BETWEEN 1 AND 4000")
