"""Rows for tests, made directly: each function adds what it must have, flushes, and returns it.

Everything has a default, and names never clash. Nothing commits.
"""

from __future__ import annotations

import io
import itertools
import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import argon2
import PIL.Image
from sqlalchemy.orm import Session

from app.models import (
    Assignment,
    AssignmentState,
    Candidate,
    CandidateSet,
    CandidateSetState,
    CandidateSource,
    Image,
    MachineAccept,
    Membership,
    ModelVersion,
    Pick,
    PolicyVersion,
    Project,
    Prompt,
    PromptImage,
    PromptState,
    Purpose,
    Role,
    Round,
    RoundState,
    RoundTrigger,
    SettingRevision,
    Snapshot,
    SnapshotKind,
    Split,
    User,
    Verdict,
    VerdictKind,
    VersionKind,
)
from app.services.kernel.actors import SYSTEM, Actor
from app.services.kernel.store import get_store
from app.services.projects import policies
from app.services.projects.policies import PolicyIn
from app.services.projects.projects import ProjectSettings
from app.services.rounds import versions

Row = TypeVar("Row")
numbers = itertools.count(1)
hasher = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)  # cheap: hundreds of users are made


def add(session: Session, row: Row) -> Row:
    """Add and flush, so that ids and server defaults are there."""
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def make_user(
    session: Session,
    *,
    email: str | None = None,
    name: str = "",
    role: Role = Role.viewer,
    password: str | None = None,
    disabled: bool = False,
) -> User:
    """A person; without `password` one who cannot sign in."""
    return add(
        session,
        User(
            email=email or f"user{next(numbers)}@example.org",
            name=name,
            role=role,
            password_hash=hasher.hash(password) if password else None,
            disabled_at=datetime.now(UTC) if disabled else None,
        ),
    )


def actor_of(user: User) -> Actor:
    """The actor that services want, for a person signed in by browser."""
    return Actor(user_id=user.id, email=user.email, role=Role(user.role))


def make_member(session: Session, project: Project, role: Role = Role.critic, *, user: User | None = None) -> User:
    """A person with `role` in `project`."""
    user = user or make_user(session)
    add(session, Membership(user_id=user.id, project_id=project.id, role=role))
    return user


def make_critic(session: Session, project: Project) -> Actor:
    """A critic of `project`, as the actor services want."""
    return actor_of(make_member(session, project, Role.critic))


def make_admin(session: Session) -> Actor:
    """An admin of the installation, as the actor services want."""
    return actor_of(make_user(session, role=Role.admin))


def make_project(session: Session, *, slug: str | None = None, name: str = "A project", **settings: Any) -> Project:
    """A project with setting revision 1 (`settings` over the defaults) and version 0, the base model, active."""
    project = add(session, Project(slug=slug or f"project-{next(numbers)}", name=name))
    kept = ProjectSettings.model_validate(settings).model_dump(mode="json")
    revision = add(session, SettingRevision(project_id=project.id, number=1, settings=kept))
    version = make_version(session, project, number=0, base_model=kept["base_model"])
    project.revision_id, project.active_version_id = revision.id, version.id
    session.flush()
    return project


def make_version(
    session: Session,
    project: Project,
    *,
    number: int,
    parent: ModelVersion | None = None,
    base_model: str = "starter",
    adapter: str | None = None,
    metrics: dict[str, Any] | None = None,
) -> ModelVersion:
    """A model version; it is not made active."""
    return add(
        session,
        ModelVersion(
            project_id=project.id,
            number=number,
            parent_id=parent.id if parent else None,
            base_model=base_model,
            adapter=adapter,
            metrics=metrics or {},
        ),
    )


def make_machine_critic(
    session: Session, project: Project, metrics: dict[str, Any] | None = None, *, base_model: str = "starter"
) -> ModelVersion:
    """The project's next version, a machine critic (by default a verifier)."""
    return versions.register(
        session,
        project,
        base_model=base_model,
        parent_id=project.active_version_id,
        round_id=None,
        adapter="0" * 64,
        metrics=metrics or {"critic": "verifier"},
        kind=VersionKind.critic,
    )


def make_machine_accept(
    session: Session, project: Project, candidate_set: CandidateSet, version_id: int | None, *, score: float = 1.0
) -> MachineAccept:
    """The first candidate of a set, accepted by a machine critic."""
    return add(
        session,
        MachineAccept(
            prompt_id=candidate_set.prompt_id,
            project_id=project.id,
            candidate_id=candidates_of(session, candidate_set)[0].id,
            version_id=version_id,
            score=score,
        ),
    )


