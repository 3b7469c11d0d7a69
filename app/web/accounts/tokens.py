"""Tokens on pages: their list, and the form that makes one, for one's own page and for an admin's page of a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from app.db.sessions import database_now
from app.errors import Invalid, NotFound
from app.models import Scope, Token
from app.services.accounts import users
from app.services.kernel.actors import Actor, parse_id
from app.web.access import text_of
from illume.phrases import _

EXPIRIES = (("30", _("in 30 days")), ("90", _("in 90 days")), ("365", _("in a year")), ("", _("never")))


@dataclass(frozen=True, slots=True)
class Secret:
    """A link or token that is shown once."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token in the list."""

    id: str
    name: str
    scope: str
    limit: int | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class TokensView:
    """A person's tokens and the form for a new one, whose addresses begin with `base`."""

    base: str
    rows: tuple[TokenRow, ...]
    sets_limit: bool
    scopes: tuple[str, ...] = tuple(Scope)
    expiries: Sequence[tuple[str, str]] = EXPIRIES


@dataclass(frozen=True, slots=True)
class TokenForm:
    """The token that a form asks for; without `days` it never expires."""

    scope: Scope
    name: str
    days: int | None
    requests_per_minute: int | None


def tokens_view(session: Session, actor: Actor, user_id: int, *, base: str, sets_limit: bool) -> TokensView:
    """The tokens of a person; `sets_limit`: the form asks for requests a minute."""
    rows = tuple(token_row(token) for token in users.list_tokens(session, actor, user_id))
    return TokensView(base=base, rows=rows, sets_limit=sets_limit)


def token_row(token: Token) -> TokenRow:
    """A token as the page shows it."""
    return TokenRow(
        id=str(token.id),
        name=token.name,
        scope=str(token.scope),
        limit=token.requests_per_minute,
        created_at=token.created_at,
        expires_at=token.expires_at,
        last_used_at=token.last_used_at,
    )


def make_token(session: Session, actor: Actor, user_id: int, form: FormData) -> Secret:
    """Make the token that a form asks for, to be shown once. Raises `Invalid`, `Forbidden`."""
    wanted = parse_token(form)
    _token, plain = users.create_token(
        session,
        actor,
        user_id=user_id,
        scope=wanted.scope,
        name=wanted.name,
        expires_at=database_now(session) + timedelta(days=wanted.days) if wanted.days else None,
        requests_per_minute=wanted.requests_per_minute,
    )
    return Secret(_("The new token:"), plain)


def parse_token(form: FormData) -> TokenForm:
    """The token that a form asks for. Raises `Invalid`."""
    scope = text_of(form, "scope")
    if scope not in set(Scope):
        raise Invalid(_("Choose one of the scopes."), field="scope")
    limit = text_of(form, "requests").strip()
    if limit and not limit.isdecimal():
        raise Invalid(_("Requests per minute must be a whole number."), field="requests")
    days = text_of(form, "expires")
    if days not in dict(EXPIRIES):
        raise Invalid(_("Choose when the token expires."), field="expires")
    return TokenForm(
        scope=Scope(scope),
        name=text_of(form, "name").strip(),
        days=int(days) if days else None,
        requests_per_minute=int(limit[:10]) if limit else None,
    )


def revoke_token(session: Session, actor: Actor, user_id: int, token_id: str) -> None:
    """Revoke a token of this person. Raises `NotFound` where it is not theirs."""
    if parse_id(token_id) not in {token.id for token in users.list_tokens(session, actor, user_id)}:
        raise NotFound(_("This person has no such token."))
    users.revoke_token(session, actor, parse_id(token_id))
