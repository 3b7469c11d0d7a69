"""Hashing of passwords and other secrets."""

from __future__ import annotations

import functools
import hashlib
import secrets

import argon2

from app.errors import Forbidden, Invalid
from app.models import User
from app.settings import get_settings
from illume.phrases import _

MIN_PASSWORD = 8
MAX_PASSWORD = 1000


def require_passwords() -> None:
    """Raise `Forbidden` where nobody signs in with a password."""
    if not get_settings().passwords:
        raise Forbidden(_("Passwords are switched off here: sign in with a provider."))


@functools.cache
def hasher() -> argon2.PasswordHasher:
    """Argon2id with 19 MiB a check, so that many sign-ins at once fit into the memory of the web process."""
    return argon2.PasswordHasher(time_cost=3, memory_cost=19 * 1024, parallelism=1)


@functools.cache
def dummy_hash() -> str:
    """The hash to check an unknown account's password against, so that it takes as long as for a known one."""
    return hasher().hash(secrets.token_hex(16))


def hash_password(password: str) -> str:
    """Hash a password. Raises `Invalid` for a weak one."""
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise Invalid(
            _(
                "A password must have %(min_password)s to %(max_password)s characters.",
                min_password=MIN_PASSWORD,
                max_password=MAX_PASSWORD,
            ),
            field="password",
        )
    return hasher().hash(password)


def verify_password(stored: str, password: str) -> bool:
    """Whether `password` matches the hash `stored`."""
    try:
        return hasher().verify(stored, password)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False


def verify_user_password(user: User, password: str) -> bool:
    """Whether `password` is the person's password."""
    return user.password_hash is not None and verify_password(user.password_hash, password)


def hash_secret(plain: str) -> str:
    """Hash a token, a cookie or a link. A plain hash will do: these are long and random, and checked often."""
    return hashlib.sha256(plain.encode()).hexdigest()
