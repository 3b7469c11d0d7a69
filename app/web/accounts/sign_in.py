"""Signing in and out, and the start page."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace
from datetime import datetime
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.db.sessions import database_now
from app.errors import Conflict, Forbidden, NotFound, TooMany, Unauthenticated, Unavailable
from app.http.dependencies import SessionDep
from app.models import Role, User
from app.services.accounts import known_browsers, openid, openid_providers, sessions
from app.services.kernel.actors import Actor, project_rights
from app.services.kernel.rights import Right
from app.services.projects import projects
from app.settings import get_settings
from app.web.access import (
    COOKIE,
    OLD_FORM,
    Me,
    Poster,
    StrangersForm,
    judged_project,
    secrets_equal,
    sent_token,
    text_of,
)
from app.web.rendering import Message, Shell, page
from illume.phrases import _

# The sign-in form is sent before there is a session: its token is compared with a cookie of its own (double submit).
FORM_COOKIE = "illume_form"
BROWSER_COOKIE = "illume_browser"
START_COOKIE = "illume_start"
PROVIDER_COOKIE = "illume_provider"
BROWSER_SECONDS = 400 * 24 * 3600  # browsers keep no cookie longer
LAST_PROJECT = "illume_project"
SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
UPWARDS = r"[^?#]*/(?:\.|%2e){1,2}(?:[/?#]|$)"  # browsers take the step up: it would lead out of a sub-path
LOCAL_PATH = re.compile(rf"(?!{UPWARDS})/(?![/\\])[^\x00-\x20\\]*", re.IGNORECASE)
SIGN_IN_MESSAGES = {
    "signed-out": _("You are signed out."),
    "everywhere": _("You are signed out in every browser."),
}

router = APIRouter()


@dataclass(frozen=True, slots=True)
class ProviderLink:
    """A provider that people may sign in with."""

    label: str
    url: str


@dataclass(frozen=True, slots=True)
class SignInView:
    """The sign-in form with its submitted values, and the providers; `left` is where one is still signed in."""

    next: str
    email: str = ""
    problem: str = ""
    demo_account: str = ""
    passwords: bool = True
    providers: tuple[ProviderLink, ...] = ()
    left: ProviderLink | None = None


def local_path(path: str) -> str:
    """`path` where it is a local path, else the start page."""
    return path if LOCAL_PATH.fullmatch(path) and not path.startswith("/sign-") else "/"


def set_cookie(response: Response, name: str, value: str, *, seconds: int | None) -> None:
    """Set a cookie that scripts cannot read and that requests from other sites do not carry."""
    secure = get_settings().secure_cookies
    response.set_cookie(name, value, max_age=seconds, httponly=True, samesite="lax", secure=secure, path=cookie_path())


def delete_cookie(response: Response, name: str) -> None:
    """Have the browser forget a cookie."""
    response.delete_cookie(name, path=cookie_path())


def cookie_path() -> str:
    """The path whose requests carry our cookies: all of the host's, or the sub-path."""
    return get_settings().sub_path or "/"


@router.get("/")
def start_page(request: Request, session: SessionDep, who: Me) -> RedirectResponse:
    """Go to a critic's last project, if they may still judge in it; for those who only look, to the overview."""
    return RedirectResponse(start_path(request, session, who.actor), status_code=303)


def start_path(request: Request, session: Session, actor: Actor) -> str:
    """Where a person starts."""
    if actor.role is not Role.critic:
        return "/admin"
    slug = request.cookies.get(LAST_PROJECT, "")
    if SLUG.fullmatch(slug) and can_judge_in(session, actor, slug):
        return f"/annotate/{slug}"
    only_looks = actor.oversees and not any(
        Right.judges in project_rights(session, actor, project) for project in projects.list_projects(session, actor)
    )
    return "/admin" if only_looks else "/annotate"


def can_judge_in(session: Session, actor: Actor, slug: str) -> bool:
    """Whether the project exists and `actor` may judge in it."""
    try:
        judged_project(session, actor, slug)
    except (NotFound, Forbidden):
        return False
    return True


@router.get("/sign-in")
def show(
    request: Request,
    next: str = "/",  # noqa: A002 - the field's name in addresses
    done: str = "",
) -> Response:
    """The sign-in form."""
    message = SIGN_IN_MESSAGES.get(done)
    messages = (Message(message),) if message else ()
    left = left_provider(request) if message else None
    response = form_page(request, SignInView(local_path(next), left=left), messages=messages)
    if left is not None:
        delete_cookie(response, PROVIDER_COOKIE)
    return response


def left_provider(request: Request) -> ProviderLink | None:
    """Where a person who has just signed out here may still be signed in, and can sign out too."""
    provider = openid_providers.load_providers().get(request.cookies.get(PROVIDER_COOKIE, ""))
    url = openid.sign_out_url(provider) if provider is not None else ""
    return ProviderLink(provider.label, url) if provider is not None and url else None


