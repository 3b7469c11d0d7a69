"""Who acts, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import Forbidden, NotFound
from app.models import Membership, Project, Role, Scope

ROLE_ORDER = (Role.viewer, Role.critic, Role.reviewer, Role.admin)
SCOPE_ORDER = (Scope.read, Scope.write, Scope.admin)
MAX_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Actor:
    """A person behind a request, or the system itself.

    `scope` bounds what a token may do; a browser session has all of it.
    """

    user_id: int
    email: str
    role: Role
    scope: Scope = Scope.admin
    token_id: int | None = None
    max_open: int | None = None
    requests_per_minute: int | None = None

    @property
    def is_admin(self) -> bool:
        """Whether they may do everything everywhere."""
        return self.role is Role.admin

    @property
    def stored_id(self) -> int | None:
        """The user id as columns hold it: the system is NULL."""
        return self.user_id or None


SYSTEM = Actor(user_id=0, email="system", role=Role.admin)


def parse_id(text: str) -> int:
    """The number behind an opaque id. Raises `NotFound` where it cannot be one."""
    if text.isascii() and text.isdigit() and 0 < int(text[:20]) <= MAX_ID and len(text) <= 20:
        return int(text)
    raise NotFound("There is no such thing: check the id.")


def has_role(role: Role | None, need: Role) -> bool:
    """Whether `role` may do what `need` may."""
    return role is not None and ROLE_ORDER.index(role) >= ROLE_ORDER.index(need)


def project_role(session: Session, actor: Actor, project: Project) -> Role | None:
    """What `actor` is in `project`: an admin is one everywhere, others are what their membership says."""
    if actor.is_admin:
        return Role.admin
    role = session.scalar(
        select(Membership.role).where(Membership.project_id == project.id, Membership.user_id == actor.user_id)
    )
    return None if role is None else Role(role)


def require_scope(actor: Actor, scope: Scope) -> None:
    """Raise `Forbidden` where the actor's token may not do what needs `scope`."""
    if SCOPE_ORDER.index(actor.scope) < SCOPE_ORDER.index(scope):
        raise Forbidden(f"This needs a token with the scope '{scope.value}'; yours has '{actor.scope.value}'.")


def require(session: Session, actor: Actor, project: Project, need: Role) -> None:
    """Raise `NotFound` for who is not of the project and `Forbidden` for who lacks `need`.

    What needs the role admin needs a token with the scope admin too.
    """
    role = project_role(session, actor, project)
    if role is None:
        raise NotFound("There is no such project, or you are not a member of it.")
    if not has_role(role, need):
        raise Forbidden(f"This needs the role '{need.value}' in project '{project.slug}'; you are '{role.value}'.")
    if need is Role.admin:
        require_scope(actor, Scope.admin)


def require_admin(actor: Actor) -> None:
    """Raise `Forbidden` for who does not administer the installation."""
    if not actor.is_admin:
        raise Forbidden(f"This needs the role 'admin'; you are '{actor.role.value}'.")
    require_scope(actor, Scope.admin)
