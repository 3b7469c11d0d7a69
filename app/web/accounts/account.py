"""A person's own page: their password, keys, tokens and browser sessions."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app import languages
from app.errors import Invalid, TooMany, Unauthenticated
from app.http.dependencies import SessionDep
from app.services.accounts import sessions, users
from app.services.accounts.passwords import MIN_PASSWORD
from app.services.projects import key_bindings
from app.settings import get_settings
from app.web.access import COOKIE, Form, Me, Poster, SignedIn, text_of
from app.web.accounts import browsers, tokens
from app.web.accounts.browsers import SessionRow
from app.web.accounts.one_time_links import PASSWORDS_DIFFER, name_field
from app.web.accounts.sign_in import BROWSER_COOKIE, begin_session
from app.web.accounts.tokens import Secret, TokensView
from app.web.forms import Field
from app.web.rendering import page, shell_for
from app.web.words import ROLE_WORDS
from illume.phrases import _

router = APIRouter()
WRONG_PASSWORD = _("This is not your current password.")


@dataclass(frozen=True, slots=True)
class ChosenKey:
    """A key that the person chose instead of the default one."""

    does: str
    key: str
    first: str


@dataclass(frozen=True, slots=True)
class AccountView:
    """The page."""

    email: str
    name: str
    role: str
    name_field: Field
    language_field: Field
    passwords: bool
    password_fields: tuple[Field, ...]
    keys: tuple[ChosenKey, ...]
    tokens: TokensView
    sessions: tuple[SessionRow, ...]
    secret: Secret | None
    problem: str


def password_fields(problems: dict[str, str]) -> tuple[Field, ...]:
    """The fields of the form for another password."""

    def secret(name: str, label: str, autocomplete: str, text: str = "") -> Field:
        return Field(
            name,
            label,
            "password",
            help=text,
            problem=problems.get(name, ""),
            required=True,
            attributes={"autocomplete": autocomplete, "maxlength": "1000"},
        )

    return (
        secret("current", _("Current password"), "current-password"),
        secret("password", _("New password"), "new-password", _("At least %(least)s characters.", least=MIN_PASSWORD)),
        secret("again", _("Repeat new password"), "new-password"),
    )


def language_field(request: Request, chosen: str) -> Field:
    """The choice of the language of the pages."""
    wished = languages.accepted(request.headers.get("accept-language", ""))
    of_browser = _("As in your browser (%(name)s)", name=wished.name)
    options = (("", of_browser), *((one.code, one.name) for one in languages.languages().values()))
    return Field("language", _("Language of the pages"), "select", value=chosen, options=options)


def account_page(
    request: Request,
    session: Session,
    who: SignedIn,
    *,
    problems: dict[str, str] | None = None,
    problem: str = "",
    typed_name: str | None = None,
    secret: Secret | None = None,
    status: int = 200,
) -> Response:
    """The page, with the problems of the form that was sent."""
    actor, named = who.actor, (problems or {}).get("name", "")
    chosen = key_bindings.load_key_bindings(session, actor)
    view = AccountView(
        email=actor.email,
        name=actor.name,
        role=ROLE_WORDS[actor.role],
        name_field=name_field(actor.name if typed_name is None else typed_name, named),
        language_field=language_field(request, actor.language),
        passwords=get_settings().passwords,
        password_fields=password_fields(problems or {}),
        keys=tuple(
            ChosenKey(one.does, chosen[one.name], one.first) for one in key_bindings.ACTIONS if one.name in chosen
        ),
        tokens=tokens.tokens_view(session, actor, actor.user_id, base="/account", sets_limit=False),
        sessions=browsers.session_rows(session, actor, actor.user_id, cookie=request.cookies.get(COOKIE, "")),
        secret=secret,
        problem=problem,
    )
    shell = shell_for(request, actor, who.csrf_token, title=_("Your account"), section="account")
    return page("accounts/account.html", shell=shell, view=view, status=status)


def back_here(done: str) -> RedirectResponse:
    """Redirect to the page, which says what was done."""
    return RedirectResponse(f"/account?done={done}", status_code=303)


@router.get("/account")
def show(request: Request, session: SessionDep, who: Me) -> Response:
    """Show the page."""
    return account_page(request, session, who)


@router.post("/account/name")
def change_name(request: Request, session: SessionDep, who: Poster, form: Form) -> Response:
    """Set what one is called."""
    name = text_of(form, "name")
    try:
        users.set_name(session, who.actor, who.actor.user_id, name)
    except Invalid as error:
        return account_page(request, session, who, problems={"name": error.detail}, typed_name=name, status=422)
    return back_here("name-saved")


@router.post("/account/language")
def change_language(session: SessionDep, who: Poster, form: Form) -> RedirectResponse:
    """Choose the language of the pages. Raises `Invalid` for one in which they do not come."""
    users.set_language(session, who.actor, text_of(form, "language"))
    return back_here("language-saved")


@router.post("/account/password")
def change_password(request: Request, session: SessionDep, who: Poster, form: Form) -> Response:
    """Change the password, for a person who knows the current one. All other browsers are signed out."""
    password, actor = text_of(form, "password"), who.actor
    if password != text_of(form, "again"):
        return account_page(request, session, who, problems={"again": PASSWORDS_DIFFER}, status=422)
    address, known = request.client.host if request.client else "", request.cookies.get(BROWSER_COOKIE, "")
    try:
        user = sessions.check_password(session, actor.email, text_of(form, "current"), address=address, browser=known)
        users.set_password(session, actor, user.id, password)
    except Unauthenticated:
        return account_page(request, session, who, problems={"current": WRONG_PASSWORD}, status=422)
    except TooMany as error:
        response = account_page(request, session, who, problems={"current": error.detail}, status=error.status)
        response.headers["Retry-After"] = str(error.retry_after)
        return response
    except Invalid as error:
        return account_page(request, session, who, problems={"password": error.detail}, status=422)
    return begin_session(request, session, user, "/account?done=password-changed")


@router.post("/account/keys/reset")
def reset_keys(session: SessionDep, who: Poster) -> RedirectResponse:
    """Give every action of the judging page its default key again."""
    key_bindings.save_key_bindings(session, who.actor, {})
    return back_here("keys-reset")


@router.post("/account/tokens")
def make_token(request: Request, session: SessionDep, who: Poster, form: Form) -> Response:
    """Make a token of one's own. The page shows it once."""
    try:
        secret = tokens.make_token(session, who.actor, who.actor.user_id, form)
    except Invalid as error:
        return account_page(request, session, who, problem=error.detail, status=422)
    return account_page(request, session, who, secret=secret, status=201)


@router.post("/account/tokens/{token_id}/revoke")
def revoke_token(session: SessionDep, who: Poster, token_id: str) -> RedirectResponse:
    """Revoke a token of one's own."""
    tokens.revoke_token(session, who.actor, who.actor.user_id, token_id)
    return back_here("revoked")


@router.post("/account/sessions/others/end")
def end_other_sessions(request: Request, session: SessionDep, who: Poster) -> RedirectResponse:
    """Sign out all other browsers."""
    sessions.close_all_sessions(session, who.actor, who.actor.user_id, keep=request.cookies.get(COOKIE, ""))
    return back_here("others-signed-out")


@router.post("/account/sessions/{session_id}/end")
def end_session(session: SessionDep, who: Poster, session_id: str) -> RedirectResponse:
    """Sign out one browser."""
    sessions.close_one_session(session, who.actor, session_id)
    return back_here("browser-signed-out")