def form_page(request: Request, view: SignInView, *, status: int = 200, messages: tuple[Message, ...] = ()) -> Response:
    """The sign-in form, with the cookie its token must match."""
    token = request.cookies.get(FORM_COOKIE) or secrets.token_urlsafe(32)
    shell = Shell(title=_("Sign in"), csrf_token=token, messages=messages)
    query = urlencode({"next": view.next})
    view = replace(
        view,
        demo_account=get_settings().demo_account,
        passwords=get_settings().passwords,
        providers=tuple(
            ProviderLink(one.label, f"/sign-in/with/{one.name}?{query}")
            for one in openid_providers.load_providers().values()
        ),
    )
    response = page("accounts/sign_in.html", shell=shell, view=view, status=status)
    set_cookie(response, FORM_COOKIE, token, seconds=None)
    return response


@router.post("/sign-in")
def sign_in(request: Request, session: SessionDep, form: StrangersForm) -> Response:
    """Check the password and open a session."""
    email = text_of(form, "email")
    view = SignInView(local_path(text_of(form, "next", "/")), email)
    cookie = request.cookies.get(FORM_COOKIE, "")
    if not cookie or not secrets_equal(sent_token(request, form), cookie):
        return form_page(request, SignInView(view.next, email, OLD_FORM), status=403)
    address = request.client.host if request.client else ""
    known = request.cookies.get(BROWSER_COOKIE, "")
    try:
        user = sessions.check_password(session, email, text_of(form, "password"), address=address, browser=known)
    except (Unauthenticated, Forbidden, TooMany) as error:
        response = form_page(request, SignInView(view.next, email, error.detail), status=error.status)
        if isinstance(error, TooMany):
            response.headers["Retry-After"] = str(error.retry_after)
        return response
    return begin_session(request, session, user, view.next)


def time_before_asking(session: Session) -> datetime:
    """The time by the database's clock. The connection is given back, since providers may take their time."""
    now = database_now(session)
    session.commit()
    return now


@router.get("/sign-in/with/{provider}")
def go_to_provider(request: Request, session: SessionDep, provider: str, next: str = "/") -> Response:  # noqa: A002
    """Send the person to a provider. A link, not a form: a page's forms may not lead to other sites."""
    found = openid_providers.find_provider(provider)
    try:
        url, cookie = openid.begin(found, local_path(next), time_before_asking(session))
    except Unavailable as error:
        return form_page(request, SignInView(local_path(next), problem=error.detail), status=error.status)
    response = RedirectResponse(url, status_code=303)
    set_cookie(response, START_COOKIE, cookie, seconds=openid.START_SECONDS)
    return response


@router.get("/sign-in/from/{provider}")
def come_from_provider(request: Request, session: SessionDep, provider: str) -> Response:
    """Sign in a person whom a provider sends back, or say on the sign-in page why not."""
    found = openid_providers.find_provider(provider)
    try:
        now = time_before_asking(session)
        person, to = openid.finish(found, request.cookies.get(START_COOKIE, ""), request.query_params, now)
        with session.begin_nested():  # nothing of it is kept where it is refused
            user = openid.sign_in(session, found, person)
    except (Unauthenticated, Forbidden, Conflict, Unavailable) as error:
        response = form_page(request, SignInView("/", problem=error.detail), status=error.status)
    else:
        response = begin_session(request, session, user, local_path(to))
        set_cookie(response, PROVIDER_COOKIE, found.name, seconds=get_settings().session_hours * 3600)
    delete_cookie(response, START_COOKIE)
    response.headers["Referrer-Policy"] = "no-referrer"  # the address has a code in it
    return response


def begin_session(request: Request, session: Session, user: User, to: str) -> RedirectResponse:
    """Sign a person in who has proved who they are, and redirect to the path `to`."""
    known = request.cookies.get(BROWSER_COOKIE, "")
    secret, _session = sessions.open_web_session(session, user, browser=request.headers.get("user-agent", ""))
    response = RedirectResponse(to, status_code=303)
    set_cookie(response, COOKIE, secret, seconds=get_settings().session_hours * 3600)
    set_cookie(response, BROWSER_COOKIE, known_browsers.remember(known, user), seconds=BROWSER_SECONDS)
    delete_cookie(response, FORM_COOKIE)
    return response


@router.post("/sign-out/everywhere")
def sign_out_everywhere(session: SessionDep, who: Poster) -> RedirectResponse:
    """End all of the person's sessions, in every browser."""
    sessions.close_all_sessions(session, who.actor, who.actor.user_id)
    response = RedirectResponse("/sign-in?done=everywhere", status_code=303)
    delete_cookie(response, COOKIE)
    return response


@router.post("/sign-out")
def sign_out(request: Request, session: SessionDep, who: Poster) -> RedirectResponse:  # noqa: ARG001 - must be signed in
    """End the browser's session."""
    sessions.close_web_session(session, request.cookies.get(COOKIE, ""))
    response = RedirectResponse("/sign-in?done=signed-out", status_code=303)
    delete_cookie(response, COOKIE)
    return response
