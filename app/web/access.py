"""Who is behind a browser's request, and that the request was made by a page of ours."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from app.errors import Forbidden, Unauthenticated
from app.http.dependencies import SESSION_COOKIE, SessionDep
from app.models import Project, Role
from app.services.accounts import sessions
from app.services.kernel.actors import Actor, project_role
from app.services.projects import projects

COOKIE = SESSION_COOKIE
OLD_FORM = "This form is from an older session: reload the page and try again. Nothing was changed."


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Somebody who is signed in, and the token that their forms carry."""

    actor: Actor
    csrf_token: str


def signed_in(request: Request, session: SessionDep) -> SignedIn:
    """Who is behind the session cookie. Raises `Unauthenticated`."""
    cookie = request.cookies.get(COOKIE)
    found = sessions.actor_for_cookie(session, cookie) if cookie else None
    if found is None:
        raise Unauthenticated("Your session has ended or you are not signed in. Sign in, then try again.")
    return SignedIn(*found)


async def read_form(request: Request) -> FormData:
    """The fields of the request's form."""
    return await request.form(max_files=0, max_fields=500)


Form = Annotated[FormData, Depends(read_form)]


def sent_token(request: Request, form: FormData) -> str:
    """The form token that came with the request, in the header or in a field."""
    field = form.get("csrf_token")
    return request.headers.get("x-csrf-token") or (field if isinstance(field, str) else "")


def equal(first: str, second: str) -> bool:
    """Whether two secrets are equal, in a time that tells nothing about them."""
    return hmac.compare_digest(first.encode(), second.encode())


def posting(request: Request, form: Form, who: Annotated[SignedIn, Depends(signed_in, scope="function")]) -> SignedIn:
    """Who posts; raises `Forbidden` where the form's token is not their session's."""
    if not equal(sent_token(request, form), who.csrf_token):
        raise Forbidden(OLD_FORM)
    return who


Me = Annotated[SignedIn, Depends(signed_in, scope="function")]
Poster = Annotated[SignedIn, Depends(posting, scope="function")]


def text_of(form: FormData, name: str, default: str = "") -> str:
    """A text field of a form."""
    value = form.get(name)
    return value if isinstance(value, str) else default


def texts_of(form: FormData, name: str) -> list[str]:
    """All values of a field that may come several times."""
    return [value for value in form.getlist(name) if isinstance(value, str)]


def judged_project(session: Session, actor: Actor, slug: str) -> Project:
    """The project, for who judges in it. Raises `NotFound`, `Forbidden`."""
    return projects.get_project(session, actor, slug, Role.critic)


def managed_project(session: Session, actor: Actor, slug: str, need: Role = Role.viewer) -> Project:
    """The project, for who looks after it. Critics do not see its pages: they hold references and others' verdicts."""
    project = projects.get_project(session, actor, slug, need)
    if project_role(session, actor, project) is Role.critic:
        raise Forbidden("This page is for viewers, reviewers and admins of the project; you are 'critic'.")
    return project
