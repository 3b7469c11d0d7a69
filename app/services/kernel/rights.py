"""What each role may see and do in a project. `docs/security.md` shows the table, and tests hold the two together."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from app.models import Role


class Right(StrEnum):
    """A thing that a member of a project may do, or may see.

    Every member may see the project, its prompts as critics judge them, and what is their own.
    """

    judges = "judges"
    sees_references = "sees_references"
    sees_model = "sees_model"
    sees_others = "sees_others"
    reviews = "reviews"
    administers = "administers"


SEES = frozenset({Right.sees_references, Right.sees_model, Right.sees_others})
"""The rights of those who look at a project from outside: a critic who had one of them would no longer judge blind."""
RIGHTS: Mapping[Role, frozenset[Right]] = {
    Role.viewer: SEES,
    Role.critic: frozenset({Right.judges}),
    Role.reviewer: SEES | {Right.judges, Right.reviews},
    Role.admin: frozenset(Right),
}


def role_with(right: Right) -> Role:
    """The role with the fewest rights that has `right`."""
    return min((role for role in RIGHTS if right in RIGHTS[role]), key=lambda role: len(RIGHTS[role]))


JUDGING_ROLES = ", ".join(f"'{role.value}'" for role in RIGHTS if Right.judges in RIGHTS[role])
"""The roles of members who may judge, as SQL."""
OVERSEEING_ROLES = ", ".join(f"'{role.value}'" for role in RIGHTS if RIGHTS[role] >= SEES)
"""The roles of members who see the pages of their project, as SQL."""
