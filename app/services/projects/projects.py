"""Projects and their settings."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    field_validator,
)
from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import queue
from app.errors import Conflict, Invalid, NotFound
from app.models import (
    Assignment,
    CandidateSet,
    CandidateSetState,
    CandidateSource,
    MachineAccept,
    Membership,
    ModelVersion,
    Project,
    Prompt,
    PromptState,
    SettingRevision,
    Split,
)
from app.services.acceptance import overlap, rules
from app.services.acceptance.overlap import NextPrompt
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require, require_admin
from app.services.kernel.rights import Right
from app.services.kernel.text_rules import JsonObject
from app.services.projects import pauses
from app.services.projects.activation import change_base_model
from app.services.projects.base_models import refuse_unlisted
from app.services.projects.choice import LOCAL, check_engine, note_move
from illume.critics.choosing import LEAST_SHOWN, count_samples
from illume.critics.structured import check_choices
from illume.fields.definitions import MAX_FIELDS, read_answer_fields
from illume.model.prompting import DEFAULT_TEMPLATE, check_template
from illume.phrases import _
from illume.settings import CANDIDATES, PreferenceSettings
from illume.texts import LANGUAGE_TAG
from illume.validation import describe_problem, name_problem, split_place

LONGEST_PROPOSAL = 50
SAMPLING_SETTINGS = (
    "answer_fields",
    "engine",
    "base_model",
    "template",
    "temperatures",
    "show",
    "top_k_share",
    "top_p",
    "max_new_tokens",
    "redraws",
)
"""What decides how candidates are sampled: a model that could not be used with other values is tried anew."""
SLUG_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
INSTRUCTIONS = (
    "Look at the image, the question and the answer. Pick every explanation that is true of the image and says why the "
    "answer is right. Pick none when none fits."
)
EXAMPLES = [
    "+ a striped umbrella stands over the table | names what can be seen, and gives a reason for the answer",
    "- it is yes because the answer is yes | only repeats the answer, which is not a reason",
    "- the man holds a racket | there is no racket in the image",
]
# Described as a list of two numbers: not all readers of OpenAPI support tuples.
TemperatureCount = Annotated[
    tuple[float, int],
    Strict(False),
    WithJsonSchema({"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}),
]
Label = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]
Labels = Annotated[list[Label], Field(max_length=30)]
ExampleLine = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=3, max_length=1000, pattern=r"^[+-]\s*[^\s|]")
]


PREFERENCES = PreferenceSettings()
POLICY_TEMPLATE = f"{{policy}}\n{DEFAULT_TEMPLATE}"


class MachineAccepts(BaseModel):
    """Which machine critic may accept, and how often people have to have picked what it accepts."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    critic: Literal["helpfulness", "verifier"]
    precision: float = Field(0.9, ge=0.5, lt=1)


