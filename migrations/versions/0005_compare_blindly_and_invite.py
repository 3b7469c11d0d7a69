"""Blind comparisons of versions, one-time links, checks of base models."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def number() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True)


def moment(name: str) -> sa.Column[object]:
    return sa.Column(name, MOMENT, server_default=sa.func.now(), nullable=False)


def maker() -> sa.Column[int]:
    return sa.Column("created_by", sa.BigInteger, sa.ForeignKey("users.id", ondelete="SET NULL"))


def comparisons() -> None:
    op.create_table(
        "comparisons",
        number(),
        sa.Column("project_id", sa.BigInteger, sa.ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("old_id", sa.BigInteger, sa.ForeignKey("model_versions.id"), nullable=False),
        sa.Column("new_id", sa.BigInteger, sa.ForeignKey("model_versions.id"), nullable=False),
        sa.Column("state", sa.String(16), server_default="open", nullable=False),
        sa.Column("each", sa.Integer, server_default="1", nullable=False),
        sa.Column("gate", sa.Boolean, server_default=sa.text("false"), nullable=False),
        sa.Column("outcome", sa.Text, server_default="", nullable=False),
        maker(),
        moment("created_at"),
        sa.Column("closed_at", MOMENT),
        sa.CheckConstraint("state IN ('open', 'closed')", name="state_known"),
        sa.CheckConstraint("old_id <> new_id", name="two_versions"),
        sa.UniqueConstraint("project_id", "number"),
    )
    op.create_index(
        "ix_comparisons_open", "comparisons", ["project_id", "id"], postgresql_where=sa.text("state = 'open'")
    )


def comparison_pairs() -> None:
    op.create_table(
        "comparison_pairs",
        number(),
        sa.Column("comparison_id", sa.BigInteger, sa.ForeignKey("comparisons.id", ondelete="CASCADE"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("prompt_id", sa.BigInteger, sa.ForeignKey("prompts.id", ondelete="CASCADE"), nullable=False),
        sa.Column("answer", sa.Text),
        sa.Column("old_text", sa.Text, nullable=False),
        sa.Column("new_text", sa.Text, nullable=False),
        sa.Column("alike", sa.Boolean, server_default=sa.text("false"), nullable=False),
        sa.UniqueConstraint("comparison_id", "position"),
    )
    op.create_index("ix_comparison_pairs_prompt_id", "comparison_pairs", ["prompt_id"])


def preferences() -> None:
    op.create_table(
        "preferences",
        number(),
        sa.Column("pair_id", sa.BigInteger, sa.ForeignKey("comparison_pairs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("critic_id", sa.BigInteger, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("preferred", sa.String(8), nullable=False),
        sa.Column("left", sa.String(8), nullable=False),
        sa.Column("seconds", sa.Float),
        moment("created_at"),
        sa.CheckConstraint("preferred IN ('old', 'new', 'neither')", name="preferred_known"),
        sa.CheckConstraint("\"left\" IN ('old', 'new')", name="left_known"),
        sa.UniqueConstraint("pair_id", "critic_id"),
    )
    op.create_index("ix_preferences_critic_id", "preferences", ["critic_id"])


def one_time_links() -> None:
    op.create_table(
        "one_time_links",
        number(),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("user_id", sa.BigInteger, sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        maker(),
        moment("created_at"),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("used_at", MOMENT),
        sa.CheckConstraint("purpose IN ('invitation', 'password')", name="purpose_known"),
        sa.UniqueConstraint("token_hash"),
    )
    op.create_index("ix_one_time_links_user_id", "one_time_links", ["user_id"])


def base_checks() -> None:
    op.create_table(
        "base_checks",
        number(),
        sa.Column("base_model", sa.String(500), nullable=False),
        sa.Column("state", sa.String(16), server_default="queued", nullable=False),
        sa.Column("detail", sa.Text, server_default="", nullable=False),
        maker(),
        moment("created_at"),
        sa.Column("finished_at", MOMENT),
        sa.CheckConstraint("state IN ('queued', 'passed', 'failed')", name="state_known"),
    )
    op.create_index("ix_base_checks_base_model_id", "base_checks", ["base_model", "id"])


TABLES = (comparisons, comparison_pairs, preferences, one_time_links, base_checks)


def upgrade() -> None:
    for make in TABLES:
        make()


def downgrade() -> None:
    for make in reversed(TABLES):
        op.drop_table(make.__name__)
