"""Erasing people, images and projects for good: the impact, and the request. A worker does the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, and_, delete, func, select, update
from sqlalchemy.orm import Session

from app import queue
from app.db.base import phrased
from app.errors import Conflict, NotFound
from app.models import (
    Assignment,
    AssignmentState,
    Base,
    CandidateSet,
    Erasure,
    ErasureKind,
    Image,
    Import,
    ImportState,
    Membership,
    Project,
    Prompt,
    PromptImage,
    Purpose,
    ReturnedVerdict,
    Review,
    Role,
    Snapshot,
    Token,
    User,
    Verdict,
    Webhook,
)
from app.services.accounts import users
from app.services.integrations import webhooks
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require_admin
from app.services.kernel.counters import prompt_counts
from app.services.kernel.leases import IMPORTS
from app.services.kernel.paging import Page, check_limit, decode_cursor, encode_cursor
from app.services.rounds import rounds
from app.services.rounds.versions import lock_project
from illume.phrases import _

MAX_PROMPTS_SEARCHED = 50_000
"""Images of a project are counted over at most this many prompts, so that the page appears at once."""


@dataclass(frozen=True, slots=True)
class ErasureImpact:
    """What an erasure would remove: how many of each, and the slugs of the affected projects.

    `images_at_least`: the project has more prompts than were searched for images.
    """

    name: str
    verdicts: int
    prompts: int
    images: int
    snapshots: int
    tokens: int
    projects: tuple[str, ...]
    images_at_least: bool = False


def _count(session: Session, query: Any) -> int:
    return session.scalar(select(func.count()).select_from(query.subquery())) or 0


def _impact(
    session: Session, name: str, verdicts: Any, projects: Any, *, images_at_least: bool = False, **more: int
) -> ErasureImpact:
    """The impact of removing these verdicts, in these projects (their ids)."""
    snapshots = select(Snapshot.id).where(Snapshot.project_id.in_(projects))
    slugs = session.scalars(select(Project.slug).where(Project.id.in_(projects)).order_by(Project.slug))
    counts = {"prompts": 0, "images": 0, "tokens": 0, **more}
    return ErasureImpact(
        name=name,
        verdicts=_count(session, verdicts.where(~Verdict.deleted)),
        snapshots=_count(session, snapshots),
        projects=tuple(slugs),
        images_at_least=images_at_least,
        **counts,
    )


# A person


def person_impact(session: Session, actor: Actor, user_id: int) -> ErasureImpact:
    """The impact of erasing a person. Raises `NotFound`, and `Conflict` if they cannot be erased."""
    user = _get_erasable_person(session, actor, user_id)
    verdicts = select(Verdict.id).where(Verdict.critic_id == user.id)
    projects = select(Verdict.project_id).where(Verdict.critic_id == user.id)
    tokens = _count(session, select(Token.id).where(Token.user_id == user.id))
    return _impact(session, user.email, verdicts, projects, tokens=tokens)


def _get_erasable_person(session: Session, actor: Actor, user_id: int) -> User:
    require_admin(actor)
    user = users.get_user(session, actor, user_id)
    if user.erased_at is not None:
        raise NotFound(_("This person has already been erased."))
    if user.id == actor.user_id:
        raise Conflict(_("You cannot erase yourself: ask another admin."))
    return user


def erase_person(session: Session, actor: Actor, user_id: int) -> Erasure:
    """Erase a person: disabled and anonymised at once, their verdicts soon after. Raises `NotFound`, `Conflict`."""
    user = _get_erasable_person(session, actor, user_id)
    session.execute(update(Review).where(Review.decided_by == user.id).values(note=None))
    session.execute(update(ReturnedVerdict).where(ReturnedVerdict.created_by == user.id).values(note=""))
    users.set_disabled(session, actor, user.id, True)  # refuses the last admin
    _release_claims(session, user.id)
    for table in Base.metadata.sorted_tables:
        _forget_user_in(session, table, user.id)
    user.email, user.name, user.password_hash = f"erased-{user.id}@erased.invalid", "", None
    user.role, user.judging_keys, user.erased_at = Role.viewer, {}, func.now()
    return _create_erasure(session, actor, ErasureKind.person, str(user.id))


def _forget_user_in(session: Session, table: Table, user_id: int) -> None:
    """Delete a person's rows of a table and clear references to them, as each foreign key declares."""
    for column in table.columns:
        for key in column.foreign_keys:
            if key.target_fullname != "users.id":
                continue
            if key.ondelete == "CASCADE" or table.name == "preferences":
                session.execute(delete(table).where(column == user_id))
            elif key.ondelete == "SET NULL":
                session.execute(update(table).where(column == user_id).values({column: None}))


