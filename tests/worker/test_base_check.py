"""What a worker says of a base model."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.services.rounds.versions import starter_model
from illume.errors import VlmError
from worker.base_check import describe


def test_the_shipped_model_can_be_used() -> None:
    assert "with a chat template" in describe(str(starter_model()))


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(VlmError, match="there is no model folder"):
        describe(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(VlmError, match="bert"):
        describe(str(tmp_path))
