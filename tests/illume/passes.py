"""Forward passes that read prompts, counted."""

from __future__ import annotations

from typing import Any

import pytest

from illume.model.vlm import Vlm, bare_model


def record_prompts_read(vlm: Vlm, patch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each forward pass from now on reads; passes of one token continue texts and do not count."""
    read: list[int] = []
    forward = type(bare_model(vlm)).forward

    def counted(self: Any, **inputs: Any) -> Any:
        if inputs["input_ids"].shape[1] > 1:
            read.append(inputs["input_ids"].shape[0])
        return forward(self, **inputs)

    patch.setattr(type(bare_model(vlm)), "forward", counted)
    return read
