"""The page of a one-time link: a person who is not signed in chooses a password."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.errors import Invalid
from app.http.dependencies import SessionDep
from app.models import LinkPurpose
from app.models.users import MAX_NAME
from app.services.accounts import one_time_links
from app.services.accounts.passwords import MIN_PASSWORD
from app.web.access import OLD_FORM, StrangersForm, secrets_equal, sent_token, text_of
from app.web.accounts.sign_in import FORM_COOKIE, begin_session, set_cookie
from app.web.forms import Field
from app.web.rendering import Shell, page
from illume.phrases import _

router = APIRouter()
PASSWORDS_DIFFER = _("The passwords do not match.")


@dataclass(frozen=True, slots=True)
class LinkView:
    """The password form."""

    token: str
    email: str
    invited: bool
    fields: tuple[Field, ...]


def name_field(name: str, problem: str = "") -> Field:
    """The field for what a person is called."""
    return Field(
        "name",
        _("Your name"),
        value=name,
        help=_("Optional. Admins and reviewers see it beside your email address; other critics do not."),
        problem=problem,
        attributes={"autocomplete": "name", "maxlength": str(MAX_NAME)},
    )


@router.get("/account/link/{token}")
def show(request: Request, session: SessionDep, token: str) -> Response:
    """Show the form. A GET does not use up the link, so that mail scanners that follow links cannot either."""
    return form_page(request, session, token)


def form_page(
    request: Request,
    session: SessionDep,
    token: str,
    *,
    name: str | None = None,
    named: str = "",
    problem: str = "",
    again: str = "",
    status: int = 200,
) -> Response:
    """The form, with its problems: `named` is that of the name."""
    link, user = one_time_links.find_link(session, token)
    secret, invited = {"autocomplete": "new-password"}, link.purpose is LinkPurpose.invitation
    view = LinkView(
        token=token,
        email=user.email,
        invited=invited,
        fields=(
            *((name_field(user.name if name is None else name, named),) if invited else ()),
            Field(
                "password",
                _("Password"),
                "password",
                help=_("At least %(least)s characters; a few words are easier to remember.", least=MIN_PASSWORD),
                problem=problem,
                required=True,
                attributes=secret,
            ),
            Field("again", _("Repeat password"), "password", problem=again, required=True, attributes=secret),
        ),
    )
    form_token = request.cookies.get(FORM_COOKIE) or secrets.token_urlsafe(32)
    shell = Shell(title=_("Choose a password"), csrf_token=form_token)
    response = page("accounts/link.html", shell=shell, view=view, status=status)
    response.headers["Referrer-Policy"] = "no-referrer"
    set_cookie(response, FORM_COOKIE, form_token, seconds=None)
    return response


@router.post("/account/link/{token}")
def set_password(request: Request, session: SessionDep, form: StrangersForm, token: str) -> Response:
    """Set the password and sign the person in."""
    cookie = request.cookies.get(FORM_COOKIE, "")
    if not cookie or not secrets_equal(sent_token(request, form), cookie):
        return form_page(request, session, token, problem=OLD_FORM, status=403)
    password, name = text_of(form, "password"), text_of(form, "name")
    if password != text_of(form, "again"):
        return form_page(request, session, token, name=name, again=PASSWORDS_DIFFER, status=422)
    try:
        user = one_time_links.use_link(session, token, password, name=name)
    except Invalid as error:
        named, problem = (error.detail, "") if error.field == "name" else ("", error.detail)
        return form_page(request, session, token, name=name, named=named, problem=problem, status=422)
    return begin_session(request, session, user, "/")
