"""Prompts: images and a question, or texts and images in order; usually an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError
from sqlalchemy import insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, selectinload
from sqlalchemy.orm.interfaces import ORMOption

from app import queue
from app.errors import Conflict, DomainError, Invalid, NotFound
from app.models import (
    Candidate,
    CandidateSet,
    CandidateSetState,
    CandidateSource,
    GoldPrompt,
    Image,
    PolicyVersion,
    Project,
    Prompt,
    PromptImage,
    PromptState,
    Split,
)
from app.services.acceptance import rules
from app.services.acceptance.overlap import first_slots
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require
from app.services.kernel.rights import Right
from app.services.kernel.text_rules import JsonObject, Storable, Text
from app.services.projects import policies
from app.services.projects.projects import settings_of
from app.services.prompts.images import visible_to
from app.settings import path_to
from illume.fields.answers import InvalidAnswer, Values, answer_json, parse_answer
from illume.fields.definitions import MAX_FIELDS, AnswerFields, check_values
from illume.fields.policies import Policy
from illume.parts import MAX_IMAGES, MAX_PARTS, MAX_TEXT, is_short, parse_parts, parts_data, short_parts, texts_of
from illume.phrases import _
from illume.validation import describe_problem, name_problem, place_of

MAX_ITEMS = 5000

PromptText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000), Storable]
FieldValue = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
QuestionText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TEXT), Storable]
GoldFields = Annotated[dict[str, FieldValue | None], Field(max_length=MAX_FIELDS), Storable]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


IMAGE_JSON = """jsonb_build_object(
    'sha256', i.sha256, 'url', CAST(:images AS text) || i.sha256, 'width', i.width, 'height', i.height
)"""
"""The image `i` as JSON; `images` is `images_path()`."""
PARTS_JSON = """coalesce(p.parts, (
    SELECT coalesce(jsonb_agg(jsonb_build_object('type', 'image', 'sha256', x.sha256) ORDER BY x.position), '[]')
    FROM prompt_images x WHERE x.prompt_id = p.id
) || jsonb_build_array(jsonb_build_object('type', 'text', 'text', p.question)))"""
"""The parts of the prompt `p`, as `prompt_parts` returns them."""
HAS_RATING = """(
    SELECT r.settings -> 'answer_fields' @> '[{{"role": "rating"}}]'
    FROM projects j JOIN setting_revisions r ON r.id = j.revision_id WHERE j.id = {project}
)"""
"""Whether a project's answers have a rating: see `hides_answers`."""
POLICY_JSON = """(
    SELECT jsonb_build_object('id', pv.id::text, 'name', po.name, 'number', pv.number, 'text', pv.text,
        'preamble', pv.header, 'categories', (
            SELECT jsonb_agg(jsonb_build_object(
                'name', one -> 'name', 'status', one -> 'status', 'text', one -> (one ->> 'status')
            ) || CASE WHEN one ->> 'status' = 'default' THEN '{}'
                ELSE jsonb_build_object('default', one -> 'default') END)
            FROM jsonb_array_elements(pv.categories) one
        ))
    FROM policy_versions pv JOIN policies po ON po.id = pv.policy_id WHERE pv.id = p.policy_version_id
)"""
"""The policy of the prompt `p` as critics see it, null without one. What a category says by default comes with those
that have another status."""


def images_path() -> str:
    """What comes before an image's hash in its URL."""
    return path_to("/api/v1/images/")


class TextPartIn(BaseModel):
    """A text of a prompt with parts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text"]
    text: QuestionText


class ImagePartIn(BaseModel):
    """An image of a prompt with parts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["image"]
    sha256: Sha256


PartIn = Annotated[TextPartIn | ImagePartIn, Field(discriminator="type")]


