"""Signing in and out: rate-limited attempts, and browser sessions."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.db.sessions import database_now
from app.errors import NotFound, TooMany, Unauthenticated
from app.models import Scope, SignInAttempt, User, WebSession
from app.models.users import MAX_BROWSER
from app.services.accounts import credentials, known_browsers, passwords, users
from app.services.accounts.passwords import hash_secret
from app.services.accounts.users import find_user
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require_scope
from app.settings import get_settings
from illume.phrases import _

ATTEMPT_WINDOW = 60
WRONG_CREDENTIALS = _("Wrong email address or password.")


def check_password(session: Session, email: str, password: str, *, address: str, browser: str = "") -> User:
    """Return the person who signs in with this password from this network address.

    `browser` is the cookie of the browsers that people are known in. Raises `Unauthenticated`, `Forbidden` where
    passwords are switched off, and `TooMany` after a few failures a minute for the account, known or not, or many for
    the address. A browser that the person has signed in with before has a count of its own, so that nobody can lock
    them out there. Only failures count; as many more may be tried at once as the gate lets in. This is the one service
    that commits: a failure must stay counted even though the request fails, and no transaction is open while a
    password is checked.
    """
    passwords.require_passwords()
    user = find_user(session, email)
    limits = _limits(email, address, known_browsers.find_entry(browser, user) if user is not None else None)
    stored = user.password_hash if user is not None and user.disabled_at is None else None
    _refuse_after_failures(session, limits)
    session.commit()
    fits = passwords.verify_password(stored or passwords.dummy_hash(), password) and stored is not None
    if not fits or user is None:
        session.add_all(SignInAttempt(key=key) for key in limits)
        session.commit()
        raise Unauthenticated(WRONG_CREDENTIALS)
    if passwords.hasher().check_needs_rehash(stored or ""):
        user.password_hash = passwords.hasher().hash(password)
    return user


def _limits(email: str, address: str, known_browser: str | None) -> dict[str, int]:
    """How many failures are allowed in `ATTEMPT_WINDOW`, by what they are counted under."""
    settings = get_settings()
    if known_browser is not None:
        return {hash_secret(f"browser {known_browser}"): settings.sign_in_tries}
    return {
        hash_secret(f"account {email.strip().lower()}"): settings.sign_in_tries,
        hash_secret(f"address {address}"): settings.sign_in_tries_per_address,
    }


def _refuse_after_failures(session: Session, limits: Mapping[str, int]) -> None:
    """Raise `TooMany` where one of the counts has reached its limit."""
    since_first = func.extract("epoch", func.now() - func.min(SignInAttempt.at))
    recent = select(SignInAttempt.key, func.count(), since_first).where(
        SignInAttempt.key.in_(limits), SignInAttempt.at > func.now() - timedelta(seconds=ATTEMPT_WINDOW)
    )
    for key, count, seconds in session.execute(recent.group_by(SignInAttempt.key)):
        if count >= limits[key]:
            wait = max(1, ATTEMPT_WINDOW - int(seconds))
            raise TooMany(
                _("Too many attempts to sign in: try again in %(wait)s seconds.", wait=wait), retry_after=wait
            )


def open_web_session(session: Session, user: User, *, browser: str = "") -> tuple[str, str]:
    """Sign a browser in, which calls itself `browser`. Returns the cookie's value and the CSRF token.

    Only the cookie's hash is stored.
    """
    cookie, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    expires = database_now(session) + timedelta(hours=get_settings().session_hours)
    session.add(
        WebSession(
            token_hash=hash_secret(cookie),
            user_id=user.id,
            csrf_token=csrf,
            browser=browser[:MAX_BROWSER],
            expires_at=expires,
        )
    )
    session.flush()
    return cookie, csrf


def actor_for_cookie(session: Session, cookie: str) -> tuple[Actor, str] | None:
    """Who is behind a browser's cookie, and its CSRF token; None when it is unknown, over, or its person disabled."""
    row = session.execute(credentials.SIGNED_IN.clause, {"hash": hash_secret(cookie)}).mappings().one_or_none()
    if row is None:
        return None
    if row["seen_is_news"]:
        session.execute(credentials.NOTE_SEEN.clause, {"hash": row["token_hash"]})
    return credentials.signed_in(row)


@dataclass(frozen=True, slots=True)
class SessionShown:
    """A browser in which a person is signed in. `id` tells it from the others and is no secret."""

    id: str
    browser: str
    created_at: datetime
    last_seen_at: datetime
    is_current: bool


def list_sessions(session: Session, actor: Actor, user_id: int, *, cookie: str = "") -> list[SessionShown]:
    """The browsers in which a person is signed in: the one with this cookie first, then the last seen.

    People see their own, admins those of anybody. Raises `Forbidden`, `NotFound`.
    """
    user = users.get_user(session, actor, user_id)
    rows = session.scalars(select(WebSession).where(WebSession.user_id == user.id, WebSession.expires_at > func.now()))
    current = hash_secret(cookie)
    shown = [
        SessionShown(
            _session_id(row.token_hash), row.browser, row.created_at, row.last_seen_at, row.token_hash == current
        )
        for row in rows
    ]
    return sorted(shown, key=lambda one: (one.is_current, one.last_seen_at, one.id), reverse=True)


def _session_id(token_hash: str) -> str:
    return hash_secret(f"session {token_hash}")[:32]


def close_one_session(session: Session, actor: Actor, session_id: str) -> None:
    """Sign the actor out of one browser. Raises `NotFound` where it is not theirs or has ended."""
    require_scope(actor, Scope.write)
    rows = session.scalars(select(WebSession).where(WebSession.user_id == actor.user_id))
    found = next((row for row in rows if _session_id(row.token_hash) == session_id), None)
    if found is None:
        raise NotFound(_("You have no such session: it may have ended already."))
    session.delete(found)
    session.flush()
    audit.record(session, actor, "user.sign_out", f"user:{actor.user_id}", browsers=1)


def close_all_sessions(session: Session, actor: Actor, user_id: int, *, keep: str = "") -> int:
    """Sign a person out of all browsers, oneself or as an admin anybody. Returns how many. Tokens stay valid.

    The browser with the cookie `keep` stays signed in.
    """
    user = users.get_user(session, actor, user_id)
    require_scope(actor, Scope.write)
    of_them = delete(WebSession).where(WebSession.user_id == user.id, WebSession.token_hash != hash_secret(keep))
    closed = len(session.scalars(of_them.returning(WebSession.token_hash)).all())
    audit.record(session, actor, "user.sign_out", f"user:{user.id}", browsers=closed)
    return closed


def close_web_session(session: Session, cookie: str) -> None:
    """Sign a browser out."""
    session.execute(delete(WebSession).where(WebSession.token_hash == hash_secret(cookie)))
