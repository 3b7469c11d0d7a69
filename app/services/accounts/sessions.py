"""Signing in and out: rate-limited attempts, and browser sessions."""

from __future__ import annotations

import secrets
from datetime import timedelta

from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from app.db.sessions import database_now
from app.errors import TooMany, Unauthenticated
from app.models import SignInAttempt, User, WebSession
from app.services.accounts import credentials, passwords
from app.services.accounts.passwords import hash_secret
from app.services.accounts.users import find_user
from app.services.kernel.actors import Actor
from app.settings import get_settings

ATTEMPT_WINDOW = 60
WRONG_CREDENTIALS = "The email address or the password is wrong."


def check_password(session: Session, email: str, password: str, *, address: str) -> User:
    """Return the person who signs in with this password from this network address.

    Raises `Unauthenticated`, and `TooMany` after a few failures a minute for the account, known or not, or for the
    address. This is the one service that commits: an attempt must stay counted even though the sign-in fails, and its
    locks must not be held while a password is checked.
    """
    keys = sorted((hash_secret(f"account {email.strip().lower()}"), hash_secret(f"address {address}")))
    tries = _count_attempt(session, keys)
    session.commit()
    user = find_user(session, email)
    stored = user.password_hash if user is not None and user.disabled_at is None else None
    fits = passwords.verify_password(stored or passwords.dummy_hash(), password) and stored is not None
    if not fits or user is None:
        raise Unauthenticated(WRONG_CREDENTIALS)
    session.execute(delete(SignInAttempt).where(SignInAttempt.id.in_(tries)))
    if passwords.hasher().check_needs_rehash(stored or ""):
        user.password_hash = passwords.hasher().hash(password)
    return user


def _count_attempt(session: Session, keys: list[str]) -> list[int]:
    """Count an attempt under each of `keys`, which are sorted to avoid deadlocks. Returns the ids of its rows."""
    limit = get_settings().sign_in_tries
    for key in keys:
        session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 7))"), {"key": key})
    since_first = func.extract("epoch", func.now() - func.min(SignInAttempt.at))
    recent = select(SignInAttempt.key, func.count(), since_first).where(
        SignInAttempt.key.in_(keys), SignInAttempt.at > func.now() - timedelta(seconds=ATTEMPT_WINDOW)
    )
    for _, count, seconds in session.execute(recent.group_by(SignInAttempt.key)):
        if count >= limit:
            wait = max(1, ATTEMPT_WINDOW - int(seconds))
            raise TooMany(f"Too many attempts to sign in: wait {wait} seconds.", retry_after=wait)
    rows = [SignInAttempt(key=key) for key in keys]
    session.add_all(rows)
    session.flush()
    return [row.id for row in rows]


def open_web_session(session: Session, user: User) -> tuple[str, str]:
    """Sign a browser in. Returns the cookie's value and the CSRF token; only the cookie's hash is stored."""
    cookie, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    expires = database_now(session) + timedelta(hours=get_settings().session_hours)
    session.add(WebSession(token_hash=hash_secret(cookie), user_id=user.id, csrf_token=csrf, expires_at=expires))
    session.flush()
    return cookie, csrf


def actor_for_cookie(session: Session, cookie: str) -> tuple[Actor, str] | None:
    """Who is behind a browser's cookie, and its CSRF token; None when it is unknown, over, or its person disabled."""
    row = session.execute(credentials.SIGNED_IN.clause, {"hash": hash_secret(cookie)}).mappings().one_or_none()
    return None if row is None else credentials.signed_in(row)


def close_web_session(session: Session, cookie: str) -> None:
    """Sign a browser out."""
    session.execute(delete(WebSession).where(WebSession.token_hash == hash_secret(cookie)))