class PromptIn(BaseModel):
    """A new prompt: either `images` and a `question` have to be given, or `parts` in their place.

    Images are named by `sha256`; `candidates` are rationales made elsewhere. `policy` is the id of a version, or a
    policy's name for the newest one, or as `name #2`; `fields` are gold values of a structured answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"required": []})

    parts: list[PartIn] | None = Field(None, min_length=1, max_length=MAX_PARTS)
    images: list[Sha256] = Field(min_length=1, max_length=MAX_IMAGES)
    question: Annotated[str, StringConstraints(strip_whitespace=True), Storable] = Field(
        json_schema_extra={"minLength": 1, "maxLength": MAX_TEXT}
    )
    answer: PromptText | None = None
    external_id: Text | None = Field(None, min_length=1, max_length=200)
    split: Split = Split.train
    references: list[PromptText] = Field([], max_length=100)
    metadata: JsonObject = {}
    priority: int = Field(0, ge=-1_000_000, le=1_000_000)
    candidates: list[PromptText] | None = Field(None, min_length=1, max_length=50)
    policy: Text | None = Field(None, min_length=1, max_length=220)
    fields: GoldFields | None = None

    @field_validator("images", mode="before")
    @classmethod
    def _name_images(cls, value: object) -> object:
        """Accept an image as its sha256, or as an object with a `sha256`, as lists show it."""
        if not isinstance(value, list):
            return value
        return [item.get("sha256") if isinstance(item, dict) else item for item in value]

    @field_validator("question", mode="after")
    @classmethod
    def _limit_question(cls, value: str, info: ValidationInfo) -> str:
        """Of a prompt with parts it is what their limits allow."""
        if info.data.get("parts") is None:
            if not value:
                raise PydanticKnownError("string_too_short", {"min_length": 1})
            if len(value) > MAX_TEXT:
                raise PydanticKnownError("string_too_long", {"max_length": MAX_TEXT})
        return value

    @property
    def stored_parts(self) -> list[dict[str, str]] | None:
        """The parts as they are stored; None in the short form."""
        return None if self.parts is None else [part.model_dump() for part in self.parts]

    def with_images(self, keys: Mapping[str, str]) -> Self:
        """The same prompt with its images named otherwise, by their names so far."""
        parts = self.parts and [
            ImagePartIn(type="image", sha256=keys[part.sha256]) if isinstance(part, ImagePartIn) else part
            for part in self.parts
        ]
        return self.model_copy(update={"images": [keys[one] for one in self.images], "parts": parts})

    @field_validator("references", "candidates", mode="after")
    @classmethod
    def _distinct(cls, value: list[str] | None) -> list[str] | None:
        return value and list(dict.fromkeys(value))


@dataclass(frozen=True, slots=True)
class AddResult:
    """The result for one item: the prompt (new or existing), or why it was rejected."""

    prompt: Prompt | None
    created: bool = False
    error: DomainError | None = None


WITH_IMAGES: tuple[ORMOption, ...] = (selectinload(Prompt.images).joinedload(PromptImage.image),)


def parse_prompt(item: Mapping[str, Any]) -> PromptIn:
    """Parse a prompt from JSON. Raises `Invalid`, which names the field.

    Where the parts are all images and then one text, the prompt is in the short form.
    """
    try:
        return PromptIn.model_validate(_arrange(item))
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"]]
        if place[0] == "parts":
            del place[2:3]  # the type of the part
        field = ".".join(place)
        raise Invalid(name_problem(field, describe_problem(first)), field=field) from error


def _arrange(item: Mapping[str, Any]) -> dict[str, Any]:
    """The item with the images and the question that its parts stand for. Raises `Invalid`."""
    if item.get("parts") is None:
        return dict(item)
    rest = {key: value for key, value in item.items() if key != "parts"}
    double = next((name for name in ("images", "question") if rest.get(name) is not None), None)
    if double is not None:
        raise Invalid(
            _("parts: they stand in place of images and question, so leave out %(double)s.", double=double),
            field="parts",
        )
    try:
        images, parts = parse_parts(item["parts"], key="sha256")
    except ValueError as error:
        place, problem = place_of("parts", error)
        raise Invalid(name_problem(place, problem), field=place) from error
    rest |= {"images": images, "question": " ".join(texts_of(parts))}
    return rest if is_short(parts) else {**rest, "parts": item["parts"]}


def prompt_parts(prompt: Prompt) -> list[dict[str, Any]]:
    """The parts of a prompt, whose images must be loaded, as REST shows them."""
    if prompt.parts is not None:
        return prompt.parts
    names = [image.sha256 for image in prompt.images]
    return parts_data(short_parts(len(names), prompt.question), names, key="sha256")


def add_prompts(
    session: Session, actor: Actor, project: Project, items: Sequence[PromptIn | DomainError]
) -> list[AddResult]:
    """Add prompts, each on its own: good ones are kept, the others get an error. Results are in the order of `items`.

    An existing `external_id` with the same content returns the existing prompt. An item that is an error already (a
    line that could not be parsed) stays one. Needs the role reviewer.
    """
    require(session, actor, project, Right.reviews)
    if len(items) > MAX_ITEMS:
        raise Invalid(_("At most %(max_items)s prompts at once.", max_items=MAX_ITEMS), field="items")
    known = _find_known_images(session, actor, items)
    settings = settings_of(session, project)
    answers = StructuredItems.of(session, project, policies.answer_fields_of(settings), items)
    results: dict[int, AddResult] = {}
    todo: dict[int, PromptIn] = {}
    for index, item in enumerate(items):
        if isinstance(item, DomainError):
            results[index] = AddResult(None, error=item)
        elif missing := next((sha256 for sha256 in item.images if sha256 not in known), None):
            field = "images" if item.parts is None else "parts"
            error = Invalid(
                _("There is no image %(missing)s, or none that you may see: upload it first.", missing=missing),
                field=field,
            )
            results[index] = AddResult(None, error=error)
        else:
            try:
                todo[index] = answers.check(item)
            except Invalid as error:
                results[index] = AddResult(None, error=error)
    slots = first_slots(settings.overlap, adaptive=settings.adaptive_overlap)
    # Another request may add the same external ids at this moment; the next attempt finds them.
    for _attempt in range(3):
        _match_existing(session, project, todo, results, answers)
        try:
            with session.begin_nested():
                added = _insert(session, project, list(todo.values()), slots, answers)
        except IntegrityError:
            continue
        results |= {index: AddResult(prompt, created=True) for index, prompt in zip(todo, added, strict=True)}
        if any(prompt.state == PromptState.waiting and prompt.split in settings.judged_splits for prompt in added):
            queue.send(session, queue.FILL_POOL, project.id)
        return [results[index] for index in range(len(items))]
    raise Conflict(_("Someone else is adding the same prompts. Try again."))


@dataclass(frozen=True, slots=True)
class StructuredItems:
    """What new prompts need of their project: the fields of its answers, and the policies that they name."""

    fields: AnswerFields | None
    versions: Mapping[str, PolicyVersion]
    policies: Mapping[int, Policy]

    @classmethod
    def of(
        cls, session: Session, project: Project, fields: AnswerFields | None, items: Sequence[PromptIn | DomainError]
    ) -> Self:
        """Load what the items name."""
        names = {item.policy for item in items if isinstance(item, PromptIn) and item.policy is not None}
        versions = policies.find_policies(session, project, names)
        return cls(fields, versions, policies.load_policies(session, [one.id for one in versions.values()]))

    def version_id(self, item: PromptIn) -> int | None:
        """The version of the policy that an item names."""
        return None if item.policy is None else self.versions[item.policy].id

    def check(self, item: PromptIn) -> PromptIn:
        """The item, with candidates in the project's form. Raises `Invalid`, which names the field."""
        if item.policy is not None and item.policy not in self.versions:
            raise Invalid(
                _("policy: the project has no policy %(policy)s: add it first.", policy=item.policy[:60]),
                field="policy",
            )
        policy = None if item.policy is None else self.policies[self.versions[item.policy].id]
        if self.fields is None:
            if item.fields:
                raise Invalid(_("fields: the project has no answer_fields."), field="fields")
            return item
        if policy is None and self.fields.needs_policy:
            raise Invalid(_("policy: a policy is needed, whose categories are the choices of a field."), field="policy")
        try:
            check_values(item.fields or {}, self.fields, policy)
        except ValueError as error:
            field, problem = place_of("fields", error)
            raise Invalid(name_problem(field, problem), field=field) from error
        return item.model_copy(update={"candidates": self._read_candidates(item.candidates, policy)})

    def _read_candidates(self, texts: list[str] | None, policy: Policy | None) -> list[str] | None:
        if texts is None or self.fields is None:
            return texts
        kept = []
        for index, text in enumerate(texts):
            try:
                kept.append(answer_json(parse_answer(text, self.fields, policy), self.fields))
            except InvalidAnswer as error:
                raise Invalid(
                    _("candidates.%(index)s: %(error)s.", index=index, error=error), field=f"candidates.{index}"
                ) from error
        return list(dict.fromkeys(kept))

    def values_of(self, prompt: Prompt, text: str) -> Values | None:
        """The values of a candidate that was checked."""
        policy = None if prompt.policy_version_id is None else self.policies[prompt.policy_version_id]
        return None if self.fields is None else parse_answer(text, self.fields, policy)


