"""The pages of people: their roles, projects, one-time links and tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from app.errors import Conflict, Invalid
from app.http.dependencies import SessionDep
from app.models import LinkPurpose, OneTimeLink, Role, User
from app.services.accounts import one_time_links, sessions, users
from app.services.kernel.actors import Actor, parse_id, require_admin
from app.services.projects import projects
from app.settings import get_settings
from app.web.access import Form, Me, Poster, SignedIn, text_of, texts_of
from app.web.accounts import browsers, tokens
from app.web.accounts.browsers import SessionRow
from app.web.accounts.tokens import Secret, TokensView
from app.web.admin.frame import back_to
from app.web.forms import Field
from app.web.rendering import page, shell_for
from illume.phrases import _, pgettext

router = APIRouter()
ROLE_OPTIONS = (
    ("critic", _("critic: judges")),
    ("reviewer", _("reviewer: sees everything, decides reviews")),
    ("viewer", _("viewer: sees everything")),
    ("admin", _("admin: can do everything")),
)
NOT_A_MEMBER = ""
MOST_INVITATIONS = 100
IN_NO_PROJECT = _("They do not belong to a project yet, and have nothing to do until you add them to one.")


@dataclass(frozen=True, slots=True)
class UserRow:
    """A person in the list."""

    id: str
    email: str
    name: str
    role: str
    projects: str
    disabled: bool
    invited: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class UsersView:
    """The list, and the form for a new person."""

    rows: tuple[UserRow, ...]
    fields: tuple[Field, ...]
    projects: tuple[tuple[str, str, bool], ...]
    problem: str
    secrets: tuple[Secret, ...]


@dataclass(frozen=True, slots=True)
class ProjectRole:
    """The role of a person in a project; empty where they are not a member."""

    slug: str
    name: str
    role: str


@dataclass(frozen=True, slots=True)
class UserView:
    """One person."""

    id: str
    email: str
    name: str
    role: str
    roles: tuple[str, ...]
    disabled: bool
    is_me: bool
    has_password: bool
    passwords: bool
    link: OneTimeLink | None
    projects: tuple[ProjectRole, ...]
    tokens: TokensView
    sessions: tuple[SessionRow, ...]
    problem: str
    secret: Secret | None


@dataclass(frozen=True, slots=True)
class UserForm:
    """The form for a new person with its submitted values and its problem."""

    email: str = ""
    role: str = Role.critic.value
    projects: tuple[str, ...] = ()
    problem: str = ""
    field: str | None = None


def project_choices(session: Session, actor: Actor, chosen: Sequence[str]) -> tuple[tuple[str, str, bool], ...]:
    """All projects, and whether each one is chosen."""
    return tuple((one.slug, one.name, one.slug in chosen) for one in projects.list_projects(session, actor))


def parse_role(text: str) -> Role:
    """The role named `text`. Raises `Invalid`."""
    if text not in set(Role):
        raise Invalid(_("Choose one of the roles."), field="role")
    return Role(text)


# The list


def list_page(
    request: Request,
    session: Session,
    who: SignedIn,
    typed: UserForm,
    *,
    secrets: Sequence[Secret] = (),
    status: int = 200,
) -> Response:
    """The list of people, with the form as it was submitted."""
    require_admin(who.actor)
    people = users.list_users(session, who.actor)
    memberships = users.list_project_roles(session, [person.id for person in people])

    def problem(name: str) -> str:
        return typed.problem if typed.field == name else ""

    email = Field(
        "email",
        _("Email"),
        "area",
        typed.email,
        help=_("One or more, each on its own line. You get a link for each person, with which they choose a password."),
        rows=2,
        problem=problem("email"),
        required=True,
        attributes={"autocomplete": "off"},
    )
    view = UsersView(
        rows=tuple(user_row(person, memberships[person.id]) for person in people),
        fields=(email, Field("role", _("Role"), "select", typed.role, options=ROLE_OPTIONS, problem=problem("role"))),
        projects=project_choices(session, who.actor, typed.projects),
        problem="" if typed.field in ("email", "role") else typed.problem,
        secrets=tuple(secrets),
    )
    shell = shell_for(request, who.actor, who.csrf_token, title=_("Users"), section="users")
    return page("admin/accounts/users.html", shell=shell, view=view, status=status)


def user_row(person: User, roles: Mapping[str, Role]) -> UserRow:
    """A person in the list. A role in a project is named where it differs from the person's own."""
    named = [slug if role is person.role else f"{slug} ({role})" for slug, role in roles.items()]
    everywhere = pgettext("projects", "all") if person.role is Role.admin else ", ".join(named)
    return UserRow(
        id=str(person.id),
        email=person.email,
        name=person.name,
        role=str(person.role),
        projects=everywhere,
        disabled=person.disabled_at is not None,
        invited=person.password_hash is None,
        created_at=person.created_at,
    )


