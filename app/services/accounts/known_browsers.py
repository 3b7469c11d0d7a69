"""Browsers that a person has signed in with: a lock of their account does not keep them out there.

The cookie proves nothing but that, so it needs no row: each entry is signed with the installation's key.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from app.models import User
from app.settings import get_settings

MAX_PEOPLE = 5


def remember(cookie: str, user: User) -> str:
    """Return the cookie of a browser in which `user` has signed in; `cookie` is what it had before."""
    others = [entry for entry in cookie.split("/") if entry.partition(".")[0] != str(user.id)]
    nonce = secrets.token_urlsafe(12)
    entries = [f"{user.id}.{nonce}.{signature(user.id, nonce)}", *(entry for entry in others if entry)]
    return "/".join(entries[:MAX_PEOPLE])


def find_entry(cookie: str, user: User) -> str | None:
    """Return the entry of `user` in a browser's cookie, or None where they have not signed in with it."""
    for entry in cookie.split("/")[:MAX_PEOPLE]:
        person, _, rest = entry.partition(".")
        nonce, _, signed = rest.partition(".")
        if person == str(user.id) and hmac.compare_digest(signed.encode(), signature(user.id, nonce).encode()):
            return entry
    return None


def signature(user_id: int, nonce: str) -> str:
    """Sign that a person has signed in with a browser."""
    key = get_settings().secret_key.encode()
    return hmac.new(key, f"known browser {user_id} {nonce}".encode(), hashlib.sha256).hexdigest()