def _find_known_images(session: Session, actor: Actor, items: Sequence[PromptIn | DomainError]) -> set[str]:
    wanted = {sha256 for item in items if isinstance(item, PromptIn) for sha256 in item.images}
    return set(session.scalars(select(Image.sha256).where(Image.sha256.in_(wanted), visible_to(actor))))


def _match_existing(
    session: Session,
    project: Project,
    todo: dict[int, PromptIn],
    results: dict[int, AddResult],
    answers: StructuredItems,
) -> None:
    """Move items that exist already, in the database or earlier in the list, from `todo` to `results`."""
    wanted = [item.external_id for item in todo.values() if item.external_id is not None]
    existing = {
        prompt.external_id: prompt
        for prompt in session.scalars(
            select(Prompt)
            .where(Prompt.project_id == project.id, Prompt.external_id.in_(wanted))
            .options(selectinload(Prompt.images))
        )
    }
    seen: set[str] = set()
    for index, item in list(todo.items()):
        if item.external_id is None:
            continue
        prompt = existing.get(item.external_id)
        if prompt is not None:
            results[index] = _compare(prompt, item, answers.version_id(item))
            del todo[index]
        elif item.external_id in seen:
            error = Conflict(
                _("external_id '%(external_id)s' occurs twice.", external_id=item.external_id), field="external_id"
            )
            results[index] = AddResult(None, error=error)
            del todo[index]
        seen.add(item.external_id)


