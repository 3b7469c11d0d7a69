"""Checks of base models before a project uses one: requested by an admin, run by a worker."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app import queue
from app.db.base import phrased
from app.db.sessions import database_now
from app.errors import Invalid, NotFound
from app.models import BaseCheck, CheckState
from app.services.kernel.actors import Actor, require_admin
from app.services.projects.base_models import STARTER, refuse_unlisted
from illume.phrases import _, kept

VALID_FOR = timedelta(days=1)
EXPIRES_AFTER = timedelta(hours=1)
RETRY_AFTER = timedelta(minutes=10)
# The parts of a model folder, each with its possible file names.
PARTS = (
    ("its configuration (config.json)", ("config.json",)),
    ("its weights (*.safetensors or *.bin)", ("*.safetensors", "*.bin")),
    ("its tokenizer (tokenizer.json)", ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")),
    ("its image processor (preprocessor_config.json)", ("preprocessor_config.json", "processor_config.json")),
)


def newest_check(session: Session, base_model: str) -> BaseCheck | None:
    """The newest check of a base model within the last day."""
    return session.scalar(
        select(BaseCheck)
        .where(BaseCheck.base_model == base_model, BaseCheck.created_at > func.now() - VALID_FOR)
        .order_by(BaseCheck.id.desc())
        .limit(1)
        .execution_options(populate_existing=True)
    )


def is_good(session: Session, base_model: str) -> bool:
    """Whether a recent check of the base model passed. The starter model always passes."""
    if base_model == STARTER:
        return True
    found = newest_check(session, base_model)
    return found is not None and found.state is CheckState.passed


def reads_pictures_first(session: Session, base_model: str) -> bool:
    """Whether the newest check that could see it found that the model reads all pictures of a prompt first."""
    found = session.scalar(
        select(BaseCheck.pictures_first)
        .where(BaseCheck.base_model == base_model, BaseCheck.pictures_first.is_not(None))
        .order_by(BaseCheck.id.desc())
        .limit(1)
    )
    return bool(found)


def request_check(session: Session, actor: Actor, base_model: str) -> BaseCheck:
    """Request a check by a worker. A check that is already queued is reused."""
    require_admin(actor)
    found = newest_check(session, base_model)
    if found is None or found.state is not CheckState.queued:
        found = BaseCheck(base_model=base_model, created_by=actor.stored_id)
        session.add(found)
        session.flush()
        session.refresh(found)
    queue.send(session, queue.CHECK_BASE, found.id)
    return found


def check_folder(actor: Actor, base_model: str) -> None:
    """Raise `Invalid` for a local folder that is not listed, or in which a part of a model is missing."""
    refuse_unlisted(actor, base_model)
    folder = Path(base_model)
    if not folder.is_absolute() or not folder.is_dir():
        return
    missing = [words for words, names in PARTS if not any(any(folder.glob(name)) for name in names)]
    if missing:
        raise Invalid(
            _("The folder '%(base_model)s' is missing %(list)s.", base_model=base_model, list=", ".join(missing)),
            field="base_model",
        )


def require_check(session: Session, actor: Actor, base_model: str) -> BaseCheck | None:
    """Request the check that a base model needs before a project may use it; None if it needs none.

    Raises `Invalid` for a local folder in which a part is missing, and for a model whose check just failed.
    """
    if is_good(session, base_model):
        return None
    check_folder(actor, base_model)
    found = newest_check(session, base_model)
    since = database_now(session) - RETRY_AFTER
    if found and found.state is CheckState.failed and found.finished_at and found.finished_at > since:
        raise Invalid(
            _(
                "'%(base_model)s' cannot be used as the base model: %(detail)s",
                base_model=base_model,
                detail=kept(found.detail, found.detail_phrase),
            ),
            field="base_model",
        )
    return request_check(session, actor, base_model)


def get_check(session: Session, actor: Actor, check_id: int) -> BaseCheck:
    """A check of a base model. Raises `NotFound`."""
    require_admin(actor)
    found = session.get(BaseCheck, check_id, populate_existing=True)
    if found is None:
        raise NotFound(_("There is no such check."))
    return found


# The worker's side


def list_waiting(session: Session) -> list[int]:
    """The ids of checks that wait for a worker. Checks requested long ago are ignored."""
    query = select(BaseCheck.id).where(
        BaseCheck.state == CheckState.queued, BaseCheck.created_at > func.now() - EXPIRES_AFTER
    )
    return list(session.scalars(query.order_by(BaseCheck.id)))


def base_to_check(session: Session, check_id: int) -> str | None:
    """The base model of a queued check; None if the check is finished."""
    return session.scalar(
        select(BaseCheck.base_model).where(BaseCheck.id == check_id, BaseCheck.state == CheckState.queued)
    )


def finish(session: Session, check_id: int, *, good: bool, detail: str, pictures_first: bool | None = None) -> None:
    """Store the result of a check, unless it has one already. So a check needs no lease: repeated ones are harmless."""
    session.execute(
        update(BaseCheck)
        .where(BaseCheck.id == check_id, BaseCheck.state == CheckState.queued)
        .values(
            state=CheckState.passed if good else CheckState.failed,
            **phrased(detail=detail),
            pictures_first=pictures_first,
            finished_at=func.now(),
        )
        .execution_options(synchronize_session=False)
    )