@router.get("/users")
def index(request: Request, session: SessionDep, who: Me) -> Response:
    """List all people."""
    all_projects = projects.list_projects(session, who.actor)
    only = (all_projects[0].slug,) if len(all_projects) == 1 else ()
    return list_page(request, session, who, UserForm(projects=only))


@router.post("/users")
def add(request: Request, session: SessionDep, who: Poster, form: Form) -> Response:
    """Add people, each by their address; the links to their first passwords are shown once.

    Those that cannot be added stay in the form, with the reasons.
    """
    require_admin(who.actor)
    typed, role, slugs = text_of(form, "email"), text_of(form, "role"), tuple(texts_of(form, "projects"))
    addresses = tuple(dict.fromkeys(re.split(r"[\s,;]+", typed.strip())))
    if len(addresses) > MOST_INVITATIONS:
        error: Invalid | Conflict = Invalid(
            _("Add at most %(most_invitations)s people at once.", most_invitations=MOST_INVITATIONS), field="email"
        )
        return list_page(request, session, who, UserForm(typed, role, slugs, error.detail, "email"), status=422)
    secrets: list[Secret] = []
    problems: dict[str, Invalid | Conflict] = {}
    for email in addresses:
        try:
            with session.begin_nested():
                person = users.add_user(session, who.actor, email=email, role=parse_role(role), project_slugs=slugs)
            if get_settings().passwords:
                secrets.append(show_link(session, who.actor, person, LinkPurpose.invitation))
        except (Invalid, Conflict) as found:
            problems[email] = found
    if not problems:
        return list_page(request, session, who, UserForm(projects=slugs), secrets=secrets, status=201)
    error = next(iter(problems.values()))
    named = " ".join(f"{email}: {one.detail}" for email, one in problems.items())
    text = error.detail if len(addresses) == 1 or error.field != "email" else named
    left = UserForm("\n".join(problems), role, slugs, text, error.field)
    return list_page(request, session, who, left, secrets=secrets, status=201 if secrets else error.status)


def show_link(session: Session, actor: Actor, person: User, purpose: LinkPurpose) -> Secret:
    """Make a one-time link for a person, to be shown once."""
    _link, plain = one_time_links.make_link(session, actor, person.id, purpose)
    title = (
        _("Send this link to %(email)s. It lets them choose a password once, within 7 days.", email=person.email)
        if purpose is LinkPurpose.invitation
        else _(
            "Send this link to %(email)s. It lets them choose a new password once, within a day.", email=person.email
        )
    )
    is_nowhere = person.role is not Role.admin and not users.list_project_roles(session, [person.id]).get(person.id)
    if purpose is LinkPurpose.invitation and is_nowhere:
        title = _("%(title)s %(more)s", title=title, more=IN_NO_PROJECT)
    return Secret(title, f"{get_settings().address}/account/link/{plain}")


# One person


def user_page(
    request: Request,
    session: Session,
    who: SignedIn,
    person: User,
    *,
    secret: Secret | None = None,
    problem: str = "",
    status: int = 200,
) -> Response:
    """One person's page."""
    require_admin(who.actor)
    roles = users.list_project_roles(session, [person.id])[person.id]
    all_projects = projects.list_projects(session, who.actor)
    view = UserView(
        id=str(person.id),
        email=person.email,
        name=person.name,
        role=str(person.role),
        roles=tuple(Role),
        disabled=person.disabled_at is not None,
        is_me=person.id == who.actor.user_id,
        has_password=person.password_hash is not None,
        passwords=get_settings().passwords,
        link=one_time_links.find_open_link(session, person.id),
        projects=tuple(ProjectRole(one.slug, one.name, str(roles.get(one.slug, NOT_A_MEMBER))) for one in all_projects),
        tokens=tokens.tokens_view(session, who.actor, person.id, base=f"/admin/users/{person.id}", sets_limit=True),
        sessions=browsers.session_rows(session, who.actor, person.id),
        problem=problem,
        secret=secret,
    )
    shell = shell_for(request, who.actor, who.csrf_token, title=person.email, section="users")
    return page("admin/accounts/user.html", shell=shell, view=view, status=status)


