"""Policies as their pages show them: how much depends on each, and what changed from one version to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.errors import NotFound
from app.models import Policy as PolicyRow
from app.models import PolicyVersion, Project, Prompt
from app.services.kernel.actors import Actor, require
from app.services.projects.policies import NO_USE, PolicyUse, count_use, policy_of
from illume.fields.policies import STATUSES, Policy, PolicyCategory, Status
from illume.phrases import _


@dataclass(frozen=True, slots=True)
class VersionUse:
    """A version of a policy, with the prompts judged by it and their verdicts; variants count with their version."""

    id: int
    number: int
    created_at: datetime
    categories: int
    is_latest: bool
    use: PolicyUse

    @property
    def stale(self) -> int:
        """How many verdicts were given under rules that have been edited since."""
        return 0 if self.is_latest else self.use.verdicts


@dataclass(frozen=True, slots=True)
class PolicyHistory:
    """A policy with its versions, the newest one first."""

    name: str
    versions: tuple[VersionUse, ...]

    @property
    def newest(self) -> VersionUse:
        """The version that new prompts get."""
        return self.versions[0]

    @property
    def prompts(self) -> int:
        """How many prompts are judged by any version."""
        return sum(one.use.prompts for one in self.versions)

    @property
    def stale(self) -> int:
        """How many verdicts were given under older versions."""
        return sum(one.stale for one in self.versions)


@dataclass(frozen=True, slots=True)
class OpenPolicy:
    """A version of a policy with what it says, what the version before it said, and its history."""

    version: PolicyVersion
    policy: Policy
    before: Policy | None
    history: PolicyHistory

    @property
    def shown(self) -> VersionUse:
        """This version in its history."""
        return next(one for one in self.history.versions if one.number == self.version.number)


def list_histories(session: Session, actor: Actor, project: Project) -> list[PolicyHistory]:
    """The policies of a project by their names."""
    require(session, actor, project)
    return list(_load_histories(session, project, None).values())


def open_policy(session: Session, actor: Actor, project: Project, version_id: int) -> OpenPolicy:
    """A version of a policy; for a variant the version it was made from. Raises `NotFound`, `Forbidden`."""
    require(session, actor, project)
    found = session.get(PolicyVersion, version_id)
    version = found if found is None or found.base_id is None else session.get(PolicyVersion, found.base_id)
    history = None if version is None else _load_histories(session, project, version.policy_id).get(version.policy_id)
    if version is None or history is None:
        raise NotFound(_("There is no such policy in this project."))
    ids = {one.number: one.id for one in history.versions}
    older = ids.get(version.number - 1)
    before = None if older is None else policy_of(session.get_one(PolicyVersion, older), history.name)
    return OpenPolicy(version, policy_of(version, history.name), before, history)


def list_prompts(session: Session, project: Project, version_id: int) -> list[int]:
    """The prompts that name a version of a policy, not a variant of it."""
    query = select(Prompt.id).where(Prompt.project_id == project.id, Prompt.policy_version_id == version_id)
    return list(session.scalars(query.order_by(Prompt.id)))


def _load_histories(session: Session, project: Project, policy_id: int | None) -> dict[int, PolicyHistory]:
    query = (
        select(PolicyVersion, PolicyRow.name)
        .join(PolicyRow, PolicyRow.id == PolicyVersion.policy_id)
        .where(PolicyRow.project_id == project.id, PolicyVersion.base_id.is_(None))
        .order_by(func.lower(PolicyRow.name), PolicyRow.id, PolicyVersion.number.desc())
    )
    if policy_id is not None:
        query = query.where(PolicyRow.id == policy_id)
    rows = session.execute(query).all()
    used = count_use(session, [version.id for version, _name in rows])
    found: dict[int, list[VersionUse]] = {}
    names: dict[int, str] = {}
    for version, name in rows:
        names[version.policy_id] = name
        history = found.setdefault(version.policy_id, [])
        history.append(
            VersionUse(
                id=version.id,
                number=version.number,
                created_at=version.created_at,
                categories=len(version.categories),
                is_latest=not history,
                use=used.get(version.id, NO_USE),
            )
        )
    return {key: PolicyHistory(names[key], tuple(versions)) for key, versions in found.items()}


# What changed


@dataclass(frozen=True, slots=True)
class TextChange:
    """A text that differs. `status` is the one for which a category has it; None for the preamble."""

    status: Status | None
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class CategoryChange:
    """A category that was added (`old` is None), removed (`new` is None) or changed.

    `in_force` is what it said with its old status and says with the new one, where another status is in force now.
    """

    name: str
    old: Status | None
    new: Status | None
    texts: tuple[TextChange, ...]
    in_force: TextChange | None = None


@dataclass(frozen=True, slots=True)
class PolicyChanges:
    """What differs between two policies. Categories are the same if they have the same name."""

    preamble: TextChange | None
    categories: tuple[CategoryChange, ...]
    is_reordered: bool

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return self.preamble is not None or bool(self.categories) or self.is_reordered


def compare_policies(old: Policy, new: Policy) -> PolicyChanges:
    """What differs between two policies: changed and added categories in the order of `new`, then removed ones."""
    before = {one.name: one for one in old.categories}
    after = {one.name: one for one in new.categories}
    removed = [name for name in before if name not in after]
    found = [
        *(_compare_category(name, before.get(name), one) for name, one in after.items()),
        *(_compare_category(name, before[name], None) for name in removed),
    ]
    kept_before = [name for name in before if name in after]
    kept_after = [name for name in after if name in before]
    return PolicyChanges(
        preamble=None if old.header == new.header else TextChange(None, old.header, new.header),
        categories=tuple(one for one in found if one is not None),
        is_reordered=kept_before != kept_after,
    )


def _compare_category(name: str, old: PolicyCategory | None, new: PolicyCategory | None) -> CategoryChange | None:
    says: tuple[Mapping[Status, str], ...] = tuple({} if one is None else one.texts for one in (old, new))
    texts = tuple(
        TextChange(status, says[0].get(status, ""), says[1].get(status, ""))
        for status in STATUSES
        if says[0].get(status) != says[1].get(status)
    )
    in_force = None
    if old is not None and new is not None and old.status != new.status:
        in_force = TextChange(new.status, old.texts[old.status], new.texts[new.status])
    change = CategoryChange(
        name, None if old is None else old.status, None if new is None else new.status, texts, in_force
    )
    return change if texts or change.old != change.new else None
