"""What the command lines of this library share. No torch.

They use argparse, not click as the server's do: `--prompts FILE FILE ...` takes several values after one option, which
click's options cannot, and the library alone then needs no package for its commands.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

DTYPES = ("auto", "float32", "bfloat16", "float16")


def number(kind: Callable[[str], Any], *, above: float, most: float | None = None) -> Callable[[str], Any]:
    """A type for argparse: a number above one and at most another, else one line that names them."""
    words = f"above {above}" if most is None else f"above {above} and at most {most}"

    def read(text: str) -> Any:
        value = kind(text)
        if not value > above or not (most is None or value <= most):
            raise argparse.ArgumentTypeError(f"must be {words}, not {text}")
        return value

    read.__name__ = "number"
    return read


def natural(text: str) -> int:
    """A type for argparse: a whole number that is not negative."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative: {text}")
    return value


def count(text: str) -> int:
    """A type for argparse: a whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


natural.__name__ = count.__name__ = "number"  # as argparse calls what is no number at all
