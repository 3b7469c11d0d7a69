"""What samples for a project: its own workers, or a model server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import Invalid
from app.models import Engine
from illume.phrases import _

if TYPE_CHECKING:
    from app.services.projects.projects import ProjectSettings

LOCAL = "local"
"""The setting of projects for which the installation's own workers sample."""


def find_engine(session: Session, name: str) -> Engine | None:
    """The model server of a project's setting `engine`; None for `local` and for one that is gone."""
    return None if name == LOCAL else session.scalar(select(Engine).where(Engine.name == name))


def check_engine(session: Session, settings: ProjectSettings) -> None:
    """Raise `Invalid` for a server that does not exist, and for settings that it cannot serve."""
    found = find_engine(session, settings.engine)
    if found is None and settings.engine != LOCAL:
        raise Invalid(_("There is no model server '%(name)s'.", name=settings.engine), field="engine")
    if found is not None and lacks_uncertainty(found, settings):
        raise Invalid(
            _(
                "next_prompt: the model server '%(name)s' gives no log-probabilities of before the temperature, so"
                " that nobody knows what its model is unsure about. Choose another order.",
                name=found.name,
            ),
            field="next_prompt",
        )


def lacks_uncertainty(engine: Engine, settings: ProjectSettings) -> bool:
    """Whether a project's order needs log-probabilities that its server was found not to give."""
    return (
        settings.next_prompt == "uncertain"
        and bool(engine.capabilities)
        and engine.capabilities.get("logprobs") != "before"
    )
