"""Whom a token or a browser's cookie speaks for, in a transaction of the judging pool."""

from __future__ import annotations

from typing import Any

from app.db.judging_pool import Transaction, statement
from app.errors import Unauthenticated
from app.models import Role, Scope
from app.models.users import SEEN_MINUTES
from app.services.accounts.passwords import hash_secret
from app.services.kernel.actors import CRITIC_LOCK, Actor
from app.services.kernel.rights import OVERSEEING_ROLES
from illume.phrases import _

BEARER_SQL = """
SELECT u.id, u.email, u.role, t.id AS token_id, t.scope, t.max_open, t.requests_per_minute,
    coalesce(t.last_used_at < now() - interval '1 minute', true) AS use_is_news
    {more}
FROM tokens t JOIN users u ON u.id = t.user_id
WHERE t.token_hash = :hash AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now())
  AND u.disabled_at IS NULL
"""
BEARER = statement(BEARER_SQL.format(more=""))
# Takes the lock that a claim needs anyway, which saves it a statement.
LOCKED_BEARER = statement(BEARER_SQL.format(more=f", {CRITIC_LOCK.format(critic='u.id')}"))
# Requests of one token at the same time do not wait for each other: a locked row is skipped.
NOTE_USE = statement("""
UPDATE tokens SET last_used_at = now()
WHERE id = (SELECT id FROM tokens WHERE id = :token FOR UPDATE SKIP LOCKED)
RETURNING id
""")
SIGNED_IN = statement(f"""
SELECT u.id, u.email, u.name, u.language, u.role, w.csrf_token, w.token_hash,
    u.role IN ({OVERSEEING_ROLES}) OR EXISTS (
        SELECT FROM memberships m WHERE m.user_id = u.id AND m.role IN ({OVERSEEING_ROLES})
    ) AS oversees,
    w.last_seen_at < now() - interval '{SEEN_MINUTES} minutes' AS seen_is_news
FROM sessions w JOIN users u ON u.id = w.user_id
WHERE w.token_hash = :hash AND w.expires_at > now() AND u.disabled_at IS NULL
""")  # noqa: S608 - constants only
NOTE_SEEN = statement("""
UPDATE sessions SET last_seen_at = now()
WHERE token_hash = (SELECT token_hash FROM sessions WHERE token_hash = :hash FOR UPDATE SKIP LOCKED)
RETURNING token_hash
""")
UNKNOWN = _("The token is not valid: it is unknown, expired or revoked.")


async def authenticate_token(transaction: Transaction, plain: str, *, lock: bool = False) -> Actor:
    """The bearer of a token; `lock` takes the bearer's lock for claims with it. Raises `Unauthenticated`."""
    [row] = await transaction.run((LOCKED_BEARER if lock else BEARER, {"hash": hash_secret(plain)}))
    if row is None:
        raise Unauthenticated(UNKNOWN)
    if row["use_is_news"]:
        await transaction.run((NOTE_USE, {"token": row["token_id"]}))
    return bearer(row)


async def authenticate_cookie(transaction: Transaction, cookie: str) -> tuple[Actor, str] | None:
    """The person behind a browser's cookie, and the token that their forms carry; None where it is not valid."""
    [row] = await transaction.run((SIGNED_IN, {"hash": hash_secret(cookie)}))
    if row is None:
        return None
    if row["seen_is_news"]:
        await transaction.run((NOTE_SEEN, {"hash": row["token_hash"]}))
    return signed_in(row)


def bearer(row: Any) -> Actor:
    """The actor of a row of `BEARER`."""
    return Actor(
        user_id=row["id"],
        email=row["email"],
        role=Role(row["role"]),
        scope=Scope(row["scope"]),
        token_id=row["token_id"],
        max_open=row["max_open"],
        requests_per_minute=row["requests_per_minute"],
    )


def signed_in(row: Any) -> tuple[Actor, str]:
    """The actor of a row of `SIGNED_IN`, and the token that their forms carry."""
    actor = Actor(
        user_id=row["id"],
        email=row["email"],
        role=Role(row["role"]),
        name=row["name"],
        language=row["language"],
        oversees=row["oversees"],
    )
    return actor, row["csrf_token"]