def _compare(prompt: Prompt, item: PromptIn, policy_version_id: int | None) -> AddResult:
    same = (
        prompt.question == item.question
        and prompt.answer == item.answer
        and prompt.split == item.split
        and [image.sha256 for image in prompt.images] == item.images
        and prompt.parts == item.stored_parts
        and prompt.policy_version_id == policy_version_id
        and (prompt.fields or None) == (item.fields or None)
    )
    if same:
        return AddResult(prompt)
    error = Conflict(
        _(
            "A prompt with external_id '%(external_id)s' already exists with another question, answer, split, images, "
            "parts, policy or fields: change that one instead.",
            external_id=item.external_id,
        ),
        field="external_id",
    )
    return AddResult(None, error=error)


def _insert(
    session: Session, project: Project, items: Sequence[PromptIn], slots: int, answers: StructuredItems
) -> list[Prompt]:
    if not items:
        return []
    rows = [
        {
            "project_id": project.id,
            "external_id": item.external_id,
            "split": item.split,
            "state": PromptState.ready if item.candidates else PromptState.waiting,
            "question": item.question,
            "parts": item.stored_parts,
            "answer": item.answer,
            "references": item.references,
            "extra": item.metadata,
            "priority": item.priority,
            "policy_version_id": answers.version_id(item),
            "fields": item.fields or None,
        }
        for item in items
    ]
    prompts = list(session.scalars(insert(Prompt).returning(Prompt, sort_by_parameter_order=True), rows))
    images = [
        {"prompt_id": prompt.id, "position": position, "sha256": sha256}
        for prompt, item in zip(prompts, items, strict=True)
        for position, sha256 in enumerate(item.images)
    ]
    session.execute(insert(PromptImage), images)
    with_candidates = [
        (prompt, item.candidates) for prompt, item in zip(prompts, items, strict=True) if item.candidates
    ]
    if with_candidates:
        _insert_candidates(session, with_candidates, slots, answers)
    return prompts


