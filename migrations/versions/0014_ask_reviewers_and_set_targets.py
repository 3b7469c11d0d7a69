"""A prompt can be sent to the reviewers, and a critic can have a daily target."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_constraint(op.f("ck_reviews_kind_known"), "reviews")
    kinds = "kind IN ('disagreement', 'flag', 'late', 'asked')"
    op.create_check_constraint(op.f("ck_reviews_kind_known"), "reviews", kinds)
    op.add_column("critic_standings", sa.Column("daily_target", sa.Integer()))
    possible = "daily_target BETWEEN 1 AND 10000"
    op.create_check_constraint(op.f("ck_critic_standings_daily_target_possible"), "critic_standings", possible)


def downgrade() -> None:
    op.drop_constraint(op.f("ck_critic_standings_daily_target_possible"), "critic_standings")
    op.drop_column("critic_standings", "daily_target")
    # The older table does not know these reviews; nothing was decided by them that is not a verdict.
    op.execute("DELETE FROM reviews WHERE kind = 'asked'")
    op.drop_constraint(op.f("ck_reviews_kind_known"), "reviews")
    op.create_check_constraint(op.f("ck_reviews_kind_known"), "reviews", "kind IN ('disagreement', 'flag', 'late')")
