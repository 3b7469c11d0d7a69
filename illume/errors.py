"""What a person can mend, said in one sentence: no traceback is needed. No torch."""

from __future__ import annotations


class VlmError(ValueError):
    """A model, processor, adapter or image that cannot be used, with a reason a person can act on."""