class Show(BaseModel):
    """Which of a prompt's candidates critics are shown.

    With `spread`, `of` of them are sampled, and the machine critic's scores choose as many as `temperatures` say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    of: int = Field(12, ge=LEAST_SHOWN + 1, le=100)
    select: Literal["all", "spread"] = "all"


class ProjectSettings(BaseModel):
    """Every setting of a project, with its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # Judging
    answer_fields: list[JsonObject] = Field(
        [], max_length=MAX_FIELDS, description="The fields of structured answers, in order; none: answers are texts"
    )
    language: str = Field(
        "",
        max_length=35,
        description="The language of questions and explanations as BCP 47 names it, such as de or pt-BR, for prompts "
        "whose metadata name none; empty: it is not known, and answers are compared as in English",
    )
    instructions: str = Field(INSTRUCTIONS, max_length=20_000)
    instruction_examples: list[ExampleLine] = Field(
        EXAMPLES, max_length=20, description="'+' marks one that fits, '-' one that does not; the reason follows '|'"
    )
    blur_images: bool = Field(False, description="Blur images until a critic asks to see them")
    submit_on_pick: bool = Field(
        False, description="A pick submits at once; what was not picked there does not count as turned down"
    )
    overlap: int = Field(1, ge=1, le=20, description="How many critics judge a candidate set")
    adaptive_overlap: bool = Field(
        False, description="Start with one critic, and ask up to `overlap` only if they are unsure or disagree"
    )
    aggregation: Literal["any", "majority", "all"] = "any"
    weigh_reliability: bool = Field(False, description="In a majority, votes weigh by accuracy on gold prompts")
    next_prompt: NextPrompt = Field(
        "priority",
        description="Which prompt comes first within a priority: the oldest, or the one that the model (uncertain) or "
        "the machine critic (critic) is least sure about",
    )
    rejudge: bool = Field(False, description="Also offer prompts that have an accepted rationale")
    judge_val: bool = Field(
        False, description="Val prompts get candidates and are judged too; no round is trained on their verdicts"
    )
    max_open: int = Field(3, ge=1, le=1000, description="How many claims a critic may hold")
    lease_minutes: float = Field(15, gt=0, le=24 * 60, description="How long a claim lasts")
    skip_reasons: Labels = ["Not sure", "Too hard to see", "Not my field"]
    flag_reasons: Labels = ["The image is broken", "The question makes no sense", "The answer is wrong", "Offensive"]
    shortcoming_tags: Labels = [
        "contradicts the image",
        "does not support the answer",
        "incomplete",
        "badly written",
    ]

    # Quality
    gold_share: float = Field(0.0, ge=0, le=0.5, description="Share of claims that are gold prompts")
    gold_minimum: int = Field(5, ge=1, le=50, description="Gold prompts before a critic can be paused")
    gold_accuracy: float = Field(0.0, ge=0, le=1, description="A critic below it is paused; 0: never")
    practice_prompts: int = Field(0, ge=0, le=50, description="Practice prompts before the real work")
    repeat_share: float = Field(0.0, ge=0, le=0.5, description="Share of claims that are repeats for the same critic")
    repeat_after: int = Field(20, ge=0, le=10_000, description="Verdicts before one of them may be repeated")

    # Candidates
    pool_target: int = Field(40, ge=0, le=100_000, description="How many candidate sets are kept ready")
    pool_for_round: int = Field(
        20, ge=0, le=100_000, description="How many must be ready before a round may pause sampling"
    )
    engine: str = Field(
        LOCAL, min_length=1, max_length=100, description="'local', or the name of a model server that writes candidates"
    )
    base_model: str = Field(
        "starter",
        min_length=1,
        max_length=500,
        description="'starter', a folder, or a hub name, which @ and a commit after it keep to that revision. Another "
        "becomes a version of its own and writes anew what nobody has claimed; it can be changed until the first round",
    )
    template: str = Field(DEFAULT_TEMPLATE, max_length=4000)
    temperatures: list[TemperatureCount] = Field(
        list(CANDIDATES.temperatures),
        min_length=1,
        max_length=20,
        description="Temperature and how many candidates at it; 0 is greedy",
    )
    top_k_share: float = Field(
        CANDIDATES.top_k_share, gt=0, le=1, description="Share of the vocabulary that is sampled from"
    )
    top_p: float = Field(CANDIDATES.top_p, gt=0, le=1)
    max_new_tokens: int = Field(CANDIDATES.max_new_tokens, ge=1, le=1024)
    redraws: int = Field(CANDIDATES.redraws, ge=0, le=20, description="How often duplicates are redrawn")

    # Rounds
    round_every: int = Field(
        20, ge=1, le=1_000_000, description="Prompts with a new accepted rationale that start a round"
    )
    auto_rounds: bool = True
    epochs: int = Field(5, ge=1, le=100)
    learning_rate: float = Field(1e-3, gt=0, le=1)
    batch_size: int = Field(32, ge=1, le=1024, description="Sequences per optimiser step")
    lora_rank: int = Field(16, ge=1, le=512)
    lora_alpha: int = Field(32, ge=1, le=1024)
    gradient_checkpointing: bool = Field(
        False, description="Rounds need less memory and more time: activations are computed again where they are used"
    )
    init: Literal["continue", "from_base"] = "continue"
    objective: Literal["picks", "picks_and_rejections"] = Field(
        "picks", description="What a round learns from: what was picked, or also what was turned down"
    )
    preference_beta: float = Field(PREFERENCES.beta, gt=0, le=100, description="How sharply pairs are told apart")
    pair_weight: float = Field(PREFERENCES.pair_weight, ge=0, le=100, description="Weight of pairs")
    picture_weight: float = Field(
        PREFERENCES.picture_weight, ge=0, le=100, description="Weight of a pair's pictures against another prompt's"
    )
    anchor_weight: float = Field(
        PREFERENCES.anchor_weight, ge=0, le=100, description="Weight of keeping accepted rationales likely"
    )
    unpaired_weight: float = Field(
        PREFERENCES.unpaired_weight, ge=0, le=100, description="Weight of rationales of sets in which nothing fitted"
    )
    machine_critic: Literal["off", "helpfulness", "verifier"] = Field(
        "off", description="Which machine critic is trained after each round to rate candidates"
    )
    show: Show = Field(
        Show(),
        description="Which candidates form a set. all: those of `temperatures`. spread: `of` are sampled, and the "
        "machine critic chooses as many as `temperatures` say, from its best to its lowest; one set in ten is left as "
        "it was sampled",
    )
    machine_accepts: MachineAccepts | None = Field(
        None, description="Train also on what the machine critic accepts of prompts that nobody judged; null: never"
    )
    guard_per_rationale: int = Field(10, ge=0, le=1000, description="VQA-only examples for each rationale example")
    eval_prompts: int = Field(200, ge=1, le=10_000)
    primary_metric: Literal["auto", "rouge_l", "loglik"] = "auto"
    max_answer_drop: float = Field(2.0, ge=0, le=100, description="Points of answer accuracy a version may lose")
    blind_gate: bool = Field(
        False, description="A better version becomes active only once critics prefer it in a blind comparison"
    )

    @property
    def judged_splits(self) -> tuple[Split, ...]:
        """The splits whose prompts get candidates from the model."""
        return (Split.train, Split.val) if self.judge_val else (Split.train,)

    @property
    def learns_rejections(self) -> bool:
        """Whether rounds learn from what was turned down, too."""
        return self.objective == "picks_and_rejections"

    @field_validator("language")
    @classmethod
    def _check_language(cls, value: str) -> str:
        if value and not LANGUAGE_TAG.fullmatch(value):
            raise ValueError(_("must be a language tag such as en, de or pt-BR"))
        return value

    @field_validator("temperatures")
    @classmethod
    def _check_temperatures(cls, value: list[tuple[float, int]]) -> list[tuple[float, int]]:
        if any(not 0 <= temperature <= 5 or not 1 <= count <= 50 for temperature, count in value):
            raise ValueError(_("each is a temperature from 0 to 5 and a count from 1 to 50"))
        return value

    @field_validator("template")
    @classmethod
    def _check_template(cls, value: str) -> str:
        check_template(value, policies=True)
        return value

    @field_validator("answer_fields")
    @classmethod
    def _check_answer_fields(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return read_answer_fields(value).to_json() if value else []


DEFAULT = {name: field.get_default() for name, field in ProjectSettings.model_fields.items()}
FOR_FIELDS: Mapping[str, list[str] | int] = {
    "shortcoming_tags": [
        "names what is not there",
        "cites the wrong rule",
        "right rule, wrong reading",
        "repeats the label",
        "leaves out context",
    ],
    "flag_reasons": ["The policy is unclear here", *DEFAULT["flag_reasons"]],
    "max_new_tokens": 160,  # an answer is longer than its rationale
}
"""Defaults where answers are structured."""


def parse_settings(values: Mapping[str, Any]) -> ProjectSettings:
    """Parse settings from JSON; missing ones get their defaults. Raises `Invalid`, which names the setting."""
    try:
        return ProjectSettings.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        field, said = split_place(field, describe_problem(first))
        if first["type"] == "extra_forbidden":
            raise Invalid(_("There is no setting '%(field)s'.", field=field), field=field) from error
        raise Invalid(name_problem(field, said), field=field) from error


def _fit_together(given: Mapping[str, Any], settings: ProjectSettings) -> ProjectSettings:
    """The settings with what structured answers need, where `given` does not say otherwise. Raises `Invalid`.

    A machine can accept only by the critic that is trained.

    Under a policy the template has to show it; critics of fields name other shortcomings than those of texts.
    """
    if settings.machine_accepts is not None and settings.machine_accepts.critic != settings.machine_critic:
        raise Invalid(
            _("machine_accepts: its critic has to be the machine critic that is trained (machine_critic)."),
            field="machine_accepts",
        )
    if not settings.answer_fields:
        return settings
    if settings.machine_accepts is not None:
        raise Invalid(
            _("machine_accepts: structured answers cannot be accepted by a machine yet."), field="machine_accepts"
        )
    if settings.machine_critic != "off":
        try:
            check_choices(read_answer_fields(settings.answer_fields))
        except ValueError as error:
            raise Invalid(_("machine_critic: %(reason)s.", reason=error), field="machine_critic") from error
    needed: dict[str, Any] = {
        name: value
        for name, value in FOR_FIELDS.items()
        if name not in given and getattr(settings, name) == DEFAULT[name]
    }
    if "{policy}" not in settings.template and read_answer_fields(settings.answer_fields).needs_policy:
        if settings.template != DEFAULT_TEMPLATE:
            raise Invalid(
                _("template: it has to hold {policy}, since the choices of a field are the policy's categories."),
                field="template",
            )
        needed["template"] = POLICY_TEMPLATE
    return settings.model_copy(update=needed)


def _check_show(settings: ProjectSettings) -> None:
    """Raise `Invalid` if a machine critic is to choose, but could only show all candidates, or only the best."""
    if settings.show.select == "all":
        return
    shown = count_samples(settings.temperatures)
    if shown < LEAST_SHOWN:
        raise Invalid(
            _(
                "show: critics have to see at least %(least)s explanations of a prompt, or they would see only the best"
                " one; the temperatures give %(shown)s.",
                least=LEAST_SHOWN,
                shown=shown,
            ),
            field="show",
        )
    if settings.show.of <= shown:
        raise Invalid(
            _(
                "show: to choose from, more explanations have to be written than are shown; the temperatures give"
                " %(shown)s.",
                shown=shown,
            ),
            field="show",
        )


def create_project(
    session: Session, actor: Actor, *, slug: str, name: str, settings: Mapping[str, Any] | None = None
) -> Project:
    """Create a project with its first setting revision and its active version 0, the base model.

    Raises `Conflict` for a slug that is taken, and `Invalid` for a bad slug or setting.
    """
    require_admin(actor)
    if not SLUG_PATTERN.fullmatch(slug):
        raise Invalid(_("A slug has lower-case letters, digits and hyphens, at most 63."), field="slug")
    checked = _fit_together(settings or {}, parse_settings(settings or {}))
    _check_show(checked)
    refuse_unlisted(actor, checked.base_model)
    check_engine(session, checked)
    project = Project(slug=slug, name=_check_name(name))
    try:
        with session.begin_nested():
            session.add(project)
            session.flush()
    except IntegrityError as error:
        raise Conflict(_("A project '%(slug)s' exists already.", slug=slug), field="slug") from error
    _add_revision(session, actor, project, checked, number=1)
    version = ModelVersion(project_id=project.id, number=0, base_model=checked.base_model)
    session.add(version)
    session.flush()
    project.active_version_id = version.id
    session.flush()
    audit.record(session, actor, "project.add", f"project:{slug}", project.id)
    return project


def get_project(session: Session, actor: Actor, slug: str, *needs: Right) -> Project:
    """Return the project if `actor` is a member with the rights `needs`. Raises `NotFound`, `Forbidden`."""
    project = session.scalar(select(Project).where(Project.slug == slug))
    if project is None:
        raise NotFound(_("There is no such project, or you are not a member of it."))
    require(session, actor, project, *needs)
    return project


def list_projects(session: Session, actor: Actor) -> list[Project]:
    """List the projects that `actor` is a member of, by name; all of them for an admin."""
    query = select(Project).where(Project.erased_at.is_(None)).order_by(func.lower(Project.name), Project.id)
    if not actor.is_admin:
        query = query.join(Membership, Membership.project_id == Project.id).where(Membership.user_id == actor.user_id)
    return list(session.scalars(query))


def settings_of(session: Session, project: Project) -> ProjectSettings:
    """The settings in force."""
    revision = session.get(SettingRevision, project.revision_id)
    if revision is None:
        raise NotFound(_("Project '%(slug)s' has no settings.", slug=project.slug))
    return parse_settings(revision.settings)


def propose_slug(session: Session, name: str) -> str:
    """A free slug for a project with this name: its letters without accents; `project` where it has none."""
    plain = unicodedata.normalize("NFKD", name.replace("ß", "ss")).encode("ascii", "ignore").decode().lower()
    base = re.sub(r"[^a-z0-9]+", "-", plain)[:LONGEST_PROPOSAL].strip("-") or "project"
    taken = set(session.scalars(select(Project.slug).where(Project.slug.startswith(base, autoescape=True))))
    names = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
    return next(slug for slug in names if slug not in taken)


def update_project(session: Session, actor: Actor, slug: str, changes: Mapping[str, Any]) -> Project:
    """Change a project's name or settings; changed settings make a new revision. Raises `Invalid`, `Conflict`."""
    project = get_project(session, actor, slug, Right.administers)
    session.refresh(project, with_for_update={"key_share": True})
    changes = dict(changes)
    if "name" in changes:
        project.name = _check_name(changes.pop("name"))
    before = settings_of(session, project)
    after = parse_settings({**before.model_dump(), **changes})
    if not {"answer_fields", "template", "machine_critic", "machine_accepts"}.isdisjoint(changes):
        after = _fit_together(changes, after)
    if not {"show", "temperatures"}.isdisjoint(changes):
        _check_show(after)
    if after != before:
        if after.answer_fields != before.answer_fields:
            _change_answer_fields(session, project, before, after)
        if (after.engine, after.next_prompt) != (before.engine, before.next_prompt):
            check_engine(session, after)
        if after.base_model != before.base_model:
            refuse_unlisted(actor, after.base_model)
            change_base_model(
                session, actor, project, after.base_model, judged_splits=after.judged_splits, rejudge=after.rejudge
            )
        number = session.scalar(
            select(func.max(SettingRevision.number)).where(SettingRevision.project_id == project.id)
        )
        _add_revision(session, actor, project, after, number=(number or 0) + 1)
        _apply_changes(session, project, before, after)
        were = before.model_dump()
        changed = sorted(key for key, value in after.model_dump().items() if value != were[key])
        audit.record(session, actor, "project.settings", f"project:{slug}", project.id, changed=changed)
    session.flush()
    return project


def _check_name(name: object) -> str:
    if not isinstance(name, str) or not 1 <= len(name.strip()) <= 200:
        raise Invalid(_("A project's name has 1 to 200 characters."), field="name")
    return name.strip()


def _add_revision(session: Session, actor: Actor, project: Project, settings: ProjectSettings, *, number: int) -> None:
    revision = SettingRevision(
        project_id=project.id,
        number=number,
        settings=settings.model_dump(mode="json"),
        created_by=actor.stored_id,
    )
    session.add(revision)
    session.flush()
    project.revision_id = revision.id
    session.flush()


def _change_answer_fields(session: Session, project: Project, before: ProjectSettings, after: ProjectSettings) -> None:
    """Withdraw what the model wrote for other fields. Raises `Conflict` once anybody has claimed such candidates.

    A description, and a choice that is added, change nothing for what is there.
    """
    old, new = before.answer_fields, after.answer_fields
    if old and len(old) == len(new) and all(_is_extended(*pair) for pair in zip(old, new, strict=True)):
        return
    sets = select(CandidateSet.id).where(CandidateSet.project_id == project.id)
    imported = sets.where(CandidateSet.source == CandidateSource.imported)
    claimed = sets.where(exists().where(Assignment.candidate_set_id == CandidateSet.id))
    if session.scalar(imported.limit(1)) is not None or session.scalar(claimed.limit(1)) is not None:
        raise Conflict(
            _(
                "answer_fields: critics have seen explanations, or some were imported, so only descriptions and "
                "further choices can be added. Make another project for other fields."
            ),
            field="answer_fields",
        )
    session.execute(
        update(CandidateSet)
        .where(CandidateSet.project_id == project.id, CandidateSet.state != CandidateSetState.replaced)
        .values(state=CandidateSetState.replaced, fence=CandidateSet.fence + 1, worker=None)
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(Prompt)
        .where(Prompt.project_id == project.id, Prompt.state == PromptState.ready)
        .values(state=PromptState.waiting)
        .execution_options(synchronize_session=False)
    )
    queue.send(session, queue.FILL_POOL, project.id)


def _is_extended(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a field is the same but for its description and choices that were added."""
    free = {"description", "choices"}
    same = all(old[name] == new[name] for name in old if name not in free)
    if isinstance(old["choices"], str) or isinstance(new["choices"], str):
        return same and old["choices"] == new["choices"]
    return same and set(old["choices"]) <= set(new["choices"])


def _apply_changes(session: Session, project: Project, before: ProjectSettings, after: ProjectSettings) -> None:
    """Update what is offered and what is accepted for changed settings."""

    def changed(*names: str) -> bool:
        return any(getattr(before, name) != getattr(after, name) for name in names)

    if changed("overlap", "adaptive_overlap"):
        overlap.change_overlap(session, project.id, after.overlap, adaptive=after.adaptive_overlap)
    if changed("next_prompt"):
        overlap.change_order(session, project.id, after.next_prompt)
    if changed("machine_accepts"):
        session.execute(delete(MachineAccept).where(MachineAccept.project_id == project.id))
        queue.send(session, queue.SCORE_CANDIDATES, project.id)
    if changed("overlap", "adaptive_overlap", "aggregation", "weigh_reliability"):
        rules.refresh_prompts(session, project.id)
    if changed("engine"):
        note_move(session, project.id)
    if changed(*SAMPLING_SETTINGS):
        again = (CandidateSet.project_id == project.id, CandidateSet.state == CandidateSetState.failed)
        session.execute(
            update(CandidateSet)
            .where(*again)
            .values(state=CandidateSetState.replaced)
            .execution_options(synchronize_session=False)
        )
        pauses.resume(session, project.id)
        queue.send(session, queue.FILL_POOL, project.id)