def _insert_candidates(
    session: Session,
    with_candidates: Sequence[tuple[Prompt, list[str]]],
    slots: int,
    answers: StructuredItems,
) -> None:
    """Create ready candidate sets from the rationales that came with prompts."""
    sets = [
        {
            "project_id": prompt.project_id,
            "prompt_id": prompt.id,
            "source": CandidateSource.imported,
            "state": CandidateSetState.ready,
            "answer": prompt.answer,
            "answer_source": None if prompt.answer is None else "gold",
            "priority": prompt.priority,
            "slots": slots,
        }
        for prompt, _ in with_candidates
    ]
    ids = session.scalars(insert(CandidateSet).returning(CandidateSet.id, sort_by_parameter_order=True), sets)
    candidates = [
        {"candidate_set_id": set_id, "position": position, "text": text, "fields": answers.values_of(prompt, text)}
        for set_id, (prompt, texts) in zip(ids, with_candidates, strict=True)
        for position, text in enumerate(texts)
    ]
    session.execute(insert(Candidate), candidates)


def get_prompt(session: Session, actor: Actor, prompt_id: int, *needs: Right) -> Prompt:
    """Return the prompt with its images if `actor` has the rights `needs` in its project. Raises `NotFound`."""
    prompt = session.scalar(
        select(Prompt).where(Prompt.id == prompt_id).options(*WITH_IMAGES).execution_options(populate_existing=True)
    )
    project = None if prompt is None else session.get(Project, prompt.project_id)
    if prompt is None or project is None:
        raise NotFound(_("There is no such prompt, or you are not a member of its project."))
    require(session, actor, project, *needs)
    return prompt


def load_prompts(session: Session, prompt_ids: Sequence[int]) -> list[Prompt]:
    """Load prompts with their images, in the order of `prompt_ids`. Does not check permissions."""
    found = session.scalars(
        select(Prompt).where(Prompt.id.in_(prompt_ids)).options(*WITH_IMAGES).execution_options(populate_existing=True)
    )
    by_id = {prompt.id: prompt for prompt in found}
    return [by_id[prompt_id] for prompt_id in prompt_ids]


def list_candidate_sets(session: Session, prompt: Prompt) -> list[CandidateSet]:
    """The candidate sets of a prompt with their candidates, oldest first. Not for critics."""
    query = select(CandidateSet).where(CandidateSet.prompt_id == prompt.id).order_by(CandidateSet.id)
    return list(session.scalars(query.options(selectinload(CandidateSet.candidates))))


CHANGEABLE = (
    "answer",
    "references",
    "metadata",
    "priority",
    "split",
    "state",
    "question",
    "blur",
    "policy",
    "fields",
)
LOCKED_FIELDS = ("state", "priority", "extra", "has_accepted", "fresh")
BLUR = "blur"
"""The key of the metadata that asks for blurred images; `IS_BLURRED` of the claim reads it too."""


