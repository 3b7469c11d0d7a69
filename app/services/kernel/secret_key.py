"""Whether this machine has the secret key of the installation. The database keeps a check of it, never the key."""

from __future__ import annotations

import hashlib
import hmac
import logging

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.db.sessions import session_scope
from app.models import Installation
from app.settings import get_settings

log = logging.getLogger(__name__)

CHECKED_TEXT = b"check of the secret key"
REMEDY = (
    "Set ILLUME_SECRET_KEY to the web server's; if none is set there, copy secret.key from its data folder into the "
    "one here. If the key was changed on purpose, start the web server with the new one first."
)
CHANGED = (
    "The secret key (ILLUME_SECRET_KEY, or secret.key in the data folder) is not the one that this installation "
    "had. Webhooks are signed with other secrets now: renew them. The stored keys of model servers cannot be "
    "opened: enter them again. Critics have other pseudonyms in exports, but not in snapshots that exist. Sign-ins "
    "that were under way at a provider have to begin again. Workers that have the former key refuse to start. If "
    "this was a mistake, start again with the former key."
)


def make_check(key: str) -> str:
    """What the database keeps of a secret key: it shows whether another key is the same, and cannot be reversed."""
    return hmac.new(key.encode(), CHECKED_TEXT, hashlib.sha256).hexdigest()


def is_another(session: Session) -> bool:
    """Whether this process has another key than the web server. False where no web server has stored a check yet."""
    stored = session.scalar(select(Installation.key_check))
    return stored is not None and not hmac.compare_digest(stored, make_check(get_settings().secret_key))


def replace_check(session: Session) -> bool:
    """Store the check of this process's key. Returns whether it took the place of another key's.

    Where several processes do so at once, the first one replaces it, and the others find it replaced.
    """
    check = make_check(get_settings().secret_key)
    if session.scalar(select(Installation.key_check)) == check:
        return False  # a database that cannot be written to is no obstacle then
    session.execute(insert(Installation).values(key_check=check).on_conflict_do_nothing())
    replaced = session.scalar(
        update(Installation)
        .where(Installation.key_check != check)
        .values(key_check=check)
        .returning(Installation.id)
        .execution_options(synchronize_session=False)
    )
    return replaced is not None


def store_check() -> None:
    """Store the check of a web server's key as it starts; log a warning if it had another one before.

    Without a database, or one whose tables are older, the server starts all the same and the next start stores it.
    """
    if not get_settings().secret_key:
        return  # what needs a key says so when it is used
    try:
        with session_scope() as session:
            is_changed = replace_check(session)
    except SQLAlchemyError as error:
        log.warning("The check of the secret key was not stored: %s", str(error).partition("\n")[0])
        return
    if is_changed:
        log.warning(CHANGED)
