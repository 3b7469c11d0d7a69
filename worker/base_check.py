"""Checks whether a base model can be used, without reading its weights."""

from __future__ import annotations

import logging

from app.db.sessions import session_scope
from app.services.rounds import base_checks
from app.services.rounds.versions import resolve_base
from illume.errors import VlmError
from illume.model.loading import load_processor, read_config

log = logging.getLogger(__name__)


def check_base(check_id: int) -> None:
    """Read a base model's configuration and processor. Store a description, or why it cannot be used."""
    with session_scope() as session:
        base_model = base_checks.base_to_check(session, check_id)
    if base_model is None:
        return
    try:
        good, detail = True, describe(resolve_base(base_model))
    except VlmError as error:
        good, detail = False, str(error)
    log.info("base model %s: %s", base_model, detail)
    with session_scope() as session:
        base_checks.finish(session, check_id, good=good, detail=detail)


def describe(base: str) -> str:
    """A short description of the model. Raises VlmError if it cannot be used."""
    config = read_config(base)
    processor = load_processor(base, config)
    words = f"a {config.model_type} model with {len(processor.tokenizer):,} tokens in its vocabulary"
    return f"{words}, {'with' if processor.chat_template else 'without'} a chat template"
