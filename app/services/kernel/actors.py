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
CRITIC_LOCK = "pg_advisory_xact_lock(12, CAST(CAST({critic} AS bigint) % 2147483648 AS int))"
"""SQL that serialises the claims of one critic until the transaction ends."""
NO_PROJECT = "There is no such project, or you are not a member of it."


@dataclass(frozen=True, slots=True)
class Actor:
    """A person behind a request, or the system itself.

    `scope` limits what a token may do; a browser session has every scope.
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
        """Whether the actor may do everything everywhere."""
        return self.role is Role.admin

    @property
    def stored_id(self) -> int | None:
        """The user id as stored in columns: NULL for the system."""
        return self.user_id or None


SYSTEM = Actor(user_id=0, email="system", role=Role.admin)


def parse_id(text: str) -> int:
    """Return the number behind an opaque id. Raises `NotFound` if it cannot be one."""
    if text.isascii() and text.isdigit() and 0 < int(text[:20]) <= MAX_ID and len(text) <= 20:
        return int(text)
    raise NotFound("This id does not exist: check it.")


def has_role(role: Role | None, need: Role) -> bool:
    """Whether `role` includes the rights of `need`."""
    return role is not None and ROLE_ORDER.index(role) >= ROLE_ORDER.index(need)


def project_role(session: Session, actor: Actor, project: Project) -> Role | None:
    """The role of `actor` in `project`: an admin is an admin everywhere, others have the role of their membership."""
    if actor.is_admin:
        return Role.admin
    role = session.scalar(
        select(Membership.role).where(Membership.project_id == project.id, Membership.user_id == actor.user_id)
    )
    return None if role is None else Role(role)


def require_scope(actor: Actor, scope: Scope) -> None:
    """Raise `Forbidden` if the actor's token lacks `scope`."""
    if SCOPE_ORDER.index(actor.scope) < SCOPE_ORDER.index(scope):
        raise Forbidden(f"This needs a token with the scope '{scope.value}'; yours has '{actor.scope.value}'.")


def require(session: Session, actor: Actor, project: Project, need: Role) -> None:
    """Raise `NotFound` if the actor is not a member of the project, and `Forbidden` if they lack the role `need`.

    What needs the role admin also needs a token with the scope admin.
    """
    check_role(project_role(session, actor, project), need, project.slug)
    if need is Role.admin:
        require_scope(actor, Scope.admin)


def check_role(role: Role | None, need: Role, slug: str) -> Role:
    """The role, where it may do what `need` may. Raises `NotFound` for one who is no member, and `Forbidden`."""
    if role is None:
        raise NotFound(NO_PROJECT)
    if not has_role(role, need):
        raise Forbidden(f"This needs the role '{need.value}' in project '{slug}'; you are '{role.value}'.")
    return role


def require_admin(actor: Actor) -> None:
    """Raise `Forbidden` if the actor does not administer the installation."""
    if not actor.is_admin:
        raise Forbidden(f"This needs the role 'admin'; you are '{actor.role.value}'.")
    require_scope(actor, Scope.admin)
