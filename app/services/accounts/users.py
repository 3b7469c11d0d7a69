"""People, their roles in projects, and their tokens."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime

import idna
from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db.sessions import database_now
from app.errors import Conflict, Forbidden, Invalid, NotFound, Unauthenticated
from app.languages import languages
from app.models import Membership, OneTimeLink, Project, Role, Scope, Token, User, WebSession
from app.models.users import MAX_NAME
from app.services.accounts import credentials
from app.services.accounts.passwords import hash_password, hash_secret, require_passwords
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require_admin, require_scope
from illume.phrases import _

EMAIL_FORM = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+|[^@\s]+@localhost")
MAX_EMAIL = 320
JOINERS = "\u200c\u200d"
"""Invisible, and needed in Persian, Hindi and other scripts."""
DOMAIN = re.compile(r"[A-Za-z0-9.-]+")
MAX_REQUESTS = 1_000_000


# People


def add_user(
    session: Session,
    actor: Actor,
    *,
    email: str,
    role: Role,
    password: str | None = None,
    project_slugs: Sequence[str] = (),
    name: str = "",
) -> User:
    """Add a person as a member of the named projects, with `role`. Without a password they can only use tokens.

    Raises `Conflict` for a known address, `Invalid` for a bad address or name, a weak password or an unknown project,
    `Forbidden` for a password where they are switched off.
    """
    require_admin(actor)
    if password is not None:
        require_passwords()
    email = checked_email(email)
    hashed = None if password is None else hash_password(password)
    user = User(email=email, name=checked_name(name), role=role, password_hash=hashed)
    try:
        with session.begin_nested():
            session.add(user)
            session.flush()
    except IntegrityError as error:
        raise Conflict(_("There is already an account for %(email)s.", email=email), field="email") from error
    set_memberships(session, actor, user, project_slugs)
    audit.record(session, actor, "user.add", f"user:{user.id}", role=role.value)
    return user


def checked_email(text: str) -> str:
    """An e-mail address, a domain in other letters than ASCII in its ASCII form (`xn--`). Raises `Invalid`.

    Another alphabet, or a character without width, could make an address look like that of somebody else.
    """
    email = text.strip()
    if len(email) > MAX_EMAIL or not EMAIL_FORM.fullmatch(email):  # the pattern takes quadratic time
        raise Invalid(_("This is not an email address."), field="email")
    name, _rest, domain = email.rpartition("@")
    if not name.isascii() or not name.isprintable():
        raise Invalid(
            _("The part of an email address before the @ may have only ASCII letters, digits and signs."), field="email"
        )
    try:
        domain = domain if domain.isascii() else idna.encode(domain, uts46=True).decode()
    except (idna.IDNAError, UnicodeError) as error:
        raise Invalid(_("The domain of this email address is not valid."), field="email") from error
    if not DOMAIN.fullmatch(domain):
        raise Invalid(_("The domain of this email address is not valid."), field="email")
    return f"{name}@{domain}"


def checked_name(text: str) -> str:
    """What a person is called, its blanks as single spaces. Raises `Invalid`.

    Invisible characters could make a name look like another. Of them only the joiners of some scripts may be in it.
    """
    name = " ".join(text.split())
    if len(name) > MAX_NAME:
        raise Invalid(_("A name may have at most %(max_name)s characters.", max_name=MAX_NAME), field="name")
    if any(unicodedata.category(letter).startswith("C") and letter not in JOINERS for letter in name):
        raise Invalid(_("A name may have no invisible characters."), field="name")
    return name


def set_name(session: Session, actor: Actor, user_id: int, name: str) -> User:
    """Set what a person is called: one's own, or as an admin anybody's. Raises `Invalid`."""
    user = get_user(session, actor, user_id)
    require_scope(actor, Scope.admin)
    user.name = checked_name(name)
    audit.record(session, actor, "user.name", f"user:{user.id}")  # the name itself could not be erased from the log
    session.flush()
    return user


def set_language(session: Session, actor: Actor, code: str) -> None:
    """Show the pages to `actor` in the language `code`; in that of their browser if it is empty. Raises `Invalid`."""
    if code and code not in languages():
        raise Invalid(_("The pages do not come in this language."), field="language")
    get_user(session, actor, actor.user_id).language = code


def get_user(session: Session, actor: Actor, user_id: int) -> User:
    """Return a person, to an admin or to themselves. Raises `NotFound`, `Forbidden`."""
    if actor.user_id != user_id:
        require_admin(actor)
    user = session.get(User, user_id)
    if user is None:
        raise NotFound(_("There is no such person."))
    return user


def find_user(session: Session, email: str) -> User | None:
    """Find the person with this address, ignoring case."""
    typed = email.strip()
    try:
        known = {typed.lower(), checked_email(typed).lower()}
    except Invalid:
        known = {typed.lower()}
    return session.scalar(select(User).where(func.lower(User.email).in_(known)))


def list_users(session: Session, actor: Actor, *, limit: int = 1000, after: int = 0) -> list[User]:
    """List people by id, for an admin."""
    require_admin(actor)
    return list(
        session.scalars(select(User).where(User.id > after, User.erased_at.is_(None)).order_by(User.id).limit(limit))
    )


def list_project_roles(session: Session, user_ids: Sequence[int]) -> dict[int, dict[str, Role]]:
    """The roles of people in their projects: user id -> project slug -> role."""
    rows = session.execute(
        select(Membership.user_id, Project.slug, Membership.role)
        .join(Project, Project.id == Membership.project_id)
        .where(Membership.user_id.in_(user_ids))
        .order_by(Project.slug)
    )
    found: dict[int, dict[str, Role]] = {user_id: {} for user_id in user_ids}
    for user_id, slug, role in rows:
        found[user_id][slug] = Role(role)
    return found


def set_memberships(session: Session, actor: Actor, user: User, project_slugs: Sequence[str]) -> None:
    """Make `user` a member of exactly the named projects, with their own role. Raises `Invalid` for an unknown one."""
    require_admin(actor)
    projects = session.scalars(select(Project).where(Project.slug.in_(project_slugs)))
    known = {project.slug: project.id for project in projects}
    for slug in project_slugs:
        if slug not in known:
            raise Invalid(_("There is no project '%(slug)s'.", slug=slug), field="projects")
    session.execute(
        delete(Membership).where(Membership.user_id == user.id, Membership.project_id.not_in(known.values()))
    )
    for project_id in known.values():
        session.merge(Membership(user_id=user.id, project_id=project_id, role=user.role))
    session.flush()


def set_project_roles(session: Session, actor: Actor, user: User, roles: Mapping[str, Role]) -> None:
    """Make `user` a member of exactly these projects, by slug, in these roles. Raises `Invalid` for an unknown one."""
    require_admin(actor)
    known = {one.slug: one.id for one in session.scalars(select(Project).where(Project.slug.in_(roles)))}
    if unknown := next((slug for slug in roles if slug not in known), None):
        raise Invalid(_("There is no project '%(unknown)s'.", unknown=unknown), field="projects")
    session.execute(
        delete(Membership).where(Membership.user_id == user.id, Membership.project_id.not_in(known.values()))
    )
    for slug, role in roles.items():
        session.merge(Membership(user_id=user.id, project_id=known[slug], role=role))
    session.flush()
    shown = {slug: role.value for slug, role in roles.items()}
    audit.record(session, actor, "user.projects", f"user:{user.id}", projects=shown)


def set_role(session: Session, actor: Actor, user_id: int, role: Role, *, in_projects: bool = True) -> User:
    """Change a person's role, by default in their projects too. Raises `Conflict` for the last admin."""
    require_admin(actor)
    user = get_user(session, actor, user_id)
    if user.role is Role.admin and role is not Role.admin:
        _require_another_admin(session, user)
    user.role = role
    if in_projects:
        session.execute(update(Membership).where(Membership.user_id == user.id).values(role=role))
    audit.record(session, actor, "user.role", f"user:{user.id}", role=role.value)
    session.flush()
    return user


