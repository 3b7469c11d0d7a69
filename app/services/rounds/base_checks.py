"""Looks at base models before a project takes one: asked for by an admin, done by a worker."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app import queue
from app.db.sessions import database_now
from app.errors import Invalid, NotFound
from app.models import BaseCheck, CheckState
from app.services.kernel.actors import Actor, require_admin
from app.services.rounds.versions import STARTER

GOOD_FOR = timedelta(days=1)
WAITED_FOR = timedelta(hours=1)
ASKED_AGAIN_AFTER = timedelta(minutes=10)
# What a folder with a model has, each by the names it may go by.
PARTS = (
    ("its configuration (config.json)", ("config.json",)),
    ("its weights (*.safetensors or *.bin)", ("*.safetensors", "*.bin")),
    ("its tokenizer (tokenizer.json)", ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")),
    ("its image processor (preprocessor_config.json)", ("preprocessor_config.json", "processor_config.json")),
)


def newest(session: Session, base_model: str) -> BaseCheck | None:
    """The last look at a base model, where it is of the last day."""
    return session.scalar(
        select(BaseCheck)
        .where(BaseCheck.base_model == base_model, BaseCheck.created_at > func.now() - GOOD_FOR)
        .order_by(BaseCheck.id.desc())
        .limit(1)
        .execution_options(populate_existing=True)
    )


def is_good(session: Session, base_model: str) -> bool:
    """Whether a worker could use the base model of late; the one shipped with this distribution always is."""
    if base_model == STARTER:
        return True
    found = newest(session, base_model)
    return found is not None and found.state is CheckState.passed


def ask(session: Session, actor: Actor, base_model: str) -> BaseCheck:
    """Have a worker look at a base model. One that waits already is not asked for twice."""
    require_admin(actor)
    found = newest(session, base_model)
    if found is None or found.state is not CheckState.queued:
        found = BaseCheck(base_model=base_model, created_by=actor.stored_id)
        session.add(found)
        session.flush()
        session.refresh(found)
    queue.send(session, queue.CHECK_BASE, found.id)
    return found


def check_folder(base_model: str) -> bool:
    """Whether a base model is a folder that is seen from here and has all it needs. Raises `Invalid` for half a one."""
    folder = Path(base_model)
    if not folder.is_absolute() or not folder.is_dir():
        return False
    missing = [words for words, names in PARTS if not any(any(folder.glob(name)) for name in names)]
    if missing:
        raise Invalid(f"The folder '{base_model}' lacks {', '.join(missing)}.", field="base_model")
    return True


def look_first(session: Session, actor: Actor, base_model: str) -> BaseCheck | None:
    """The look that a worker takes at a base model before a project may have it; None where it is known to be good.

    A folder is looked at here. Raises `Invalid` for one that lacks something, and for what a worker just found bad.
    """
    if is_good(session, base_model) or check_folder(base_model):
        return None
    found = newest(session, base_model)
    since = database_now(session) - ASKED_AGAIN_AFTER
    if found and found.state is CheckState.failed and found.finished_at and found.finished_at > since:
        raise Invalid(f"'{base_model}' cannot be the base model: {found.detail}", field="base_model")
    return ask(session, actor, base_model)


def get_check(session: Session, actor: Actor, check_id: int) -> BaseCheck:
    """A look at a base model. Raises `NotFound`."""
    require_admin(actor)
    found = session.get(BaseCheck, check_id, populate_existing=True)
    if found is None:
        raise NotFound("There is no such check.")
    return found


# The worker's side


def waiting(session: Session) -> list[int]:
    """The ids of the looks that wait for a worker; those asked for long ago are nobody's concern any more."""
    query = select(BaseCheck.id).where(
        BaseCheck.state == CheckState.queued, BaseCheck.created_at > func.now() - WAITED_FOR
    )
    return list(session.scalars(query.order_by(BaseCheck.id)))


def base_to_check(session: Session, check_id: int) -> str | None:
    """The base model to look at; None where that is done."""
    return session.scalar(
        select(BaseCheck.base_model).where(BaseCheck.id == check_id, BaseCheck.state == CheckState.queued)
    )


def finish(session: Session, check_id: int, *, good: bool, detail: str) -> None:
    """Say what came of a look. The first answer stands, so a check needs no lease: two looks at once do no harm."""
    session.execute(
        update(BaseCheck)
        .where(BaseCheck.id == check_id, BaseCheck.state == CheckState.queued)
        .values(state=CheckState.passed if good else CheckState.failed, detail=detail, finished_at=func.now())
        .execution_options(synchronize_session=False)
    )
