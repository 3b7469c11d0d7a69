"""Who acts, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import Forbidden, NotFound
from app.models import Membership, Project, Role, Scope
from app.services.kernel.rights import RIGHTS, Right, role_with
from illume.phrases import _

SCOPE_ORDER = (Scope.read, Scope.write, Scope.admin)
MAX_ID = 2**63 - 1
CRITIC_LOCK = "pg_advisory_xact_lock(12, CAST(CAST({critic} AS bigint) % 2147483648 AS int))"
"""SQL that serialises the claims of one critic until the transaction ends."""
NO_PROJECT = _("There is no such project, or you are not a member of it.")


@dataclass(frozen=True, slots=True)
class Actor:
    """A person behind a request, or the system itself.

    `scope` limits what a token may do; a browser session has every scope. `name`, `language` and whether they see the
    pages of some project (`oversees`) are known for browser sessions only.
    """

    user_id: int
    email: str
    role: Role
    scope: Scope = Scope.admin
    token_id: int | None = None
    max_open: int | None = None
    requests_per_minute: int | None = None
    name: str = ""
    language: str = ""
    oversees: bool = False

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
    raise NotFound(_("This id does not exist: check it."))


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
        raise Forbidden(
            _(
                "This needs a token with the scope '%(value)s'; yours has '%(value2)s'.",
                value=scope.value,
                value2=actor.scope.value,
            )
        )


def project_rights(session: Session, actor: Actor, project: Project) -> frozenset[Right]:
    """The rights of `actor` in `project`. Raises `NotFound` for one who is no member."""
    return rights_of(project_role(session, actor, project))


def rights_of(role: Role | None) -> frozenset[Right]:
    """The rights of a member with this role. Raises `NotFound` for one who is no member."""
    if role is None:
        raise NotFound(NO_PROJECT)
    return RIGHTS[role]


def require(session: Session, actor: Actor, project: Project, *needs: Right) -> frozenset[Right]:
    """The actor's rights in the project, where `needs` are among them.

    Raises `NotFound` if the actor is not a member, and `Forbidden` if they lack one. To administer also needs a token
    with the scope admin.
    """
    rights = check_rights(project_role(session, actor, project), *needs, slug=project.slug)
    if Right.administers in needs:
        require_scope(actor, Scope.admin)
    return rights


def check_rights(role: Role | None, *needs: Right, slug: str) -> frozenset[Right]:
    """The rights of a member, where `needs` are among them. Raises `NotFound` for one who is no member, `Forbidden`."""
    rights = rights_of(role)
    for right in needs:
        if right not in rights:
            raise Forbidden(
                _(
                    "This needs the role '%(value)s' in project '%(slug)s'; yours is '%(role)s'.",
                    value=role_with(right).value,
                    slug=slug,
                    role=role,
                )
            )
    return rights


def require_admin(actor: Actor) -> None:
    """Raise `Forbidden` if the actor does not administer the installation."""
    if not actor.is_admin:
        raise Forbidden(_("This needs the role 'admin'; yours is '%(value)s'.", value=actor.role.value))
    require_scope(actor, Scope.admin)
