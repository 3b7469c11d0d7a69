"""Uploads to the Hub: requested by an admin on a page and done by a worker, or by a command at once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, or_, select, update
from sqlalchemy.orm import Session

from app import queue
from app.db.base import phrased
from app.db.sessions import session_scope
from app.errors import DomainError
from app.models import Project, Publication, PublicationState, RepositoryKind, Worker
from app.services.kernel import audit
from app.services.kernel.actors import SYSTEM, Actor, require_admin
from app.services.kernel.leases import held
from app.services.kernel.store import StoreAway
from app.services.publishing import hub
from app.services.publishing.repositories import (
    Repository,
    adapter_repository,
    choose_snapshot,
    choose_version,
    dataset_repository,
    write_folder,
)
from app.services.publishing.terms import Terms
from illume.phrases import _

MAX_TRIES = 5
"""How many workers may end under an upload before it is given up."""
SHOWN = 10
OPEN = (PublicationState.queued, PublicationState.running)


def make_repository(
    session: Session, actor: Actor, project: Project, kind: RepositoryKind, number: int | None, terms: Terms
) -> Repository:
    """The repository of a snapshot or a version; without a number the newest snapshot, or the active version.

    Raises `NotFound`, and `Conflict` for a snapshot without verdicts.
    """
    if kind is RepositoryKind.dataset:
        return dataset_repository(session, actor, project, choose_snapshot(session, actor, project, number), terms)
    return adapter_repository(session, actor, project, choose_version(session, actor, project, number), terms)


def upload(
    repository: Repository, slug: str, repo: str, *, public: bool, check: Callable[[], None] = lambda: None
) -> str:
    """Upload a repository by way of a temporary folder; its address. Raises `Conflict` with what the Hub says.

    `check` raises when the worker has to stop.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / repository.kind
        write_folder(repository, target)
        check()
        message = f"Publish {repository.made_from} of {slug}"
        return hub.upload(target, repository.kind, repo, public=public, message=message)


# What an admin asks for


def request_upload(
    session: Session,
    actor: Actor,
    project: Project,
    kind: RepositoryKind,
    number: int,
    terms: Terms,
    *,
    repo: str,
    public: bool,
) -> Publication:
    """Have a worker upload a snapshot or an adapter with the token of its machine.

    Raises `Forbidden` for all but admins of the installation, `Invalid` for a name that is none, and `NotFound`.
    """
    require_admin(actor)
    hub.check_name(repo)
    if kind is RepositoryKind.dataset:
        choose_snapshot(session, actor, project, number)
    else:
        make_repository(session, actor, project, kind, number, terms)
    made = Publication(
        project_id=project.id,
        kind=kind,
        number=number,
        repo=repo,
        public=public,
        licence=terms.licence,
        languages=list(terms.languages),
        created_by=actor.stored_id,
    )
    session.add(made)
    session.flush()
    audit.record(
        session,
        actor,
        "publication.add",
        f"publication:{made.id}",
        project_id=project.id,
        repo=repo,
        public=public,
        what=f"{kind} {number}",
    )
    queue.send(session, queue.PUBLISH, made.id)
    return made


def list_uploads(session: Session, project: Project) -> Sequence[Publication]:
    """The newest uploads of a project."""
    query = select(Publication).where(Publication.project_id == project.id).order_by(Publication.id.desc())
    return session.scalars(query.limit(SHOWN)).all()


# What a worker does


def list_due(session: Session) -> list[int]:
    """The ids of the uploads that have not ended. A worker leaves those of others alone while they live."""
    return list(session.scalars(select(Publication.id).where(Publication.state.in_(OPEN)).order_by(Publication.id)))


def claimable(worker: str) -> ColumnElement[bool]:
    """Uploads that `worker` may take up: those that wait, those whose worker is gone, and its own.

    A worker runs each upload once at a time, so one that is its own already was broken off.
    """
    is_elsewhere = exists().where(Worker.name == Publication.worker, Worker.name != worker, held(Worker.beats_at))
    is_left = and_(Publication.state == PublicationState.running, ~is_elsewhere)
    return or_(Publication.state == PublicationState.queued, is_left)


def run_upload(publication_id: int, *, worker: str, check: Callable[[], None]) -> None:
    """Upload what was asked for, if nobody else does. Uploading twice does no harm: the files are the same.

    What is broken off, such as by `check`, is tried again. While the store is away it waits, and no try is counted.
    """
    if not _claim(publication_id, worker):
        return
    try:
        address = _upload(publication_id, check)
    except StoreAway:
        _finish(publication_id, worker, PublicationState.queued, tries=Publication.tries - 1)
        raise
    except DomainError as error:
        values = {**phrased(error=error.detail), "finished_at": func.now()}
        _finish(publication_id, worker, PublicationState.failed, **values)
    else:
        _finish(publication_id, worker, PublicationState.uploaded, address=address, finished_at=func.now())


def _claim(publication_id: int, worker: str) -> bool:
    """Claim an upload for `worker`. One that was broken off too often is given up."""
    with session_scope() as session:
        found = session.scalar(
            select(Publication)
            .where(Publication.id == publication_id, claimable(worker))
            .with_for_update(skip_locked=True)
        )
        if found is None:
            return False
        if found.tries >= MAX_TRIES:
            found.state, found.finished_at = PublicationState.failed, func.now()
            found.error = _("The upload was broken off %(count)s times and is given up.", count=MAX_TRIES)
            return False
        found.state, found.worker, found.tries = PublicationState.running, worker, found.tries + 1
        return True


def _upload(publication_id: int, check: Callable[[], None]) -> str:
    """Upload what a row asks for; the address. Raises `DomainError`."""
    hub.find_token()
    with session_scope() as session:
        wanted = session.get_one(Publication, publication_id)
        project = session.get_one(Project, wanted.project_id)
        terms = Terms(wanted.licence, tuple(wanted.languages))
        repository = make_repository(session, SYSTEM, project, wanted.kind, wanted.number, terms)
        slug, repo, public = project.slug, wanted.repo, wanted.public
    return upload(repository, slug, repo, public=public, check=check)


def _finish(publication_id: int, worker: str, state: PublicationState, **values: Any) -> None:
    """Store how the upload of `worker` ended, unless another one has taken it over."""
    with session_scope() as session:
        session.execute(
            update(Publication)
            .where(
                Publication.id == publication_id,
                Publication.worker == worker,
                Publication.state == PublicationState.running,
            )
            .values(state=state, **values)
            .execution_options(synchronize_session=False)
        )
