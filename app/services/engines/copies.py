"""Copies of adapters in the folder that workers share with model servers."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.models import StoreRemoval
from app.services.kernel.store import get_store
from app.settings import get_settings

log = logging.getLogger(__name__)

SCHEDULED = "adapters/"
"""How the keys of copies begin among the files that are scheduled for removal. Keys of the store are hashes."""


def adapters_dir() -> Path:
    """The folder in which model servers find adapters, as this machine sees it."""
    folder = get_settings().adapters_dir
    return Path(folder) if folder else get_settings().data_dir / "adapters"


def put_copy(key: str, name: str) -> None:
    """Put an adapter of the store where servers find it, for any account to read: theirs are other ones than ours."""
    _open_shared_folder()
    folder = get_store().fetch_folder(key, adapters_dir() / name)
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _open_shared_folder() -> None:
    """Make the folder of the copies for any account to enter. One that an admin made keeps its mode."""
    folder = adapters_dir()
    is_ours = not get_settings().adapters_dir or not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if is_ours:
        folder.chmod(0o755)


def has_copy(name: str) -> bool:
    """Whether there is a copy of this name."""
    return (adapters_dir() / name).exists()


def remove_copy(name: str) -> None:
    """Remove the copy of this name; that there is none is no error. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(adapters_dir() / name)


def schedule_removal(session: Session, names: Iterable[str]) -> None:
    """Have copies removed after the commit, by a worker: one that hands adapters over sees the shared folder."""
    rows = [{"key": f"{SCHEDULED}{name}"} for name in sorted(names)]
    if rows:
        session.execute(insert(StoreRemoval).on_conflict_do_nothing(), rows)


def remove_scheduled(session: Session) -> None:
    """Remove the copies that are scheduled for removal. One that cannot be removed is tried again later."""
    is_copy = StoreRemoval.key.startswith(SCHEDULED, autoescape=True)
    keys = session.scalars(select(StoreRemoval.key).where(is_copy).with_for_update(skip_locked=True)).all()
    removed = []
    for key in keys:
        try:
            remove_copy(key.removeprefix(SCHEDULED))
        except OSError as error:
            log.warning("a copy of an adapter is removed later: %s", error)
        else:
            removed.append(key)
    session.execute(delete(StoreRemoval).where(StoreRemoval.key.in_(removed)))
