"""People and their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastapi import APIRouter
from sqlalchemy.orm import Session

from app.api.schemas import Limit, ListOut, TokenIn, TokenOut, UserChange, UserIn, UserOut
from app.http.dependencies import ActorDep, ApiRoute, SessionDep, before_body
from app.models import Token, User
from app.services.accounts import sessions, users
from app.services.kernel.actors import Actor, parse_id, require_admin
from app.services.kernel.paging import decode_cursor, encode_cursor

router = APIRouter(tags=["users"], route_class=ApiRoute)


def known_user(session: Session, actor: Actor, path: Mapping[str, str]) -> object:
    """A person, for themselves or an admin. Raises `NotFound`, `Forbidden`."""
    return users.get_user(session, actor, parse_id(path["user_id"]))


def users_out(session: Session, found: Sequence[User]) -> list[UserOut]:
    """People with their projects."""
    projects = users.list_project_roles(session, [user.id for user in found])
    return [
        UserOut(
            id=str(user.id),
            email=user.email,
            name=user.name,
            role=user.role,
            projects=list(projects[user.id]),
            disabled=user.disabled_at is not None,
            created_at=user.created_at,
        )
        for user in found
    ]


@router.get("/users")
def list_users(
    session: SessionDep,
    actor: ActorDep,
    limit: Limit = 100,
    cursor: str | None = None,
) -> ListOut[UserOut]:
    """All people, for an admin."""
    after = 0 if cursor is None else decode_cursor(cursor, int)[0]
    found = users.list_users(session, actor, limit=limit + 1, after=after)
    more = len(found) > limit
    return ListOut(items=users_out(session, found[:limit]), next=encode_cursor(found[limit - 1].id) if more else None)


@router.post("/users", status_code=201)
@before_body(lambda _session, actor, _path: require_admin(actor))
def add_user(session: SessionDep, actor: ActorDep, body: UserIn) -> UserOut:
    """Add a person as a member of the named projects. Without a password they can only use tokens."""
    user = users.add_user(
        session,
        actor,
        email=body.email,
        role=body.role,
        password=body.password,
        project_slugs=body.projects,
        name=body.name,
    )
    return users_out(session, [user])[0]


@router.get("/users/me")
def get_me(session: SessionDep, actor: ActorDep) -> UserOut:
    """Yourself."""
    return users_out(session, [users.get_user(session, actor, actor.user_id)])[0]


@router.get("/users/{user_id}")
def get_user(session: SessionDep, actor: ActorDep, user_id: str) -> UserOut:
    """A person."""
    return users_out(session, [users.get_user(session, actor, parse_id(user_id))])[0]


@router.patch("/users/{user_id}")
@before_body(known_user)
def change_user(session: SessionDep, actor: ActorDep, user_id: str, body: UserChange) -> UserOut:
    """Change a person's name, role, projects or password, or disable them."""
    number = parse_id(user_id)
    user = users.get_user(session, actor, number)
    if body.name is not None:
        users.set_name(session, actor, number, body.name)
    if body.role is not None:
        users.set_role(session, actor, number, body.role)
    if body.projects is not None:
        users.set_memberships(session, actor, user, body.projects)
    if body.disabled is not None:
        users.set_disabled(session, actor, number, body.disabled)
    if body.password is not None:
        users.set_password(session, actor, number, body.password)
    return users_out(session, [user])[0]


def token_out(token: Token, plain: str | None = None) -> TokenOut:
    """A token; its plain text only if it was just created."""
    out = TokenOut.model_validate(token, from_attributes=True)
    return out.model_copy(update={"token": plain})


@router.get("/users/{user_id}/tokens", response_model_exclude={"items": {"__all__": {"token"}}})
def list_tokens(session: SessionDep, actor: ActorDep, user_id: str) -> ListOut[TokenOut]:
    """A person's tokens, without their plain text."""
    return ListOut(items=[token_out(token) for token in users.list_tokens(session, actor, parse_id(user_id))])


@router.post("/users/{user_id}/tokens", status_code=201)
@before_body(known_user)
def add_token(session: SessionDep, actor: ActorDep, user_id: str, body: TokenIn) -> TokenOut:
    """Create a token; its plain text is shown only now."""
    token, plain = users.create_token(
        session,
        actor,
        user_id=parse_id(user_id),
        scope=body.scope,
        name=body.name,
        expires_at=body.expires_at,
        max_open=body.max_open,
        requests_per_minute=body.requests_per_minute,
    )
    session.refresh(token)
    return token_out(token, plain)


@router.delete("/users/{user_id}/sessions", status_code=204)
def close_sessions(session: SessionDep, actor: ActorDep, user_id: str) -> None:
    """Sign a person out of all browsers: yourself, or as an admin anybody. Tokens stay valid."""
    sessions.close_all_sessions(session, actor, parse_id(user_id))


@router.delete("/tokens/{token_id}", status_code=204)
def revoke_token(session: SessionDep, actor: ActorDep, token_id: str) -> None:
    """Revoke a token with immediate effect."""
    users.revoke_token(session, actor, parse_id(token_id))