def image_bytes(*, size: tuple[int, int] = (12, 8), kind: str = "PNG") -> bytes:
    """An image file unlike all others made before."""
    number = next(numbers)
    picture = PIL.Image.new("RGB", size, (number % 256, number // 256 % 256, number // 65536 % 256))
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def photograph(*, size: tuple[int, int] = (4000, 3000), seed: int = 0) -> bytes:
    """A JPEG that is about as hard to compress as a phone's: structure at all scales, and the noise of a sensor."""
    noise = random.Random(seed)
    picture = PIL.Image.new("RGB", size, "grey")
    for scale, share in ((3, 0.9), (12, 0.5), (48, 0.35), (200, 0.2), (800, 0.1)):
        pixels = PIL.Image.frombytes("RGB", (scale, scale), noise.randbytes(scale * scale * 3))
        picture = PIL.Image.blend(picture, pixels.resize(size, PIL.Image.Resampling.BICUBIC), share)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95)
    return file.getvalue()


def make_image(session: Session, data: bytes | None = None) -> Image:
    """An image, its bytes in the store."""
    data = data or image_bytes()
    with PIL.Image.open(io.BytesIO(data)) as picture:
        width, height, kind = picture.width, picture.height, str(picture.format).lower()
    sha256 = get_store().put_bytes(data)
    known = session.get(Image, sha256)
    if known:
        return known
    return add(session, Image(sha256=sha256, media_type=f"image/{kind}", width=width, height=height, size=len(data)))


def make_prompt(
    session: Session,
    project: Project,
    *,
    images: Sequence[Image] | None = None,
    split: Split = Split.train,
    state: PromptState = PromptState.waiting,
    question: str = "What is on the beach?",
    answer: str | None = "a red umbrella",
    references: Sequence[str] = (),
    extra: dict[str, Any] | None = None,
    external_id: str | None = None,
    priority: int = 0,
    parts: list[dict[str, Any]] | None = None,
    policy: PolicyVersion | None = None,
    fields: dict[str, str | None] | None = None,
) -> Prompt:
    """A prompt with one image of its own unless `images` says otherwise. `parts` name the images by sha256."""
    prompt = add(
        session,
        Prompt(
            project_id=project.id,
            external_id=external_id,
            split=split,
            state=state,
            question=question,
            answer=answer,
            references=list(references),
            extra=extra or {},
            priority=priority,
            parts=parts,
            policy_version_id=None if policy is None else policy.id,
            fields=fields,
        ),
    )
    for position, image in enumerate(images if images is not None else [make_image(session)]):
        add(session, PromptImage(prompt_id=prompt.id, position=position, sha256=image.sha256))
    return prompt


CATEGORIES = ("O1: Animals", "O2: Violence, Harm, or Cruelty")
ANSWER_FIELDS: list[dict[str, Any]] = [
    {"name": "rating", "kind": "choice", "role": "rating", "choices": ["Unsafe", "Safe"], "positive": ["Unsafe"]},
    {"name": "category", "kind": "choice", "role": "category", "choices": "policy", "none": "NA"},
    {"name": "rationale", "kind": "text", "role": "rationale"},
]
"""The fields of a project whose answers are structured; the template has to hold {policy}."""


def policy_json(name: str = "House rules", **statuses: str) -> dict[str, Any]:
    """A policy as REST takes it, with the categories `CATEGORIES`; `statuses` are those of O1 and O2."""
    categories = [
        {
            "name": one,
            "status": statuses.get(one[:2], "default"),
            "texts": {status: f"{one} is {status}." for status in ("default", "allowed", "strict")},
        }
        for one in CATEGORIES
    ]
    return {"name": name, "preamble": "Assess the picture.", "categories": categories}


def make_policy(session: Session, project: Project, name: str = "House rules", **statuses: str) -> PolicyVersion:
    """The next version of a policy."""
    given = PolicyIn.model_validate(policy_json(name, **statuses))
    return policies.add_policy(session, SYSTEM, project, given)[0].version


def answer(rationale: str, *, rating: str = "Unsafe", category: str = CATEGORIES[0]) -> str:
    """A structured answer of a project with the fields `ANSWER_FIELDS`."""
    return json.dumps({"rating": rating, "category": category, "rationale": rationale}, ensure_ascii=False)


def structured_project(session: Session, **settings: Any) -> tuple[Project, PolicyVersion]:
    """A project whose answers have the fields `ANSWER_FIELDS`, and its policy."""
    template = "{policy} Q: {question} A: {answer}"
    project = make_project(session, **{"answer_fields": ANSWER_FIELDS, "template": template, **settings})
    return project, make_policy(session, project)


def make_candidate_set(
    session: Session,
    project: Project,
    *,
    prompt: Prompt | None = None,
    texts: Sequence[str] = ("it stands in the sand", "it is red", "umbrellas are umbrellas"),
    version: ModelVersion | None = None,
    source: CandidateSource = CandidateSource.model,
    state: CandidateSetState = CandidateSetState.ready,
    slots: int = 1,
    priority: int = 0,
    shown: int | None = None,
) -> CandidateSet:
    """A candidate set by `version` (default: the active one), its prompt in the state that goes with it.

    With `shown`, the candidates after the first so many are spare.
    """
    prompt = prompt or make_prompt(session, project)
    version_id = version.id if version else project.active_version_id if source is CandidateSource.model else None
    candidate_set = add(
        session,
        CandidateSet(
            project_id=project.id,
            prompt_id=prompt.id,
            version_id=version_id,
            source=source,
            state=state,
            answer=prompt.answer,
            answer_source="gold" if prompt.answer else None,
            priority=priority,
            slots=slots,
        ),
    )
    sampled = source is CandidateSource.model
    for position, text in enumerate(texts):
        is_structured = text.startswith("{")
        row = Candidate(
            candidate_set_id=candidate_set.id,
            position=position,
            text=text,
            temperature=0.7 if sampled else None,
            seed=1000 + position if sampled else None,
            mean_logprob=-0.5 - position / 10 if sampled else None,
            n_tokens=len(text.split()) if sampled else None,
            fields=json.loads(text) if is_structured and text.endswith("}") else None,
            invalid="cut off" if is_structured and not text.endswith("}") else None,
            spare=shown is not None and position >= shown,
        )
        add(session, row)
    if state is CandidateSetState.ready and prompt.state == PromptState.waiting:
        prompt.state = PromptState.ready
        session.flush()
    return candidate_set


def candidates_of(session: Session, candidate_set: CandidateSet) -> list[Candidate]:
    """The candidates of a set in their stored order."""
    return list(
        session.query(Candidate).filter_by(candidate_set_id=candidate_set.id).order_by(Candidate.position).all()
    )


def make_assignment(
    session: Session,
    candidate_set: CandidateSet,
    critic: Actor,
    *,
    state: AssignmentState = AssignmentState.open,
    minutes_left: float = 15,
    slot: int = 1,
    purpose: Purpose = Purpose.work,
) -> Assignment:
    """A claim as it stands in the database; an open or judged one takes a slot of its set."""
    shown = [candidate.id for candidate in candidates_of(session, candidate_set) if not candidate.spare]
    if state in (AssignmentState.open, AssignmentState.judged):
        candidate_set.taken += 1
    return add(
        session,
        Assignment(
            project_id=candidate_set.project_id,
            candidate_set_id=candidate_set.id,
            critic_id=critic.user_id,
            slot=slot,
            state=state,
            purpose=purpose,
            shown=shown,
            expires_at=datetime.now(UTC) + timedelta(minutes=minutes_left),
        ),
    )


def make_verdict(
    session: Session,
    assignment: Assignment,
    *,
    kind: VerdictKind = VerdictKind.picked,
    picks: Sequence[int] | None = None,
    rationale: str | None = None,
) -> Verdict:
    """A verdict as a row, its assignment judged; `picks` are candidate ids, the first shown one by default.

    What the verdict changes elsewhere (prompt, rounds) is the business of `app.services.judging.give`.
    """
    candidate_set = session.get_one(CandidateSet, assignment.candidate_set_id)
    assignment.state = AssignmentState.judged
    verdict = add(
        session,
        Verdict(
            project_id=assignment.project_id,
            assignment_id=assignment.id,
            candidate_set_id=assignment.candidate_set_id,
            prompt_id=candidate_set.prompt_id,
            critic_id=assignment.critic_id,
            kind=kind,
            rationale=rationale,
            shown=assignment.shown,
        ),
    )
    if kind is VerdictKind.picked:
        for candidate_id in picks if picks is not None else assignment.shown[:1]:
            add(session, Pick(verdict_id=verdict.id, candidate_id=candidate_id))
    return verdict


def make_snapshot(session: Session, project: Project, *, number: int = 1) -> Snapshot:
    """An empty snapshot of the kind rounds use, its file in the store."""
    return add(
        session,
        Snapshot(
            project_id=project.id,
            number=number,
            kind=SnapshotKind.round,
            name=f"Round {number}",
            sha256=get_store().put_bytes(b""),
            settings=ProjectSettings().model_dump(mode="json"),
            counts={},
        ),
    )


def make_round(
    session: Session,
    project: Project,
    *,
    number: int = 1,
    state: RoundState = RoundState.queued,
    trigger: RoundTrigger = RoundTrigger.manual,
    snapshot: Snapshot | None = None,
) -> Round:
    """A round whose parent is the active version."""
    snapshot = snapshot or make_snapshot(session, project, number=number)
    return add(
        session,
        Round(
            project_id=project.id,
            number=number,
            state=state,
            trigger=trigger,
            snapshot_id=snapshot.id,
            parent_id=project.active_version_id,
        ),
    )
