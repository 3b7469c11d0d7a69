"""Keys of model servers, encrypted with the installation's secret key before they are stored."""

from __future__ import annotations

import base64
import hashlib
import hmac

from cryptography.fernet import Fernet, InvalidToken

from app.errors import Conflict, Unavailable
from app.models import Engine
from app.settings import get_settings
from illume.phrases import _


def seal(key: str) -> str | None:
    """A key, encrypted; None for an empty one. Raises `Unavailable`."""
    return _fernet().encrypt(key.encode()).decode() if key else None


def open_key(engine: Engine) -> str:
    """The key of a server, empty if it has none. Raises `Conflict` if it was encrypted with another secret key."""
    if engine.sealed_key is None:
        return ""
    try:
        return _fernet().decrypt(engine.sealed_key.encode()).decode()
    except InvalidToken as error:
        raise Conflict(
            _(
                "The key of the model server '%(name)s' was stored under another ILLUME_SECRET_KEY: enter it again.",
                name=engine.name,
            )
        ) from error


def _fernet() -> Fernet:
    secret = get_settings().secret_key.encode()
    if not secret:
        raise Unavailable(_("ILLUME_SECRET_KEY is not set: keys of model servers cannot be stored without it."))
    return Fernet(base64.urlsafe_b64encode(hmac.new(secret, b"keys of model servers", hashlib.sha256).digest()))
