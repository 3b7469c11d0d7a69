"""Who sends a browser's request, and protection against forged requests by a form token (CSRF)."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from app import languages
from app.db.judging_pool import Transaction
from app.errors import Forbidden, Unauthenticated
from app.http import forms
from app.http.dependencies import SESSION_COOKIE, SessionDep, sessions_of
from app.http.forms import UnreadForm
from app.models import Project
from app.services.accounts import credentials, sessions
from app.services.accounts.passwords import hash_secret
from app.services.kernel.actors import Actor
from app.services.kernel.rights import SEES, Right
from app.services.projects import projects
from app.services.projects.access import PROJECT, ProjectRef, project_from
from illume.phrases import _

COOKIE = SESSION_COOKIE
NOT_SIGNED_IN = _("You are not signed in, or your session has ended. Sign in, then try again.")
OLD_FORM = _("This form belongs to an older session. Nothing was changed: reload the page and try again.")


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A person who is signed in, and the token that must come with their forms."""

    actor: Actor
    csrf_token: str


def signed_in(request: Request, session: SessionDep) -> SignedIn:
    """The person that the session cookie belongs to. Raises `Unauthenticated`."""
    cookie = request.cookies.get(COOKIE)
    found = sessions.actor_for_cookie(session, cookie) if cookie else None
    if found is None:
        raise Unauthenticated(NOT_SIGNED_IN)
    languages.speak(found[0].language)
    return SignedIn(*found)


async def read_fields(request: Request) -> FormData:
    """The fields of the request's form. What is wrong with it is told to those who look at them, and not before."""
    return await forms.receive_form(request)


async def read_credentials(request: Request) -> FormData:
    """The fields of a form that strangers send."""
    return await forms.read_form(request, fields=20, field_bytes=forms.CREDENTIAL_BYTES)


Form = Annotated[FormData, Depends(read_fields)]
StrangersForm = Annotated[FormData, Depends(read_credentials)]


def sent_token(request: Request, form: FormData) -> str:
    """The form token of the request, from the header or from a field."""
    fields = form.begun if isinstance(form, UnreadForm) else form
    field = fields.get("csrf_token")
    return request.headers.get("x-csrf-token") or (field if isinstance(field, str) else "")


def secrets_equal(first: str, second: str) -> bool:
    """Whether two secrets are equal, compared in constant time."""
    return hmac.compare_digest(first.encode(), second.encode())


def check_form_token(request: Request, form: FormData, who: SignedIn) -> SignedIn:
    """The person, where the form's token is their session's. Raises `Forbidden`."""
    if not secrets_equal(sent_token(request, form), who.csrf_token):
        raise Forbidden(OLD_FORM)
    return who


async def enter_project(
    request: Request, transaction: Transaction, slug: str, form: FormData | None = None
) -> tuple[SignedIn, ProjectRef]:
    """The person behind the session cookie and the project that they judge in, in one round trip.

    Raises `Unauthenticated`, `NotFound`, and `Forbidden` also for a form of another session.
    """
    cookie = request.cookies.get(COOKIE)
    if not cookie:
        raise Unauthenticated(NOT_SIGNED_IN)
    hashed = hash_secret(cookie)
    person, project = await transaction.run(
        (credentials.SIGNED_IN, {"hash": hashed}), (PROJECT, {"slug": slug, "user": None, "session": hashed})
    )
    if person is None:
        raise Unauthenticated(NOT_SIGNED_IN)
    if person["seen_is_news"]:
        await transaction.run((credentials.NOTE_SEEN, {"hash": hashed}))
    who = SignedIn(*credentials.signed_in(person))
    languages.speak(who.actor.language)
    if form is not None:
        check_form_token(request, form, who)
    return who, project_from(project, who.actor, Right.judges)


Me = Annotated[SignedIn, Depends(signed_in, scope="function")]


def posting(request: Request, who: Me, form: Form) -> SignedIn:
    """The person who sends a form. Raises `Forbidden` where the form's token is not their session's."""
    return check_form_token(request, form, who)


Poster = Annotated[SignedIn, Depends(posting, scope="function")]


def text_of(form: FormData, name: str, default: str = "") -> str:
    """A text field of a form."""
    value = form.get(name)
    return value if isinstance(value, str) else default


def texts_of(form: FormData, name: str) -> list[str]:
    """All values of a field that may be repeated."""
    return [value for value in form.getlist(name) if isinstance(value, str)]


def judged_project(session: Session, actor: Actor, slug: str) -> Project:
    """The project, for a person who may judge in it. Raises `NotFound`, `Forbidden`."""
    return projects.get_project(session, actor, slug, Right.judges)


def reviewer_ahead(request: Request, slug: str) -> None:
    """Let nobody but reviewers go on, before files are read. Raises `Unauthenticated`, `NotFound`, `Forbidden`.

    Its session ends here: none is held while files arrive.
    """
    with sessions_of(request)() as session:
        managed_project(session, signed_in(request, session).actor, slug, Right.reviews)


ReviewerAhead = Annotated[None, Depends(reviewer_ahead)]


def managed_project(session: Session, actor: Actor, slug: str, need: Right | None = None) -> Project:
    """The project, for a person who may see its pages and has the right `need`. Raises `NotFound`, `Forbidden`.

    The pages show references, what the model does, and the verdicts of others.
    """
    return projects.get_project(session, actor, slug, *(() if need is None else (need,)), *sorted(SEES))
