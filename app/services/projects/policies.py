"""Policies of a project and their versions, and the fields of its answers."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import func, or_, select, text
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.orm import Session, aliased

from app.errors import Invalid
from app.models import Policy as PolicyRow
from app.models import PolicyVersion, Project
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require
from app.services.kernel.paging import Page, check_limit, decode_cursor, encode_cursor
from app.services.kernel.rights import Right
from app.services.kernel.text_rules import Storable
from app.services.projects.projects import ProjectSettings
from illume.fields.definitions import AnswerFields, check_values, read_answer_fields
from illume.fields.policies import MAX_CATEGORIES, MAX_CHARACTERS, MAX_NAME, Policy, PolicyCategory, Status
from illume.phrases import _
from illume.validation import name_problem, place_of

PolicyText = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS), Storable]
PolicyName = Annotated[str, Field(min_length=1, max_length=MAX_NAME), Storable]
NUMBERED = re.compile(r"(?P<name>.+) #(?P<number>[1-9][0-9]{0,8})", re.DOTALL)
"""How a version of a policy is named, where its id is not known."""
UNRATED = _("Rate the picture first: POST .../fields stores your own values and answers with the explanations.")
# Of the versions, how many prompts name them or a variant of them, and how many verdicts in force those have.
USE = text("""
SELECT coalesce(v.base_id, v.id) AS id, count(DISTINCT p.id) AS prompts, count(d.id) AS verdicts
FROM policy_versions v JOIN prompts p ON p.policy_version_id = v.id
LEFT JOIN verdicts d ON d.prompt_id = p.id AND d.current AND d.kind IN ('picked', 'none_fit')
WHERE coalesce(v.base_id, v.id) = ANY (CAST(:versions AS bigint[])) GROUP BY 1
""")


class PolicyUse(NamedTuple):
    """How many prompts name a version of a policy or a variant of it, and how many verdicts in force those have."""

    prompts: int
    verdicts: int


NO_USE = PolicyUse(0, 0)


class CategoryTexts(BaseModel):
    """What a policy says about a category, for each status that it may have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    default: PolicyText
    allowed: PolicyText
    strict: PolicyText


class CategoryIn(BaseModel):
    """A category of a policy. `allowed` means declared as no violation, `strict` declared as sensitive."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: PolicyName
    status: Status = "default"
    texts: CategoryTexts


class PolicyIn(BaseModel):
    """A policy. Under a name that exists already it is the next version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: PolicyName
    preamble: Annotated[str, Field(max_length=MAX_CHARACTERS), Storable] = Field(
        "", description="Stands before the categories"
    )
    categories: list[CategoryIn] = Field(min_length=1, max_length=MAX_CATEGORIES)


@dataclass(frozen=True, slots=True)
class VersionInUse:
    """A version of a policy with its name, and how much depends on it.

    `stale`: the verdicts given under this version, where there is a newer one.
    """

    version: PolicyVersion
    name: str
    is_latest: bool
    prompts: int
    verdicts: int

    @property
    def stale(self) -> int:
        """How many verdicts were given under rules that have been edited since."""
        return 0 if self.is_latest else self.verdicts


# The fields of answers


def answer_fields_of(settings: ProjectSettings) -> AnswerFields | None:
    """The fields of a project's answers; None if its answers are not structured."""
    return read_fields(orjson.dumps(settings.answer_fields)) if settings.answer_fields else None


def hides_answers(fields: AnswerFields | None) -> bool:
    """Whether critics do not see the prompts' answers: where a rating is asked for, they may be the right one."""
    return fields is not None and fields.with_role("rating") is not None


@functools.lru_cache(maxsize=64)
def read_fields(data: bytes) -> AnswerFields:
    """The fields of answers from the JSON of a setting; the same text is read once."""
    return read_answer_fields(orjson.loads(data))


def check_judged(
    values: Mapping[str, str | None], fields: AnswerFields, policy: Policy | None
) -> dict[str, str | None]:
    """The values of fields that somebody gives who judges. Raises `Invalid`, which names the field."""
    rationale = fields.rationale.name
    if rationale in values:
        field = f"fields.{rationale}"
        raise Invalid(_("%(field)s: rationales are picked, or written as the rationale.", field=field), field=field)
    try:
        check_values(values, fields, policy)
    except ValueError as error:
        field, problem = place_of("fields", error)
        raise Invalid(name_problem(field, problem), field=field) from error
    return dict(values)


