"""Checks whether a base model can be used, in a child process with limits."""

from __future__ import annotations

import logging

from app.db.sessions import session_scope
from app.services.projects.base_models import resolve_base
from app.services.rounds import base_checks
from app.settings import get_settings
from illume.errors import VlmError
from illume.model.check import check_in_child
from illume.phrases import said_by
from worker.child_process import environment

log = logging.getLogger(__name__)


def check_base(check_id: int) -> None:
    """Read a base model's configuration and processor. Store a description, or why it cannot be used."""
    with session_scope() as session:
        base_model = base_checks.base_to_check(session, check_id)
    if base_model is None:
        return
    try:
        allow_pickle = get_settings().allow_pickle_weights
        found = check_in_child(resolve_base(base_model), env=environment(), allow_pickle=allow_pickle)
        good, detail, pictures_first = True, found.text, found.pictures_first
    except VlmError as error:
        good, detail, pictures_first = False, said_by(error), None
    log.info("base model %s: %s", base_model, detail)
    with session_scope() as session:
        base_checks.finish(session, check_id, good=good, detail=detail, pictures_first=pictures_first)
