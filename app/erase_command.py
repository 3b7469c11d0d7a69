"""`illume erase`: erase a person, an image or a project from a terminal, and stay until it is done."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.orm import Session

from app.connect import Refused
from app.db import session_scope
from app.models import Erasure, ErasureState
from app.services import erasing, erasing_running, users
from app.services.actors import SYSTEM
from app.services.erasing import Loss

KINDS = ("person", "image", "project")
Say = Callable[[str], None]


def erase(kind: str, subject: str, *, ask: Callable[[], bool], say: Say) -> int:
    """Say what would go, ask whether to go on, and erase it."""
    with session_scope() as session:
        key = key_of(session, kind, subject)
        say(loss_words(loss_of(session, kind, key)))
    if not ask():
        say("Nothing was erased.")
        return 1
    with session_scope() as session:
        erasure_id = ask_for(session, kind, key).id
    erasing_running.run(erasure_id)
    with session_scope() as session:
        found = session.get_one(Erasure, erasure_id)
        if found.state is not ErasureState.done:
            say(f"Asked for, and goes on by itself: {found.error or 'a worker is at it'}")
            return 0
        say(
            "Erased: " + (", ".join(f"{n} {name}" for name, n in found.counts.items() if n) or "nothing else was there")
        )
    return 0


def key_of(session: Session, kind: str, subject: str) -> str:
    """A person's id, by their address; an image's sha256 and a project's slug as they are. Raises Refused."""
    if kind != "person":
        return subject
    user = users.find_user(session, subject)
    if user is None:
        raise Refused(f"There is nobody with the address {subject}.")
    return str(user.id)


def loss_of(session: Session, kind: str, key: str) -> Loss:
    """What would go."""
    if kind == "person":
        return erasing.loss_of_person(session, SYSTEM, int(key))
    return (erasing.loss_of_image if kind == "image" else erasing.loss_of_project)(session, SYSTEM, key)


def ask_for(session: Session, kind: str, key: str) -> Erasure:
    """Have it erased."""
    if kind == "person":
        return erasing.erase_person(session, SYSTEM, int(key))
    return (erasing.erase_image if kind == "image" else erasing.erase_project)(session, SYSTEM, key)


def loss_words(loss: Loss) -> str:
    """What would go, for a person to read."""
    counts = {name: getattr(loss, name) for name in ("verdicts", "prompts", "images", "tokens", "snapshots")}
    more = {"images"} if loss.images_at_least else set()
    listed = (
        ", ".join(f"{'at least ' if name in more else ''}{n} {name}" for name, n in counts.items() if n)
        or "nothing but the name"
    )
    return f"Erasing {loss.name} takes or touches: {listed}. It cannot be undone."
