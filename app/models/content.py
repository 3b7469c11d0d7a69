"""Projects, prompts, images, and the candidates that models wrote for them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    ForeignKey,
    Identity,
    Index,
    String,
    Text,
    UniqueConstraint,
    desc,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.db.base import Base, StoredPhrase
from app.db.types import Xid8
from app.models.states import (
    CandidateSetState,
    CandidateSource,
    EnumText,
    ImportState,
    PromptState,
    SamplingFailure,
    Selection,
    Split,
    enum_check,
)


class Project(Base):
    """One task with its prompts, settings and model lineage.

    `revision_id` and `active_version_id` name the setting revision and the version in force.
    """

    __tablename__ = "projects"
    __table_args__ = (CheckConstraint("slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'", name="slug_form"), UniqueConstraint("slug"))

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    slug: Mapped[str] = mapped_column(String(63))
    name: Mapped[str] = mapped_column(String(200))
    revision_id: Mapped[int | None] = mapped_column(
        ForeignKey("setting_revisions.id", use_alter=True, name="fk_projects_revision_id_setting_revisions")
    )
    active_version_id: Mapped[int | None] = mapped_column(
        ForeignKey("model_versions.id", use_alter=True, name="fk_projects_active_version_id_model_versions")
    )
    checklist_dismissed: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    erased_at: Mapped[datetime | None]


class SettingRevision(Base):
    """The settings of a project from one moment on. Never changed; `settings` holds every setting."""

    __tablename__ = "setting_revisions"
    __table_args__ = (UniqueConstraint("project_id", "number"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    number: Mapped[int]
    settings: Mapped[dict[str, Any]]
    created_by: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Image(Base):
    """An image in the store, named by the sha256 of the bytes that are served.

    `changes`: what was done to the file of whoever uploaded it first, as `illume.pictures.Change` names it.
    """

    __tablename__ = "images"
    __table_args__ = (CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name="sha256_form"),)

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    media_type: Mapped[str] = mapped_column(String(32))
    width: Mapped[int]
    height: Mapped[int]
    size: Mapped[int] = mapped_column(BigInteger)
    changes: Mapped[list[str]] = mapped_column(ARRAY(String(32)), server_default=text("'{}'"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ImageGrant(Base):
    """A person who uploaded an image, and so may see and use it before any prompt does; `name` is their file's."""

    __tablename__ = "image_grants"

    sha256: Mapped[str] = mapped_column(ForeignKey("images.sha256", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str | None] = mapped_column(String(200))


class Prompt(Base):
    """One or more images, a question, and usually an answer; or parts, texts and images in order.

    `parts` are as REST shows them, each image by its sha256; None in the short form, which is all images and then the
    question. Of a prompt with parts `question` is its texts, joined by spaces. `has_accepted`: the prompt has an
    accepted rationale. `fresh`: it got one since the last snapshot; fresh prompts start rounds. A trigger stores in
    `fresh_xid` which transaction made it fresh. `fields` are the gold values of a structured answer, given under the
    policy of `policy_version_id`.
    """

    __tablename__ = "prompts"
    __table_args__ = (
        enum_check("split", Split),
        enum_check("state", PromptState),
        CheckConstraint(
            "length(question) BETWEEN CASE WHEN parts IS NULL THEN 1 ELSE 0 END AND 16063", name="question_length"
        ),
        CheckConstraint("parts IS NULL OR jsonb_array_length(parts) BETWEEN 1 AND 64", name="parts_length"),
        CheckConstraint("answer IS NULL OR length(answer) BETWEEN 1 AND 4000", name="answer_length"),
        UniqueConstraint("project_id", "external_id"),
        Index("ix_prompts_project_id_id", "project_id", "id"),
        Index("ix_prompts_project_id_state_id", "project_id", "state", "id"),
        Index(
            "ix_prompts_policy_version_id", "policy_version_id", postgresql_where=text("policy_version_id IS NOT NULL")
        ),
        Index("ix_prompts_val", "project_id", "id", postgresql_where=text("split = 'val'")),
        Index("ix_prompts_fresh", "project_id", "fresh_xid", postgresql_where=text("fresh")),
        Index(
            "ix_prompts_waiting",
            "project_id",
            desc("priority"),
            "id",
            postgresql_where=text("state = 'waiting' AND split = 'train'"),
        ),
        Index(
            "ix_prompts_waiting_judged",
            "project_id",
            desc("priority"),
            "id",
            postgresql_where=text("state = 'waiting' AND split IN ('train', 'val')"),
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    external_id: Mapped[str | None] = mapped_column(String(200))
    split: Mapped[Split] = mapped_column(EnumText(Split, 8))
    state: Mapped[PromptState] = mapped_column(EnumText(PromptState), server_default=PromptState.waiting.value)
    question: Mapped[str] = mapped_column(Text)
    parts: Mapped[list[Any] | None] = mapped_column(JSONB(none_as_null=True))
    answer: Mapped[str | None] = mapped_column(Text)
    references: Mapped[list[str]] = mapped_column(server_default=text("'[]'::jsonb"))
    extra: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=text("'{}'::jsonb"))
    priority: Mapped[int] = mapped_column(server_default="0")
    policy_version_id: Mapped[int | None] = mapped_column(ForeignKey("policy_versions.id"))
    fields: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    has_accepted: Mapped[bool] = mapped_column(server_default=text("false"))
    fresh: Mapped[bool] = mapped_column(server_default=text("false"))
    fresh_xid: Mapped[int | None] = mapped_column(Xid8)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    images: Mapped[list[PromptImage]] = relationship(lazy="raise", order_by="PromptImage.position")


class PromptImage(Base):
    """The images of a prompt, in order."""

    __tablename__ = "prompt_images"
    __table_args__ = (Index("ix_prompt_images_sha256", "sha256"),)

    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompts.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(ForeignKey("images.sha256"))

    image: Mapped[Image] = relationship(lazy="raise")


class CandidateSet(Base):
    """What one version, or an import, offered for one prompt.

    `slots` is how many critics may judge it, and `taken` how many slots are open or judged. `spread` is the standard
    deviation of its candidates' mean log-probabilities, and `doubt`, from 0 to 1, how unsure the machine critic is, of
    version `rated_by`; that is 0 before one has rated it.
    `rank` is the order in which sets are offered, smallest first: by priority, and within a priority by `lift`, which
    is derived from one of these if the project wants that. `selection` says how its candidates were chosen, and
    `selected_by` which version of a machine critic was asked, also where they were left as they came; both are null
    where none was. While `sampling`, the lease (`worker`, `beats_at`, `fence`) names the worker. Of a set that
    `failed`, `error` says why, and `failure` what kind of reason that is. `served_model` is what a model server ran,
    where that is another model than the version's base model; else it is null.
    """

    __tablename__ = "candidate_sets"
    __table_args__ = (
        enum_check("state", CandidateSetState),
        enum_check("source", CandidateSource),
        enum_check("failure", SamplingFailure),
        enum_check("selection", Selection),
        CheckConstraint("(selection IS NULL) = (selected_by IS NULL)", name="selection_by_a_critic"),
        CheckConstraint("taken BETWEEN 0 AND slots", name="taken_within_slots"),
        Index(
            "ix_candidate_sets_claimable",
            "project_id",
            "taken",
            "rank",
            "id",
            postgresql_where=text("state = 'ready' AND taken < slots"),
        ),
        Index("ix_candidate_sets_prompt_id", "prompt_id"),
        Index(
            "ix_candidate_sets_rated",
            "project_id",
            "rated_by",
            "id",
            postgresql_where=text("state IN ('ready', 'replaced')"),
        ),
        Index("ix_candidate_sets_selected_by", "selected_by", postgresql_where=text("selected_by IS NOT NULL")),
        Index("ix_candidate_sets_version_id_prompt_id", "version_id", "prompt_id"),
        Index("ix_candidate_sets_sampling", "project_id", postgresql_where=text("state = 'sampling'")),
        Index(
            "uq_candidate_sets_live", "prompt_id", unique=True, postgresql_where=text("state IN ('sampling', 'ready')")
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompts.id", ondelete="CASCADE"))
    version_id: Mapped[int | None] = mapped_column(ForeignKey("model_versions.id"))
    source: Mapped[CandidateSource] = mapped_column(EnumText(CandidateSource))
    state: Mapped[CandidateSetState] = mapped_column(EnumText(CandidateSetState))
    answer: Mapped[str | None] = mapped_column(Text)
    answer_source: Mapped[str | None] = mapped_column(String(8))
    served_model: Mapped[str | None] = mapped_column(String(600))
    priority: Mapped[int] = mapped_column(server_default="0")
    spread: Mapped[float | None]
    doubt: Mapped[float | None]
    rated_by: Mapped[int] = mapped_column(BigInteger, server_default="0")
    lift: Mapped[float] = mapped_column(server_default="0")
    rank: Mapped[float] = mapped_column(Computed("(- priority)::double precision - lift", persisted=True))
    selection: Mapped[Selection | None] = mapped_column(EnumText(Selection))
    selected_by: Mapped[int | None] = mapped_column(ForeignKey("model_versions.id"))
    slots: Mapped[int] = mapped_column(server_default="1")
    taken: Mapped[int] = mapped_column(server_default="0")
    worker: Mapped[str | None] = mapped_column(String(200))
    beats_at: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    tries: Mapped[int] = mapped_column(server_default="0")
    error: Mapped[str | None] = mapped_column(Text)
    error_phrase: Mapped[StoredPhrase]
    failure: Mapped[SamplingFailure | None] = mapped_column(EnumText(SamplingFailure))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    candidates: Mapped[list[Candidate]] = relationship(lazy="raise", order_by="Candidate.position")


class Candidate(Base):
    """One rationale of a candidate set. `mean_logprob` is in nats per token.

    A `spare` one was sampled to choose from and is shown to nobody. That stays so once somebody has claimed the set.
    Where the project has answer fields, `text` is a whole answer as JSON and `fields` its values; of an invalid one
    `invalid` says what is wrong (`illume.fields.answers.REASONS`), and there are no `fields`.
    """

    __tablename__ = "candidates"
    __table_args__ = (UniqueConstraint("candidate_set_id", "position"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    candidate_set_id: Mapped[int] = mapped_column(ForeignKey("candidate_sets.id", ondelete="CASCADE"))
    position: Mapped[int]
    text: Mapped[str] = mapped_column(Text)
    temperature: Mapped[float | None]
    seed: Mapped[int | None] = mapped_column(BigInteger)
    mean_logprob: Mapped[float | None]
    n_tokens: Mapped[int | None]
    fields: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    invalid: Mapped[str | None] = mapped_column(String(32))
    spare: Mapped[bool] = mapped_column(server_default="false")


class Import(Base):
    """An import of a file of prompts. The first `done` lines are finished, so that it can be resumed.

    `plan` says what its columns mean; an admin may still edit it while the import is a `draft`. `tries` counts how
    often it was resumed without progress.
    """

    __tablename__ = "imports"
    __table_args__ = (enum_check("state", ImportState),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    state: Mapped[ImportState] = mapped_column(EnumText(ImportState), server_default=ImportState.queued.value)
    filename: Mapped[str] = mapped_column(String(400))
    file_key: Mapped[str] = mapped_column(String(200))
    images_key: Mapped[str | None] = mapped_column(String(200))
    plan: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    total: Mapped[int | None]
    done: Mapped[int] = mapped_column(server_default="0")
    added: Mapped[int] = mapped_column(server_default="0")
    unchanged: Mapped[int] = mapped_column(server_default="0")
    rejected: Mapped[int] = mapped_column(server_default="0")
    tries: Mapped[int] = mapped_column(server_default="0")
    error: Mapped[str | None] = mapped_column(Text)
    error_phrase: Mapped[StoredPhrase]
    worker: Mapped[str | None] = mapped_column(String(200))
    beats_at: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    created_by: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class ImportProblem(Base):
    """A rejected line of an import, with the field and the reason."""

    __tablename__ = "import_problems"

    import_id: Mapped[int] = mapped_column(ForeignKey("imports.id", ondelete="CASCADE"), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)
    field: Mapped[str | None] = mapped_column(String(200))
    reason: Mapped[str] = mapped_column(Text)
    reason_phrase: Mapped[StoredPhrase]


class ImportedRow(Base):
    """What a row of an exported data set became here, by a hash of the original, so that it is imported only once."""

    __tablename__ = "imported_rows"

    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    row_id: Mapped[int] = mapped_column(BigInteger)