def set_disabled(session: Session, actor: Actor, user_id: int, disabled: bool) -> User:
    """Disable a person, with immediate effect, or enable them again. Raises `Conflict` for the last admin."""
    require_admin(actor)
    user = get_user(session, actor, user_id)
    if disabled:
        if user.role is Role.admin and user.disabled_at is None:
            _require_another_admin(session, user)
        user.disabled_at = user.disabled_at or database_now(session)
        session.execute(delete(WebSession).where(WebSession.user_id == user.id))
        session.execute(delete(OneTimeLink).where(OneTimeLink.user_id == user.id, OneTimeLink.used_at.is_(None)))
    else:
        user.disabled_at = None
    audit.record(session, actor, "user.disable" if disabled else "user.enable", f"user:{user.id}")
    session.flush()
    return user


def set_password(session: Session, actor: Actor, user_id: int, password: str) -> User:
    """Set a person's password; their browser sessions and open one-time links end.

    Raises `Invalid` for a weak one, `Forbidden` where passwords are switched off.
    """
    require_passwords()
    user = get_user(session, actor, user_id)
    require_scope(actor, Scope.admin)
    user.password_hash = hash_password(password)
    session.execute(delete(WebSession).where(WebSession.user_id == user.id))
    session.execute(delete(OneTimeLink).where(OneTimeLink.user_id == user.id, OneTimeLink.used_at.is_(None)))
    audit.record(session, actor, "user.password", f"user:{user.id}")
    session.flush()
    return user