def check_blind(values: Mapping[str, str | None], fields: AnswerFields, policy: Policy | None) -> dict[str, str | None]:
    """The values that come before any candidate is shown: no choice that is required may be missing."""
    given = check_judged(values, fields, policy)
    missing = [one.name for one in fields.fields if one.kind == "choice" and one.required and one.name not in given]
    if missing:
        field = f"fields.{missing[0]}"
        raise Invalid(_("%(field)s: a value is needed.", field=field), field=field)
    return given


# Policies


def read_policy_in(given: PolicyIn) -> Policy:
    """The policy that was posted. Raises `Invalid`, which names the field."""
    categories = []
    for index, one in enumerate(given.categories):
        try:
            category = PolicyCategory(name=one.name, status=one.status, **one.texts.model_dump())
        except ValueError as error:
            place, problem = place_of("", error)
            field = f"categories.{index}.{place if place == 'name' else f'texts.{place}'}"
            raise Invalid(name_problem(field, problem), field=field) from error
        categories.append(category)
    try:
        return Policy(name=given.name, header=given.preamble, categories=tuple(categories))
    except ValueError as error:
        place, problem = place_of("", error)
        field = {"header": "preamble", "name": "name"}.get(place, "categories")
        raise Invalid(name_problem(field, problem), field=field) from error


def add_policy(session: Session, actor: Actor, project: Project, given: PolicyIn) -> tuple[VersionInUse, bool]:
    """Add a policy, or the next version of the one that has the name; whether anything was added.

    What the newest version says already adds nothing. Raises `Invalid`, `Forbidden`.
    """
    require(session, actor, project, Right.administers)
    return _add_version(session, actor, project, read_policy_in(given))


def _add_version(session: Session, actor: Actor, project: Project, policy: Policy) -> tuple[VersionInUse, bool]:
    session.execute(pg_insert(PolicyRow).values(project_id=project.id, name=policy.name).on_conflict_do_nothing())
    row = session.scalars(
        select(PolicyRow)
        .where(PolicyRow.project_id == project.id, PolicyRow.name == policy.name)
        .with_for_update(key_share=True)
    ).one()
    newest = session.scalar(
        select(PolicyVersion)
        .where(PolicyVersion.policy_id == row.id, PolicyVersion.base_id.is_(None))
        .order_by(PolicyVersion.number.desc())
        .limit(1)
    )
    if newest is not None and newest.sha256 == policy.digest:
        return _in_use(session, [(newest, row.name, newest.number)])[0], False
    version = _make_row(row.id, 1 if newest is None else newest.number + 1, policy, actor)
    session.add(version)
    session.flush()
    audit.record(session, actor, "policy.add", f"policy:{version.id}", project.id, name=row.name, number=version.number)
    return VersionInUse(version, row.name, True, 0, 0), True


def keep_policy(session: Session, actor: Actor, project: Project, policy: Policy) -> PolicyVersion:
    """The version under the policy's name that says the same, or a variant of one if only statuses differ.

    A new version is added if there is neither.
    """
    versions = session.scalars(
        select(PolicyVersion)
        .join(PolicyRow, PolicyRow.id == PolicyVersion.policy_id)
        .where(PolicyRow.project_id == project.id, PolicyRow.name == policy.name)
        .order_by(PolicyVersion.base_id.is_not(None), PolicyVersion.number.desc())
    ).all()
    same = next((one for one in versions if one.sha256 == policy.digest), None)
    if same is not None:
        return same
    plain = policy.with_status(policy.names, "default").digest
    for one in versions:
        if policy_of(one).with_status(policy.names, "default").digest == plain:
            return keep_variants(session, actor, one, [policy])[policy.digest]
    return _add_version(session, actor, project, policy)[0].version


def _make_row(policy_id: int, number: int, policy: Policy, actor: Actor, base_id: int | None = None) -> PolicyVersion:
    return PolicyVersion(
        policy_id=policy_id,
        number=number,
        base_id=base_id,
        sha256=policy.digest,
        header=policy.header,
        categories=policy.to_json()["categories"],
        text=policy.text,
        created_by=actor.stored_id,
    )


def list_policies(
    session: Session, actor: Actor, project: Project, *, limit: int = 100, cursor: str | None = None
) -> Page[VersionInUse]:
    """The versions of a project's policies in the order they were added, without variants."""
    require(session, actor, project)
    check_limit(limit)
    after = 0 if cursor is None else decode_cursor(cursor, int)[0]
    other = aliased(PolicyVersion)
    newest = (
        select(func.max(other.number))
        .where(other.policy_id == PolicyVersion.policy_id, other.base_id.is_(None))
        .scalar_subquery()
    )
    rows = session.execute(
        select(PolicyVersion, PolicyRow.name, newest)
        .join(PolicyRow, PolicyRow.id == PolicyVersion.policy_id)
        .where(PolicyRow.project_id == project.id, PolicyVersion.base_id.is_(None), PolicyVersion.id > after)
        .order_by(PolicyVersion.id)
        .limit(limit + 1)
    ).all()
    page = [(row[0], str(row[1]), int(row[2])) for row in rows[:limit]]
    following = encode_cursor(page[-1][0].id) if len(rows) > limit else None
    return Page(_in_use(session, page), following)


