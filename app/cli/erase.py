"""`illume erase`: permanently erase a person, an image or a project, and wait until it is done."""

from __future__ import annotations

from collections.abc import Callable

import click
from sqlalchemy.orm import Session

from app.cli.terminal import Say, confirmer, data_dir_option, prepared, say
from app.db.sessions import session_scope
from app.models import Erasure, ErasureState
from app.processes.connect import Refused
from app.services.accounts import users
from app.services.erasure import erasures, running
from app.services.erasure.erasures import ErasureImpact
from app.services.kernel.actors import SYSTEM

KINDS = ("person", "image", "project")


@click.command("erase")
@click.argument("kind", type=click.Choice(KINDS), help="What to erase.")
@click.argument("subject", help="A person's address, an image's sha256, or a project's slug.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@data_dir_option
def erase_command(kind: str, subject: str, *, yes: bool) -> int:
    """Permanently erase a person, an image or a project.

    Shows what would be lost and asks for confirmation first.
    """
    with prepared():
        return erase(kind, subject, ask=confirmer("Erase permanently?", yes=yes), say=say)


def erase(kind: str, subject: str, *, ask: Callable[[], bool], say: Say) -> int:
    """Show what would be lost, ask for confirmation, and erase it."""
    with session_scope() as session:
        key = find_key(session, kind, subject)
        say(impact_words(load_impact(session, kind, key)))
    if not ask():
        say("Nothing was erased.")
        return 1
    with session_scope() as session:
        erasure_id = request_erasure(session, kind, key).id
    running.run_erasure(erasure_id)
    with session_scope() as session:
        found = session.get_one(Erasure, erasure_id)
        if found.state is not ErasureState.done:
            say(f"Requested. It continues automatically: {found.error or 'a worker is carrying it out'}")
            return 0
        say(
            "Erased: " + (", ".join(f"{n} {name}" for name, n in found.counts.items() if n) or "there was nothing else")
        )
    return 0


def find_key(session: Session, kind: str, subject: str) -> str:
    """A person's id, found by email; or an image's sha256 or a project's slug, unchanged. Raises Refused."""
    if kind != "person":
        return subject
    user = users.find_user(session, subject)
    if user is None:
        raise Refused(f"There is no account for {subject}.")
    return str(user.id)


def load_impact(session: Session, kind: str, key: str) -> ErasureImpact:
    """What would be lost."""
    if kind == "person":
        return erasures.person_impact(session, SYSTEM, int(key))
    return (erasures.image_impact if kind == "image" else erasures.project_impact)(session, SYSTEM, key)


def request_erasure(session: Session, kind: str, key: str) -> Erasure:
    """Request the erasure."""
    if kind == "person":
        return erasures.erase_person(session, SYSTEM, int(key))
    return (erasures.erase_image if kind == "image" else erasures.erase_project)(session, SYSTEM, key)


def impact_words(impact: ErasureImpact) -> str:
    """What would be lost, as a sentence."""
    counts = {name: getattr(impact, name) for name in ("verdicts", "prompts", "images", "tokens", "snapshots")}
    more = {"images"} if impact.images_at_least else set()
    listed = (
        ", ".join(f"{'at least ' if name in more else ''}{n} {name}" for name, n in counts.items() if n)
        or "nothing but the name"
    )
    return f"Erasing {impact.name} removes or changes: {listed}. This cannot be undone."