def _require_another_admin(session: Session, user: User) -> None:
    # The rows are locked, so that two admins cannot remove each other at the same time.
    others = session.scalars(
        select(User.id).where(User.role == Role.admin, User.disabled_at.is_(None)).order_by(User.id).with_for_update()
    )
    if not [other for other in others if other != user.id]:
        raise Conflict(_("This is the last admin. Make someone else an admin first."))


# Tokens


def create_token(
    session: Session,
    actor: Actor,
    *,
    user_id: int,
    scope: Scope,
    name: str = "",
    expires_at: datetime | None = None,
    max_open: int | None = None,
    requests_per_minute: int | None = None,
) -> tuple[Token, str]:
    """Create a token for oneself, or as an admin for anybody. Returns its row and its text, which is not stored."""
    user = get_user(session, actor, user_id)
    require_scope(actor, Scope.admin)
    if len(name) > 200:
        raise Invalid(_("A token's name has at most 200 characters."), field="name")
    if max_open is not None and not 1 <= max_open <= 1000:
        raise Invalid(_("max_open must be from 1 to 1000."), field="max_open")
    if requests_per_minute is not None and not 1 <= requests_per_minute <= MAX_REQUESTS:
        raise Invalid(
            _("requests_per_minute must be from 1 to %(max_requests)s.", max_requests=MAX_REQUESTS),
            field="requests_per_minute",
        )
    for field, value in (("max_open", max_open), ("requests_per_minute", requests_per_minute)):
        if value is not None and actor.role is not Role.admin:
            raise Forbidden(_("Only an admin may set %(field)s.", field=field), field=field)
    plain = "ill_" + secrets.token_urlsafe(32)
    token = Token(
        user_id=user.id,
        token_hash=hash_secret(plain),
        scope=scope,
        name=name,
        expires_at=expires_at,
        max_open=max_open,
        requests_per_minute=requests_per_minute,
    )
    session.add(token)
    session.flush()
    audit.record(session, actor, "token.add", f"token:{token.id}", user=user.id, scope=scope.value)
    return token, plain


def list_tokens(session: Session, actor: Actor, user_id: int) -> list[Token]:
    """List a person's tokens that are not revoked, for themselves or an admin."""
    user = get_user(session, actor, user_id)
    return list(
        session.scalars(select(Token).where(Token.user_id == user.id, Token.revoked_at.is_(None)).order_by(Token.id))
    )


def revoke_token(session: Session, actor: Actor, token_id: int) -> None:
    """Revoke a token with immediate effect: one's own or, as an admin, anybody's. Raises `NotFound`."""
    token = session.get(Token, token_id)
    if token is None or (token.user_id != actor.user_id and actor.role is not Role.admin):
        raise NotFound(_("There is no such token."))
    require_scope(actor, Scope.admin)
    token.revoked_at = token.revoked_at or database_now(session)
    audit.record(session, actor, "token.revoke", f"token:{token.id}")
    session.flush()


def actor_for_token(session: Session, plain: str) -> Actor:
    """Return the bearer of a token. Raises `Unauthenticated`."""
    actor = find_actor_for_token(session, plain)
    if actor is None:
        raise Unauthenticated(credentials.UNKNOWN)
    return actor


def find_actor_for_token(session: Session, plain: str) -> Actor | None:
    """The bearer of a token; None where it is unknown, expired or revoked, or its owner disabled."""
    row = session.execute(credentials.BEARER.clause, {"hash": hash_secret(plain)}).mappings().one_or_none()
    if row is None:
        return None
    if row["use_is_news"]:
        session.execute(credentials.NOTE_USE.clause, {"token": row["token_id"]})
    return credentials.bearer(row)


# Pseudonyms


def pseudonym(project_id: int, user_id: int, secret: str) -> str:
    """The name of a critic in a project's exports: always the same there, and not traceable in other projects."""
    digest = hmac.new(secret.encode(), f"{project_id} {user_id}".encode(), hashlib.sha256).hexdigest()
    return f"critic-{digest[:12]}"
