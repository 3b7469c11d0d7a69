"""One-time links: an invitation to choose the first password, or a password reset."""

from __future__ import annotations

import secrets
from datetime import timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from app.db.sessions import database_now
from app.errors import NotFound
from app.models import LinkPurpose, OneTimeLink, User
from app.services.accounts import users
from app.services.accounts.passwords import hash_secret, require_passwords
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require_admin
from illume.phrases import _

VALID_FOR = {LinkPurpose.invitation: timedelta(days=7), LinkPurpose.password: timedelta(days=1)}
KEEP_EXPIRED = timedelta(days=30)
SPENT = _("This link has been used, has expired or has been replaced by a newer one. Ask an admin for a new link.")


def make_link(session: Session, actor: Actor, user_id: int, purpose: LinkPurpose) -> tuple[OneTimeLink, str]:
    """Make a link for a person. Returns its row and its plain text, which is not stored; their older links are deleted.

    A reset link leaves the old password valid until the link is used; a new password ends the link. Raises `Forbidden`
    where passwords are switched off.
    """
    require_admin(actor)
    require_passwords()
    user = users.get_user(session, actor, user_id)
    session.execute(delete(OneTimeLink).where(OneTimeLink.user_id == user.id, OneTimeLink.used_at.is_(None)))
    session.execute(delete(OneTimeLink).where(OneTimeLink.expires_at < func.now() - KEEP_EXPIRED))
    plain = secrets.token_urlsafe(32)
    link = OneTimeLink(
        token_hash=hash_secret(plain),
        user_id=user.id,
        purpose=purpose,
        created_by=actor.stored_id,
        expires_at=database_now(session) + VALID_FOR[purpose],
    )
    session.add(link)
    session.flush()
    audit.record(session, actor, f"link.{purpose.value}", f"user:{user.id}")
    return link, plain


def find_open_link(session: Session, user_id: int) -> OneTimeLink | None:
    """The link that a person can still use."""
    return session.scalar(
        select(OneTimeLink).where(
            OneTimeLink.user_id == user_id, OneTimeLink.used_at.is_(None), OneTimeLink.expires_at > func.now()
        )
    )


def find_link(session: Session, plain: str) -> tuple[OneTimeLink, User]:
    """Return the link and its person.

    Raises `NotFound` if the link is spent or the person disabled, `Forbidden` where passwords are switched off.
    """
    require_passwords()
    found = session.execute(
        select(OneTimeLink, User)
        .join(User, User.id == OneTimeLink.user_id)
        .where(
            OneTimeLink.token_hash == hash_secret(plain),
            OneTimeLink.used_at.is_(None),
            OneTimeLink.expires_at > func.now(),
            User.disabled_at.is_(None),
        )
    ).one_or_none()
    if found is None:
        raise NotFound(SPENT)
    return found[0], found[1]


def use_link(session: Session, plain: str, password: str, *, name: str = "") -> User:
    """Set the person's password, and their name if one is given; the link and their browser sessions end.

    Raises `NotFound`, `Invalid`.
    """
    link, user = find_link(session, plain)
    themselves = Actor(user_id=user.id, email=user.email, role=user.role)
    with session.begin_nested():  # a weak password or a bad name leaves the link open
        # If two requests use it at once, only one succeeds.
        spent = session.scalar(
            update(OneTimeLink)
            .where(OneTimeLink.id == link.id, OneTimeLink.used_at.is_(None))
            .values(used_at=func.now())
            .returning(OneTimeLink.id)
            .execution_options(synchronize_session=False)
        )
        if spent is None:
            raise NotFound(SPENT)
        users.set_password(session, themselves, user.id, password)
        if name:
            users.set_name(session, themselves, user.id, name)
    return user