def find_person(session: Session, who: SignedIn, user_id: str) -> User:
    """The person. Raises `NotFound`, and `Forbidden` where the actor is not an admin."""
    require_admin(who.actor)
    return users.get_user(session, who.actor, parse_id(user_id))


@router.get("/users/{user_id}")
def show(request: Request, session: SessionDep, who: Me, user_id: str) -> Response:
    """Show one person."""
    return user_page(request, session, who, find_person(session, who, user_id))


@router.post("/users/{user_id}/role")
def set_role(request: Request, session: SessionDep, who: Poster, form: Form, user_id: str) -> Response:
    """Change a person's role and their roles in projects."""
    person = find_person(session, who, user_id)
    try:
        users.set_role(session, who.actor, person.id, parse_role(text_of(form, "role")), in_projects=False)
        users.set_project_roles(session, who.actor, person, project_roles(session, who.actor, form))
    except (Invalid, Conflict) as error:
        session.rollback()
        return user_page(request, session, who, person, problem=error.detail, status=error.status)
    return back_to(f"/admin/users/{user_id}", "role-set")


def project_roles(session: Session, actor: Actor, form: FormData) -> dict[str, Role]:
    """The chosen role in each project; those without one are left out. Raises `Invalid`."""
    chosen = {one.slug: text_of(form, f"project-{one.slug}") for one in projects.list_projects(session, actor)}
    return {slug: parse_role(role) for slug, role in chosen.items() if role != NOT_A_MEMBER}


@router.post("/users/{user_id}/link")
def make_link(request: Request, session: SessionDep, who: Poster, user_id: str) -> Response:
    """Make a link with which a person chooses a password. Their current password works until then."""
    person = find_person(session, who, user_id)
    purpose = LinkPurpose.invitation if person.password_hash is None else LinkPurpose.password
    secret = show_link(session, who.actor, person, purpose)
    return user_page(request, session, who, person, secret=secret, status=201)


@router.post("/users/{user_id}/disable")
def disable(request: Request, session: SessionDep, who: Poster, user_id: str) -> Response:
    """Disable a person's account."""
    person = find_person(session, who, user_id)
    try:
        users.set_disabled(session, who.actor, person.id, True)
    except Conflict as error:
        session.rollback()
        return user_page(request, session, who, person, problem=error.detail, status=error.status)
    return back_to(f"/admin/users/{user_id}", "disabled")


@router.post("/users/{user_id}/enable")
def enable(session: SessionDep, who: Poster, user_id: str) -> RedirectResponse:
    """Enable a person's account again."""
    users.set_disabled(session, who.actor, find_person(session, who, user_id).id, False)
    return back_to(f"/admin/users/{user_id}", "enabled")


@router.post("/users/{user_id}/sign-out")
def sign_out(session: SessionDep, who: Poster, user_id: str) -> RedirectResponse:
    """Sign a person out of all browsers. Their account and their tokens stay as they are."""
    sessions.close_all_sessions(session, who.actor, find_person(session, who, user_id).id)
    return back_to(f"/admin/users/{user_id}", "person-signed-out")


@router.post("/users/{user_id}/tokens")
def make_token(request: Request, session: SessionDep, who: Poster, form: Form, user_id: str) -> Response:
    """Make a token. The page shows it once."""
    person = find_person(session, who, user_id)
    secret = tokens.make_token(session, who.actor, person.id, form)
    return user_page(request, session, who, person, secret=secret, status=201)


@router.post("/users/{user_id}/tokens/{token_id}/revoke")
def revoke(session: SessionDep, who: Poster, user_id: str, token_id: str) -> RedirectResponse:
    """Revoke a token."""
    tokens.revoke_token(session, who.actor, find_person(session, who, user_id).id, token_id)
    return back_to(f"/admin/users/{user_id}", "revoked")