def is_blurred(metadata: Mapping[str, Any]) -> bool:
    """Whether a prompt's metadata ask that its images are blurred until a critic asks to see them."""
    said = metadata.get(BLUR)
    return said is True or said in ("true", "yes")


def with_blur(metadata: Mapping[str, Any], *, on: bool) -> dict[str, Any]:
    """The metadata, asking for blurred images or not."""
    rest = {key: value for key, value in metadata.items() if key != BLUR}
    return {**rest, BLUR: True} if on else rest


def update_prompt(session: Session, actor: Actor, prompt_id: int, changes: Mapping[str, Any]) -> Prompt:
    """Change a prompt. `state` may become `retired`, or change back from `retired` or `held`. Needs the role reviewer.

    `blur` says whether its images are blurred until a critic asks to see them, as its metadata say.

    Question, answer, split and policy are fixed once there are candidates. Until then a prompt on which the model has
    failed, such as one that is too long for it, is sampled again after a change of them; and a split that changes
    becomes that of all prompts about the same images under policies. Raises `Invalid`, `Conflict`.
    """
    prompt = get_prompt(session, actor, prompt_id, Right.reviews)
    live = _lock_live_set(session, prompt)  # locked before the prompt, as everywhere else
    session.refresh(prompt, with_for_update=True, attribute_names=LOCKED_FIELDS)
    for field in changes:
        if field not in CHANGEABLE:
            raise Invalid(_("'%(field)s' of a prompt cannot be changed.", field=field), field=field)
    if not isinstance(changes.get("blur", True), bool):
        raise Invalid(_("blur: true or false."), field="blur")
    if prompt.parts is not None and "question" in changes:
        raise Invalid(
            _("question: this prompt has parts, so its question cannot be changed by itself."), field="question"
        )
    now: dict[str, Any] = {
        "images": [image.sha256 for image in prompt.images],
        "question": prompt.question,
        "answer": prompt.answer,
        "split": prompt.split,
        "references": prompt.references,
        "metadata": prompt.extra,
        "priority": prompt.priority,
        "policy": None if prompt.policy_version_id is None else str(prompt.policy_version_id),
        "fields": prompt.fields,
    }
    wanted = {**now, **{key: value for key, value in changes.items() if key not in ("state", "blur")}}
    if prompt.parts is not None:
        wanted = {**wanted, "images": None, "question": None, "parts": prompt.parts}
    after = parse_prompt(wanted)
    policy_version_id, gold = _gold_after(session, prompt, after, changes)
    frozen = [key for key in ("question", "answer", "split") if getattr(after, key) != now[key]]
    frozen += ["policy"] if policy_version_id != prompt.policy_version_id else []
    if frozen and _has_candidates(session, [prompt.id]):
        raise Conflict(
            _("The %(frozen)s can no longer change: the prompt has explanations.", frozen=frozen[0]), field=frozen[0]
        )
    if frozen:
        _try_again(session, prompt)
    if "split" in frozen and policy_version_id is not None:
        _move_variants(session, prompt, after.split)
    for key in ("question", "answer", "split", "references", "priority"):
        setattr(prompt, key, getattr(after, key))
    prompt.policy_version_id, prompt.fields = policy_version_id, gold
    prompt.extra = with_blur(after.metadata, on=changes["blur"]) if "blur" in changes else after.metadata
    if live is not None:
        live.priority = prompt.priority
    if "state" in changes:
        _change_state(session, prompt, live, changes["state"])
    audit.record(session, actor, "prompt.change", f"prompt:{prompt.id}", prompt.project_id, changed=sorted(changes))
    session.flush()
    return prompt


def _has_candidates(session: Session, prompt_ids: Sequence[int]) -> bool:
    """Whether there are candidates of these prompts, or will be; tries that failed without any do not count."""
    is_written = select(Candidate.id).where(Candidate.candidate_set_id == CandidateSet.id).exists()
    is_over = CandidateSet.state.in_((CandidateSetState.failed, CandidateSetState.replaced))
    query = select(CandidateSet.id).where(CandidateSet.prompt_id.in_(prompt_ids), or_(~is_over, is_written))
    return session.scalar(query.limit(1)) is not None


