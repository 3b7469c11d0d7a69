"""Which base models a project may name: any of the hub, and folders that an admin of the installation has listed."""

from __future__ import annotations

import re
from pathlib import Path

from app.errors import Invalid
from app.services.kernel.actors import SYSTEM, Actor
from app.settings import get_settings

HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?")
NOT_LISTED = (
    "A base model is 'starter', a name of the hub, or a folder that an admin of the installation has listed in "
    "ILLUME_MODEL_FOLDERS."
)


def refuse_unlisted(actor: Actor, base_model: str) -> None:
    """Raise `Invalid` for a folder that is not listed, in the same words whether it exists or not.

    Whoever runs commands on the machine may name any folder.
    """
    if actor == SYSTEM or HUB_NAME.fullmatch(base_model):
        return
    try:
        wanted = Path(base_model).resolve()
        listed = any(wanted.is_relative_to(folder.resolve()) for folder in get_settings().listed_folders)
    except (OSError, ValueError, RuntimeError):
        listed = False
    if not listed or not Path(base_model).is_absolute():
        raise Invalid(NOT_LISTED, field="base_model")
