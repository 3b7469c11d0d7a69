"""Which base models a project may name: any of the hub, and folders that an admin of the installation has listed."""

from __future__ import annotations

import re
from pathlib import Path

from app.errors import Invalid
from app.services.kernel.actors import SYSTEM, Actor
from app.settings import get_settings
from illume.model.folder import split_revision
from illume.phrases import _

STARTER = "starter"
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?")
NOT_A_COMMIT = _("After the @ comes a commit of the hub in full: 40 digits and letters from a to f.")
NOT_LISTED = _(
    "A base model is 'starter', a name of the hub, or a folder that an admin of the installation has listed in "
    "ILLUME_MODEL_FOLDERS."
)


def resolve_base(base_model: str) -> str:
    """The folder or hub name, with `@COMMIT` or without, of a version's `base_model`.

    "starter" is the model of this distribution.
    """
    return str(starter_model()) if base_model == STARTER else base_model


def starter_model() -> Path:
    """The folder of the model shipped with this distribution."""
    return get_settings().starter_dir / "model"


def refuse_unlisted(actor: Actor, base_model: str) -> None:
    """Raise `Invalid` for a folder that is not listed, in the same words whether it exists or not.

    Whoever runs commands on the machine may name any folder. Also raised for a revision that is not a whole commit:
    names of branches and tags may mean something else tomorrow.
    """
    if HUB_NAME.fullmatch(split_revision(base_model)[0]):
        return
    if HUB_NAME.fullmatch(base_model.partition("@")[0]) and "@" in base_model:
        raise Invalid(NOT_A_COMMIT, field="base_model")
    if actor == SYSTEM:
        return
    try:
        wanted = Path(base_model).resolve()
        listed = any(wanted.is_relative_to(folder.resolve()) for folder in get_settings().listed_folders)
    except (OSError, ValueError, RuntimeError):
        listed = False
    if not listed or not Path(base_model).is_absolute():
        raise Invalid(NOT_LISTED, field="base_model")