def _try_again(session: Session, prompt: Prompt) -> None:
    """Let the model try a changed prompt again on which it has failed."""
    given_up = (
        update(CandidateSet)
        .where(CandidateSet.prompt_id == prompt.id, CandidateSet.state == CandidateSetState.failed)
        .values(state=CandidateSetState.replaced)
        .returning(CandidateSet.id)
    )
    if session.scalars(given_up).all():
        queue.send(session, queue.FILL_POOL, prompt.project_id)


def _move_variants(session: Session, prompt: Prompt, split: Split) -> None:
    """Give `split` to the other prompts about a prompt's images under policies. Raises `Conflict`.

    In two splits a round would be compared on images that it has learnt from.
    """
    shown = select(PromptImage.prompt_id).where(PromptImage.sha256.in_([image.sha256 for image in prompt.images]))
    others = session.scalars(
        select(Prompt)
        .where(
            Prompt.project_id == prompt.project_id,
            Prompt.id != prompt.id,
            Prompt.id.in_(shown),
            Prompt.policy_version_id.is_not(None),
            Prompt.split != split.value,
        )
        .order_by(Prompt.id)
        .with_for_update()
    ).all()
    if _has_candidates(session, [one.id for one in others]):
        raise Conflict(
            _("The split can no longer change: another prompt about the same image has explanations."), field="split"
        )
    for one in others:
        one.split = split


def _gold_after(
    session: Session, prompt: Prompt, after: PromptIn, changes: Mapping[str, Any]
) -> tuple[int | None, dict[str, Any] | None]:
    """The policy and the gold values of a prompt after a change. Raises `Invalid`."""
    if not {"policy", "fields"} & changes.keys():
        return prompt.policy_version_id, prompt.fields
    project = session.get_one(Project, prompt.project_id)
    answers = StructuredItems.of(session, project, policies.answer_fields_of(settings_of(session, project)), [after])
    answers.check(after)
    return answers.version_id(after), after.fields or None


def _lock_live_set(session: Session, prompt: Prompt) -> CandidateSet | None:
    """Lock and return the set that is being sampled or offered for a prompt."""
    return session.scalar(
        select(CandidateSet)
        .where(
            CandidateSet.prompt_id == prompt.id,
            CandidateSet.state.in_((CandidateSetState.sampling, CandidateSetState.ready)),
        )
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )


def _change_state(session: Session, prompt: Prompt, live: CandidateSet | None, wanted: object) -> None:
    """Retire a prompt, or restore the state it had before it was held or retired."""
    if wanted == prompt.state:
        return
    if wanted == PromptState.retired:
        prompt.state = PromptState.retired
        return
    gold = select(GoldPrompt.id).where(GoldPrompt.prompt_id == prompt.id, GoldPrompt.active)
    if session.scalar(gold) is not None:
        raise Conflict(
            _("This is a check question, which is never trained on: remove it from the check questions first."),
            field="state",
        )
    comes_back = prompt.state in (PromptState.held, PromptState.retired)
    if wanted not in (PromptState.waiting, PromptState.ready, PromptState.judged):
        raise Invalid(_("The state may be set to 'retired', or to 'ready' to bring a prompt back."), field="state")
    if not comes_back:
        raise Invalid(_("Only a prompt that is on hold or archived can be restored."), field="state")
    if live is not None and live.state is CandidateSetState.ready:
        prompt.state = PromptState.ready
    else:
        prompt.state = PromptState.judged if prompt.has_accepted else PromptState.waiting
    session.flush()
    rules.refresh_prompt(session, prompt.id)
    session.refresh(prompt, ["has_accepted", "fresh"])
