"""Passwords, and what is kept of secrets."""

from __future__ import annotations

import functools
import hashlib
import secrets

import argon2

from app.errors import Invalid
from app.models import User

MIN_PASSWORD = 8
MAX_PASSWORD = 1000


@functools.cache
def hasher() -> argon2.PasswordHasher:
    """Argon2id with 19 MiB a check, so that many sign-ins at once fit the memory of the web process."""
    return argon2.PasswordHasher(time_cost=3, memory_cost=19 * 1024, parallelism=1)


@functools.cache
def dummy_hash() -> str:
    """What an unknown account's password is checked against, so that it takes as long as a known one's."""
    return hasher().hash(secrets.token_hex(16))


def hash_password(password: str) -> str:
    """What is kept of a password. Raises `Invalid` for a weak one."""
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise Invalid(f"A password has {MIN_PASSWORD} to {MAX_PASSWORD} characters.", field="password")
    return hasher().hash(password)


def verify_password(stored: str, password: str) -> bool:
    """Whether a password is the one of which `stored` is kept."""
    try:
        return hasher().verify(stored, password)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False


def verify_user_password(user: User, password: str) -> bool:
    """Whether `password` is the person's own."""
    return user.password_hash is not None and verify_password(user.password_hash, password)


def hash_secret(plain: str) -> str:
    """What is kept of a token, a cookie or a link: these are long and random, and asked for often."""
    return hashlib.sha256(plain.encode()).hexdigest()
