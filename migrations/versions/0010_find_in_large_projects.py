"""Stored disagreement, search words and authors of prompts, so that filters stay fast over millions of prompts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# Verdicts change the state of prompts all day. The search words are in a table of their own, so that such a change does
# not update the word index.
WORDS = "lower(concat_ws(E'\\n', question, answer, external_id))"
ADDED = f"""
CREATE FUNCTION keep_prompt_words() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO prompt_words (prompt_id, project_id, words) SELECT id, project_id, {WORDS} FROM come;
    RETURN NULL;
END
$$;
CREATE TRIGGER keep_words AFTER INSERT ON prompts REFERENCING NEW TABLE AS come
FOR EACH STATEMENT EXECUTE FUNCTION keep_prompt_words();
"""  # noqa: S608 - constants only
CHANGED = """
CREATE FUNCTION change_prompt_words() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE prompt_words SET words = lower(concat_ws(E'\\n', NEW.question, NEW.answer, NEW.external_id))
    WHERE prompt_id = NEW.id;
    RETURN NULL;
END
$$;
CREATE TRIGGER change_words AFTER UPDATE OF question, answer, external_id ON prompts
FOR EACH ROW EXECUTE FUNCTION change_prompt_words();
"""


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
    op.create_table(
        "prompt_words",
        sa.Column("prompt_id", sa.BigInteger(), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("words", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["prompt_id"], ["prompts.id"], name=op.f("fk_prompt_words_prompt_id_prompts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("prompt_id", name=op.f("pk_prompt_words")),
    )
    op.execute(f"INSERT INTO prompt_words SELECT id, project_id, {WORDS} FROM prompts ORDER BY id")  # noqa: S608
    op.create_index("ix_prompt_words_project_id", "prompt_words", ["project_id", "prompt_id"])
    op.create_index(
        "ix_prompt_words_words",
        "prompt_words",
        ["words"],
        postgresql_using="gin",
        postgresql_ops={"words": "gin_trgm_ops"},
    )
    op.execute(ADDED)
    op.execute(CHANGED)
    op.create_table(
        "agreements",
        sa.Column("candidate_set_id", sa.BigInteger(), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("prompt_id", sa.BigInteger(), nullable=False),
        sa.Column("apart", sa.Boolean(), nullable=False),
        sa.Column("last_verdict_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["candidate_set_id"],
            ["candidate_sets.id"],
            name=op.f("fk_agreements_candidate_set_id_candidate_sets"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("candidate_set_id", name=op.f("pk_agreements")),
    )
    op.create_index("ix_agreements_prompts", "agreements", ["project_id", "apart", "prompt_id"])
    op.create_index("ix_agreements_newest", "agreements", ["project_id", "last_verdict_id"])
    # The sweep also processes earlier verdicts, in batches, like new ones.
    op.create_table(
        "agreement_places",
        sa.Column("project_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("feed_xid", sa.String(20), server_default="0", nullable=False),
        sa.Column("feed_id", sa.BigInteger(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_agreement_places_project_id_projects"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_agreement_places")),
    )
    op.create_index("ix_candidate_sets_version_id_prompt_id", "candidate_sets", ["version_id", "prompt_id"])
    op.drop_index("ix_candidate_sets_version_id", "candidate_sets")
    op.create_index(
        "ix_verdicts_flagged",
        "verdicts",
        ["project_id", "prompt_id"],
        postgresql_where=sa.text("current AND kind = 'flagged'"),
    )


def downgrade() -> None:
    op.drop_index("ix_verdicts_flagged", "verdicts")
    op.create_index("ix_candidate_sets_version_id", "candidate_sets", ["version_id"])
    op.drop_index("ix_candidate_sets_version_id_prompt_id", "candidate_sets")
    op.drop_table("agreement_places")
    op.drop_table("agreements")
    op.execute("DROP TRIGGER change_words ON prompts")
    op.execute("DROP TRIGGER keep_words ON prompts")
    op.execute("DROP FUNCTION change_prompt_words()")
    op.execute("DROP FUNCTION keep_prompt_words()")
    op.drop_table("prompt_words")
    op.execute("DROP EXTENSION IF EXISTS pg_trgm")
