"""What a person can mend, said in one sentence: no traceback is needed. No torch."""

from __future__ import annotations


class VlmError(ValueError):
    """A model, processor, adapter or image that cannot be used, with a reason a person can act on."""


UNEXPECTED_ERRORS = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors that a model's code, files or device may raise. They are turned into a message for the admin."""