def _in_use(session: Session, rows: Sequence[tuple[PolicyVersion, str, int]]) -> list[VersionInUse]:
    """Versions with their names and the newest numbers of their policies, and how much they are used."""
    used = count_use(session, [version.id for version, _, _ in rows])
    return [
        VersionInUse(version, name, version.number == newest, *used.get(version.id, NO_USE))
        for version, name, newest in rows
    ]


def count_use(session: Session, version_ids: Sequence[int]) -> dict[int, PolicyUse]:
    """How much depends on versions of policies, by their ids, without those that nothing depends on."""
    found = session.execute(USE, {"versions": list(version_ids)})
    return {row.id: PolicyUse(row.prompts, row.verdicts) for row in found}


def keep_variants(
    session: Session, actor: Actor, base: PolicyVersion, variants: Iterable[Policy]
) -> dict[str, PolicyVersion]:
    """Store variants of a version that are not there yet. Returns the versions of all of them by their digests."""
    base_id = base.base_id or base.id
    wanted = {one.digest: one for one in variants}
    query = select(PolicyVersion).where(
        PolicyVersion.policy_id == base.policy_id,
        PolicyVersion.number == base.number,
        PolicyVersion.sha256.in_(wanted),
    )
    known = set(session.scalars(query.with_only_columns(PolicyVersion.sha256)))
    rows = [
        _make_row(base.policy_id, base.number, policy, actor, base_id)
        for digest, policy in wanted.items()
        if digest not in known
    ]
    columns = ("policy_id", "number", "base_id", "sha256", "header", "categories", "text", "created_by")
    if rows:
        values = [{name: getattr(row, name) for name in columns} for row in rows]
        session.execute(pg_insert(PolicyVersion).values(values).on_conflict_do_nothing())
    return {row.sha256: row for row in session.scalars(query)}


def find_policies(session: Session, project: Project, names: Iterable[str]) -> dict[str, PolicyVersion]:
    """The versions that texts name: an id, a policy's name for its newest version, or `name #2` for another one."""
    wanted = set(names)
    if not wanted:
        return {}
    numbered = {one: (match["name"], int(match["number"])) for one in wanted if (match := NUMBERED.fullmatch(one))}
    ids = {one: int(one) for one in wanted if one.isascii() and one.isdigit() and len(one) < 19}
    known = [*wanted, *(name for name, _ in numbered.values())]
    rows = session.execute(
        select(PolicyVersion, PolicyRow.name)
        .join(PolicyRow, PolicyRow.id == PolicyVersion.policy_id)
        .where(
            PolicyRow.project_id == project.id,
            or_(PolicyVersion.id.in_(ids.values()), PolicyRow.name.in_(known) & PolicyVersion.base_id.is_(None)),
        )
        .order_by(PolicyVersion.number)
    ).all()
    by_id = {version.id: version for version, _ in rows}
    by_number = {(name, version.number): version for version, name in rows if version.base_id is None}
    newest = {name: version for version, name in rows if version.base_id is None}
    found = {}
    for one in wanted:
        version = newest.get(one) or by_number.get(numbered.get(one, ("", 0))) or by_id.get(ids.get(one, 0))
        if version is not None:
            found[one] = version
    return found


def load_policies(session: Session, version_ids: Iterable[int | None]) -> dict[int, Policy]:
    """What versions of policies say, by their ids."""
    wanted = {one for one in version_ids if one is not None}
    if not wanted:
        return {}
    rows = session.execute(
        select(PolicyVersion, PolicyRow.name)
        .join(PolicyRow, PolicyRow.id == PolicyVersion.policy_id)
        .where(PolicyVersion.id.in_(wanted))
    )
    return {version.id: policy_of(version, name) for version, name in rows}


def policy_of(version: PolicyVersion, name: str = "") -> Policy:
    """What a version of a policy says."""
    return make_policy({"name": name, "number": version.number, "header": version.header}, version.categories)


def make_policy(columns: Mapping[str, Any], categories: Iterable[Mapping[str, Any]]) -> Policy:
    """A policy from the columns `name`, `number` and `header` of its rows, and its categories."""
    kept = tuple(PolicyCategory(**one) for one in categories)
    return Policy(name=columns["name"], version=columns["number"], header=columns["header"], categories=kept)
