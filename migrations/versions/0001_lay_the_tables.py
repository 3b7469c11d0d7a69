"""Lay the tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.types import UserDefinedType

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


class Xid8(UserDefinedType[int]):
    def get_col_spec(self, **_: object) -> str:
        return "xid8"


def device_claims() -> None:
    op.create_table(
        "device_claims",
        sa.Column("device", sa.String(200), primary_key=True),
        sa.Column("worker", sa.String(200), nullable=False),
        sa.Column("purpose", sa.String(100), nullable=False),
        sa.Column("beats_at", MOMENT, server_default=sa.func.now(), nullable=False),
    )


def images() -> None:
    op.create_table(
        "images",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("media_type", sa.String(32), nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name="sha256_form"),
    )


def projects() -> None:
    op.create_table(
        "projects",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("slug", sa.String(63), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("revision_id", sa.BigInteger),
        sa.Column("active_version_id", sa.BigInteger),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'", name="slug_form"),
        sa.UniqueConstraint("slug"),
    )


def sign_in_tries() -> None:
    op.create_table(
        "sign_in_tries",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("at", MOMENT, server_default=sa.func.now(), nullable=False),
    )
    op.create_index("ix_sign_in_tries_key_at", "sign_in_tries", ["key", "at"])


def users() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("email", sa.String(320), nullable=False),
        sa.Column("password_hash", sa.String),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("disabled_at", MOMENT),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("role IN ('admin', 'reviewer', 'critic', 'viewer')", name="role_known"),
    )
    op.create_index("uq_users_email_lower", "users", [sa.text("lower(email)")], unique=True)


def workers() -> None:
    op.create_table(
        "workers",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("queues", sa.String(100), nullable=False),
        sa.Column("device", sa.String(100), nullable=False),
        sa.Column("doing", sa.Text, server_default="", nullable=False),
        sa.Column("memory_mb", sa.Integer, server_default="0", nullable=False),
        sa.Column("started_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.Column("beats_at", MOMENT, server_default=sa.func.now(), nullable=False),
    )


def audit_events() -> None:
    op.create_table(
        "audit_events",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("project_id", sa.BigInteger, sa.ForeignKey("projects.id", ondelete="CASCADE")),
        sa.Column("user_id", sa.BigInteger, sa.ForeignKey("users.id", ondelete="SET NULL")),
        sa.Column("action", sa.String(100), nullable=False),
        sa.Column("subject", sa.String(200), nullable=False),
        sa.Column("data", JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("at", MOMENT, server_default=sa.func.now(), nullable=False),
    )
    op.create_index("ix_audit_events_project_id_id", "audit_events", ["project_id", "id"])


def idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("user_id", sa.BigInteger, sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("key", sa.String(200), primary_key=True),
        sa.Column("request_hash", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("response", JSONB, nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])


def image_grants() -> None:
    op.create_table(
        "image_grants",
        sa.Column("sha256", sa.String(64), sa.ForeignKey("images.sha256", ondelete="CASCADE"), primary_key=True),
        sa.Column("user_id", sa.BigInteger, sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    )


def imports() -> None:
    op.create_table(
        "imports",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("project_id", sa.BigInteger, sa.ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
        sa.Column("state", sa.String(16), server_default="queued", nullable=False),
        sa.Column("filename", sa.String(400), nullable=False),
        sa.Column("file_key", sa.String(200), nullable=False),
        sa.Column("total", sa.Integer),
        sa.Column("done", sa.Integer, server_default="0", nullable=False),
        sa.Column("added", sa.Integer, server_default="0", nullable=False),
        sa.Column("unchanged", sa.Integer, server_default="0", nullable=False),
        sa.Column("rejected", sa.Integer, server_default="0", nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("worker", sa.String(200)),
        sa.Column("beats_at", MOMENT),
        sa.Column("fence", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("created_by", sa.BigInteger, sa.ForeignKey("users.id", ondelete="SET NULL")),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.Column("finished_at", MOMENT),
        sa.CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed')", name="state_known"),
    )
    op.create_index("ix_imports_project_id", "imports", ["project_id"])


def memberships() -> None:
    op.create_table(
        "memberships",
        sa.Column("user_id", sa.BigInteger, sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("project_id", sa.BigInteger, sa.ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("role IN ('admin', 'reviewer', 'critic', 'viewer')", name="role_known"),
    )
    op.create_index("ix_memberships_project_id", "memberships", ["project_id"])


def model_versions() -> None:
    op.create_table(
        "model_versions",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("project_id", sa.BigInteger, sa.ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("parent_id", sa.BigInteger, sa.ForeignKey("model_versions.id")),
        sa.Column("round_id", sa.BigInteger),
        sa.Column("base_model", sa.Text, nullable=False),
        sa.Column("adapter", sa.String(200)),
        sa.Column("metrics", JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.UniqueConstraint("project_id", "number"),
    )


def prompts() -> None:
    op.create_table(
        "prompts",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("project_id", sa.BigInteger, sa.ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
        sa.Column("external_id", sa.String(200)),
        sa.Column("split", sa.String(8), nullable=False),
        sa.Column("state", sa.String(16), server_default="waiting", nullable=False),
        sa.Column("question", sa.Text, nullable=False),
        sa.Column("answer", sa.Text),
        sa.Column("references", JSONB, server_default=sa.text("'[]'::jsonb"), nullable=False),
        sa.Column("metadata", JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("priority", sa.Integer, server_default="0", nullable=False),
        sa.Column("has_accepted", sa.Boolean, server_default=sa.text("false"), nullable=False),
        sa.Column("fresh", sa.Boolean, server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("answer IS NULL OR length(answer) BETWEEN 1 AND 4000", name="answer_length"),
        sa.CheckConstraint("length(question) BETWEEN 1 AND 4000", name="question_length"),
        sa.CheckConstraint("split IN ('train', 'val', 'test')", name="split_known"),
        sa.CheckConstraint("state IN ('waiting', 'ready', 'judged', 'held', 'retired')", name="state_known"),
        sa.UniqueConstraint("project_id", "external_id"),
    )
    op.create_index("ix_prompts_fresh", "prompts", ["project_id"], postgresql_where=sa.text("fresh"))
    op.create_index("ix_prompts_project_id_id", "prompts", ["project_id", "id"])
    op.create_index(
        "ix_prompts_waiting",
        "prompts",
        ["project_id", sa.text("priority DESC"), "id"],
        postgresql_where=sa.text("state = 'waiting' AND split = 'train'"),
    )


def sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("token_hash", sa.String(64), primary_key=True),
        sa.Column("user_id", sa.BigInteger, sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("csrf_token", sa.String(64), nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
    )
    op.create_index("ix_sessions_user_id", "sessions", ["user_id"])


def setting_revisions() -> None:
    op.create_table(
        "setting_revisions",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("project_id", sa.BigInteger, sa.ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("settings", JSONB, nullable=False),
        sa.Column("created_by", sa.BigInteger, sa.ForeignKey("users.id", ondelete="SET NULL")),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.UniqueConstraint("project_id", "number"),
    )


def snapshots() -> None:
    op.create_table(
        "snapshots",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("project_id", sa.BigInteger, sa.ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("settings", JSONB, nullable=False),
        sa.Column("counts", JSONB, nullable=False),
        sa.Column("redacted", sa.Integer, server_default="0", nullable=False),
        sa.Column("created_by", sa.BigInteger, sa.ForeignKey("users.id", ondelete="SET NULL")),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("kind IN ('round', 'frozen')", name="kind_known"),
        sa.UniqueConstraint("project_id", "number"),
    )


def tokens() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("user_id", sa.BigInteger, sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), server_default="", nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("max_open", sa.Integer),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.Column("expires_at", MOMENT),
        sa.Column("revoked_at", MOMENT),
        sa.Column("last_used_at", MOMENT),
        sa.CheckConstraint("scope IN ('read', 'write', 'admin')", name="scope_known"),
        sa.UniqueConstraint("token_hash"),
    )
    op.create_index("ix_tokens_user_id", "tokens", ["user_id"])


def candidate_sets() -> None:
    op.create_table(
        "candidate_sets",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("project_id", sa.BigInteger, sa.ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
        sa.Column("prompt_id", sa.BigInteger, sa.ForeignKey("prompts.id", ondelete="CASCADE"), nullable=False),
        sa.Column("version_id", sa.BigInteger, sa.ForeignKey("model_versions.id")),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("answer", sa.Text),
        sa.Column("answer_source", sa.String(8)),
        sa.Column("priority", sa.Integer, server_default="0", nullable=False),
        sa.Column("slots", sa.Integer, server_default="1", nullable=False),
        sa.Column("taken", sa.Integer, server_default="0", nullable=False),
        sa.Column("worker", sa.String(200)),
        sa.Column("beats_at", MOMENT),
        sa.Column("fence", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("tries", sa.Integer, server_default="0", nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("source IN ('model', 'imported')", name="source_known"),
        sa.CheckConstraint("state IN ('sampling', 'ready', 'judged', 'replaced', 'failed')", name="state_known"),
        sa.CheckConstraint("taken BETWEEN 0 AND slots", name="taken_within_slots"),
    )
    op.create_index(
        "ix_candidate_sets_claimable",
        "candidate_sets",
        ["project_id", "taken", sa.text("priority DESC"), "id"],
        postgresql_where=sa.text("state = 'ready' AND taken < slots"),
    )
    op.create_index("ix_candidate_sets_prompt_id", "candidate_sets", ["prompt_id"])
    op.create_index(
        "ix_candidate_sets_sampling", "candidate_sets", ["project_id"], postgresql_where=sa.text("state = 'sampling'")
    )
    op.create_index("ix_candidate_sets_version_id", "candidate_sets", ["version_id"])
    op.create_index(
        "uq_candidate_sets_live",
        "candidate_sets",
        ["prompt_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('sampling', 'ready')"),
    )


def evaluations() -> None:
    op.create_table(
        "evaluations",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("version_id", sa.BigInteger, sa.ForeignKey("model_versions.id", ondelete="CASCADE"), nullable=False),
        sa.Column("prompts_hash", sa.String(64), nullable=False),
        sa.Column("settings_hash", sa.String(64), nullable=False),
        sa.Column("scores", JSONB, nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.UniqueConstraint("version_id", "prompts_hash", "settings_hash"),
    )


def import_problems() -> None:
    op.create_table(
        "import_problems",
        sa.Column("import_id", sa.BigInteger, sa.ForeignKey("imports.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("field", sa.String(200)),
        sa.Column("reason", sa.Text, nullable=False),
    )


def prompt_images() -> None:
    op.create_table(
        "prompt_images",
        sa.Column("prompt_id", sa.BigInteger, sa.ForeignKey("prompts.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("sha256", sa.String(64), sa.ForeignKey("images.sha256"), nullable=False),
    )
    op.create_index("ix_prompt_images_sha256", "prompt_images", ["sha256"])


def rounds() -> None:
    op.create_table(
        "rounds",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("project_id", sa.BigInteger, sa.ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("trigger", sa.String(16), nullable=False),
        sa.Column("snapshot_id", sa.BigInteger, sa.ForeignKey("snapshots.id"), nullable=False),
        sa.Column("parent_id", sa.BigInteger, sa.ForeignKey("model_versions.id"), nullable=False),
        sa.Column("version_id", sa.BigInteger, sa.ForeignKey("model_versions.id")),
        sa.Column("progress", JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("metrics", JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("decision", JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("tries", sa.Integer, server_default="0", nullable=False),
        sa.Column("worker", sa.String(200)),
        sa.Column("beats_at", MOMENT),
        sa.Column("fence", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("created_by", sa.BigInteger, sa.ForeignKey("users.id", ondelete="SET NULL")),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.Column("started_at", MOMENT),
        sa.Column("finished_at", MOMENT),
        sa.CheckConstraint(
            "state IN ('queued', 'preparing', 'training', 'evaluating', 'cancelling', 'succeeded', 'failed', 'cancelled')",
            name="state_known",
        ),
        sa.CheckConstraint("trigger IN ('auto', 'manual', 'rerun')", name="trigger_known"),
        sa.UniqueConstraint("project_id", "number"),
    )
    op.create_index(
        "uq_rounds_one_active",
        "rounds",
        ["project_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('queued', 'preparing', 'training', 'evaluating', 'cancelling')"),
    )


def assignments() -> None:
    op.create_table(
        "assignments",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("project_id", sa.BigInteger, sa.ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
        sa.Column(
            "candidate_set_id", sa.BigInteger, sa.ForeignKey("candidate_sets.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("critic_id", sa.BigInteger, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("slot", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("repeat", sa.Boolean, server_default=sa.text("false"), nullable=False),
        sa.Column("shown", ARRAY(sa.BigInteger), nullable=False),
        sa.Column("claimed_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("extensions", sa.Integer, server_default="0", nullable=False),
        sa.CheckConstraint("slot >= 1", name="slot_positive"),
        sa.CheckConstraint("state IN ('open', 'judged', 'released', 'lapsed')", name="state_known"),
    )
    op.create_index("ix_assignments_critic_id_id", "assignments", ["critic_id", "id"])
    op.create_index("ix_assignments_expires", "assignments", ["expires_at"], postgresql_where=sa.text("state = 'open'"))
    op.create_index(
        "ix_assignments_open",
        "assignments",
        ["critic_id", "project_id", "id"],
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index(
        "uq_assignments_critic",
        "assignments",
        ["candidate_set_id", "critic_id"],
        unique=True,
        postgresql_where=sa.text("state <> 'lapsed' AND NOT repeat"),
    )
    op.create_index(
        "uq_assignments_slot",
        "assignments",
        ["candidate_set_id", "slot"],
        unique=True,
        postgresql_where=sa.text("state IN ('open', 'judged')"),
    )


def candidates() -> None:
    op.create_table(
        "candidates",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column(
            "candidate_set_id", sa.BigInteger, sa.ForeignKey("candidate_sets.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("temperature", sa.Double),
        sa.Column("seed", sa.BigInteger),
        sa.Column("mean_logprob", sa.Double),
        sa.Column("n_tokens", sa.Integer),
        sa.UniqueConstraint("candidate_set_id", "position"),
    )


def round_events() -> None:
    op.create_table(
        "round_events",
        sa.Column("round_id", sa.BigInteger, sa.ForeignKey("rounds.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("data", JSONB, nullable=False),
        sa.Column("at", MOMENT, server_default=sa.func.now(), nullable=False),
    )


def verdicts() -> None:
    op.create_table(
        "verdicts",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("xid", Xid8, server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.Column("project_id", sa.BigInteger, sa.ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
        sa.Column("assignment_id", sa.BigInteger, sa.ForeignKey("assignments.id", ondelete="CASCADE"), nullable=False),
        sa.Column(
            "candidate_set_id", sa.BigInteger, sa.ForeignKey("candidate_sets.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("prompt_id", sa.BigInteger, sa.ForeignKey("prompts.id", ondelete="CASCADE"), nullable=False),
        sa.Column("critic_id", sa.BigInteger, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), server_default="counted", nullable=False),
        sa.Column("current", sa.Boolean, server_default=sa.text("true"), nullable=False),
        sa.Column("supersedes", sa.BigInteger, sa.ForeignKey("verdicts.id")),
        sa.Column("reason", sa.Text),
        sa.Column("rationale", sa.Text),
        sa.Column("edited_from", sa.BigInteger, sa.ForeignKey("candidates.id")),
        sa.Column("tags", JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("comment", sa.Text),
        sa.Column("seconds", sa.Double),
        sa.Column("shown", ARRAY(sa.BigInteger), nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("kind IN ('picked', 'none_fit', 'skipped', 'flagged')", name="kind_known"),
        sa.CheckConstraint("seconds IS NULL OR seconds >= 0", name="seconds_positive"),
        sa.CheckConstraint("state IN ('counted', 'kept_aside')", name="state_known"),
    )
    op.create_index("ix_verdicts_candidate_set_id", "verdicts", ["candidate_set_id"])
    op.create_index("ix_verdicts_critic_id", "verdicts", ["critic_id", "project_id", "id"])
    op.create_index("ix_verdicts_feed", "verdicts", ["project_id", "xid", "id"])
    op.create_index("ix_verdicts_prompt_id", "verdicts", ["prompt_id"], postgresql_where=sa.text("current"))
    op.create_index(
        "uq_verdicts_assignment_current",
        "verdicts",
        ["assignment_id"],
        unique=True,
        postgresql_where=sa.text("current"),
    )
    op.create_index("uq_verdicts_supersedes", "verdicts", ["supersedes"], unique=True)


def picks() -> None:
    op.create_table(
        "picks",
        sa.Column("verdict_id", sa.BigInteger, sa.ForeignKey("verdicts.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("candidate_id", sa.BigInteger, sa.ForeignKey("candidates.id", ondelete="CASCADE"), primary_key=True),
    )
    op.create_index("ix_picks_candidate_id", "picks", ["candidate_id"])


def snapshot_items() -> None:
    op.create_table(
        "snapshot_items",
        sa.Column("snapshot_id", sa.BigInteger, sa.ForeignKey("snapshots.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("prompt_id", sa.BigInteger, sa.ForeignKey("prompts.id", ondelete="SET NULL")),
        sa.Column("verdict_id", sa.BigInteger, sa.ForeignKey("verdicts.id", ondelete="SET NULL")),
        sa.Column("candidate_id", sa.BigInteger, sa.ForeignKey("candidates.id", ondelete="SET NULL")),
        sa.CheckConstraint("role IN ('rationale', 'guard', 'val', 'heldout')", name="role_known"),
    )
    op.create_index("ix_snapshot_items_prompt_id", "snapshot_items", ["prompt_id"])
    op.create_index("ix_snapshot_items_verdict_id", "snapshot_items", ["verdict_id"])


TABLES = (
    device_claims,
    images,
    projects,
    sign_in_tries,
    users,
    workers,
    audit_events,
    idempotency_keys,
    image_grants,
    imports,
    memberships,
    model_versions,
    prompts,
    sessions,
    setting_revisions,
    snapshots,
    tokens,
    candidate_sets,
    evaluations,
    import_problems,
    prompt_images,
    rounds,
    assignments,
    candidates,
    round_events,
    verdicts,
    picks,
    snapshot_items,
)

# Tables that name each other: these keys come when both are there.
LATE_KEYS = (
    ("projects", "revision_id", "setting_revisions"),
    ("projects", "active_version_id", "model_versions"),
    ("model_versions", "round_id", "rounds"),
)


def upgrade() -> None:
    for make in TABLES:
        make()
    for table, column, other in LATE_KEYS:
        op.create_foreign_key(f"fk_{table}_{column}_{other}", table, other, [column], ["id"])


def downgrade() -> None:
    for table, column, other in LATE_KEYS:
        op.drop_constraint(f"fk_{table}_{column}_{other}", table)
    for make in reversed(TABLES):
        op.drop_table(make.__name__)
