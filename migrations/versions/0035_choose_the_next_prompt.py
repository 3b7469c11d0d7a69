"""The setting `next_prompt` in place of `uncertain_first`."""

from __future__ import annotations

from alembic import op

revision = "0035"
down_revision = "0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        UPDATE setting_revisions SET settings = settings - 'uncertain_first' || jsonb_build_object(
            'next_prompt', CASE WHEN settings -> 'uncertain_first' = 'true' THEN 'uncertain' ELSE 'priority' END)
        WHERE settings ? 'uncertain_first'
    """)


def downgrade() -> None:
    op.execute("""
        UPDATE setting_revisions SET settings = settings - 'next_prompt' || jsonb_build_object(
            'uncertain_first', settings ->> 'next_prompt' = 'uncertain')
        WHERE settings ? 'next_prompt'
    """)