def _release_claims(session: Session, user_id: int) -> None:
    """Release the sets that a person holds to other critics."""
    held = select(Assignment).where(Assignment.critic_id == user_id, Assignment.state == AssignmentState.open)
    for assignment in session.scalars(held.order_by(Assignment.id).with_for_update()):
        assignment.state = AssignmentState.released
        if assignment.purpose is Purpose.work:
            session.execute(
                update(CandidateSet)
                .where(CandidateSet.id == assignment.candidate_set_id)
                .values(taken=CandidateSet.taken - 1)
            )
    session.flush()


# An image


def image_impact(session: Session, actor: Actor, sha256: str) -> ErasureImpact:
    """The impact of erasing an image: every prompt that shows it, in all projects. Raises `NotFound`."""
    require_admin(actor)
    if session.get(Image, sha256) is None:
        raise NotFound(_("There is no such image."))
    prompts = select(PromptImage.prompt_id).where(PromptImage.sha256 == sha256)
    verdicts = select(Verdict.id).where(Verdict.prompt_id.in_(prompts))
    projects = select(Prompt.project_id).where(Prompt.id.in_(prompts))
    return _impact(session, sha256, verdicts, projects, prompts=_count(session, prompts), images=1)


def erase_image(session: Session, actor: Actor, sha256: str) -> Erasure:
    """Erase an image and the prompts that show it. Raises `NotFound`."""
    image_impact(session, actor, sha256)
    return _create_erasure(session, actor, ErasureKind.image, sha256)


# A project


def project_impact(session: Session, actor: Actor, slug: str) -> ErasureImpact:
    """The impact of erasing a project. Raises `NotFound`."""
    project = _get_project(session, actor, slug)
    prompts = sum(one.n for one in prompt_counts(session, project))
    first = select(Prompt.id).where(Prompt.project_id == project.id).order_by(Prompt.id).limit(MAX_PROMPTS_SEARCHED)
    shown = select(PromptImage.sha256).where(PromptImage.prompt_id.in_(first)).distinct()
    verdicts = select(Verdict.id).where(Verdict.project_id == project.id)
    return _impact(
        session,
        project.slug,
        verdicts,
        select(Project.id).where(Project.id == project.id),
        images_at_least=prompts > MAX_PROMPTS_SEARCHED,
        prompts=prompts,
        images=_count(session, shown),
    )


def _get_project(session: Session, actor: Actor, slug: str) -> Project:
    require_admin(actor)
    project = session.scalar(select(Project).where(Project.slug == slug, Project.erased_at.is_(None)))
    if project is None:
        raise NotFound(_("There is no such project."))
    return project


def erase_project(session: Session, actor: Actor, slug: str) -> Erasure:
    """Erase a project: inaccessible at once, its content removed soon after. Snapshots keep their hashes.

    Raises `NotFound`.
    """
    project = _get_project(session, actor, slug)
    lock_project(session, project)
    active = rounds.active_round(session, project)
    if active is not None:
        rounds.cancel(session, actor, active.id)
    session.execute(delete(Membership).where(Membership.project_id == project.id))
    session.execute(delete(Webhook).where(Webhook.project_id == project.id))
    webhooks.forget_project(session, project.slug)
    IMPORTS.revoke(
        session,
        and_(Import.project_id == project.id, Import.finished_at.is_(None)),
        state=ImportState.failed,
        **phrased(error=_("The project has been erased.")),
        finished_at=func.now(),
    )
    project.slug, project.name, project.erased_at = f"erased-{project.id}", "erased", func.now()
    return _create_erasure(session, actor, ErasureKind.project, str(project.id), name=slug)


# Erasures


def _create_erasure(
    session: Session, actor: Actor, kind: ErasureKind, subject: str, *, name: str | None = None
) -> Erasure:
    made = Erasure(kind=kind, subject=subject, name=name, created_by=actor.stored_id)
    session.add(made)
    session.flush()
    session.refresh(made)
    audit.record(session, actor, f"{kind.value}.erase", f"{kind.value}:{subject}", erasure=made.id)
    queue.send(session, queue.ERASE, made.id)
    return made


def get_erasure(session: Session, actor: Actor, erasure_id: int) -> Erasure:
    """The progress of an erasure, for an admin. Raises `NotFound`."""
    require_admin(actor)
    found = session.get(Erasure, erasure_id)
    if found is None:
        raise NotFound(_("There is no such erasure."))
    return found


def list_erasures(session: Session, actor: Actor, *, limit: int = 100, cursor: str | None = None) -> Page[Erasure]:
    """List erasures, newest first, for an admin."""
    require_admin(actor)
    query = select(Erasure).order_by(Erasure.id.desc()).limit(check_limit(limit) + 1)
    if cursor is not None:
        query = query.where(Erasure.id < decode_cursor(cursor, int)[0])
    found = list(session.scalars(query))
    return Page(found[:limit], encode_cursor(found[limit - 1].id) if len(found) > limit else None)
